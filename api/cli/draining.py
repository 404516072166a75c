"""Waits until paused nodes are empty."""

from api import words
from api.cli import formats
from api.cli.client import Body, Client, retrying, segment
from api.cli.exits import CliError, Exit, Unreachable
from api.cli.later import asyncio
from api.cli.output import Output

POLL_SECONDS = 1.0


def end(node: Body) -> str:
    """The automatic end of a pause, as in " until its host has rebooted"; "" if there is none."""
    paused = node["paused"]
    if not paused:
        return ""
    if paused.get("until_back"):
        return " until its host has rebooted"
    return f" until {formats.at(paused['until'])} UTC" if paused.get("until") else ""


async def wait_until_empty(
    client: Client, nodes: list[Body], output: Output, *, max_seconds: float | None
) -> list[Body]:
    """Wait until no job is running on any of the nodes, and return them. If a node is silent, no longer paused, or
    still busy after `max_seconds`, raises CliError once the others are empty."""
    named = len(nodes) > 1
    waits = [_one(client, node, output, max_seconds=max_seconds, named=named) for node in nodes]
    found = await asyncio.gather(*waits, return_exceptions=True)
    failed = [error for error in found if isinstance(error, BaseException)]
    refused = [error for error in failed if isinstance(error, CliError)]
    for error in failed:
        if error not in refused:
            raise error
    if refused:
        raise CliError(refused[0].exit_code, " ".join(map(str, refused)))
    return [node for node in found if not isinstance(node, BaseException)]


async def _one(client: Client, node: Body, output: Output, *, max_seconds: float | None, named: bool) -> Body:
    """`named`: print which node runs the jobs."""
    path, noted = f"ops/nodes/{segment(node['name'])}/", -1
    was_idle = False  # a job that its worker took just before the pause appears only in the second poll

    def note_outage(error: Unreachable) -> None:
        output.note(f"{error} Retrying.")

    try:
        async with asyncio.timeout(max_seconds):
            while True:
                node = await retrying(lambda: client.get(path), on_outage=note_outage)
                if not node["paused"]:
                    raise CliError(Exit.REFUSED, f"The pause of {node['name']} ended before the node was drained.")
                if not node["running"] and was_idle:
                    return node
                if not node["alive"]:
                    raise CliError(
                        Exit.REFUSED,
                        f"{node['name']} is paused, but has been silent for {formats.age(node['heartbeat_at'])}."
                        f" Its {node['running']} running jobs finish once its worker is back.",
                    )
                was_idle = not node["running"]
                if node["running"] != noted and (node["running"] or named):
                    noted = node["running"]
                    output.note(f"{node['name']}: {_running(node)}" if named else _running(node))
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        left = words.plural(node["running"], "job")
        raise CliError(Exit.STILL_RUNNING, f"{node['name']} still runs {left}. It stays paused.") from None
    except asyncio.CancelledError:
        output.note(f"{node['name']} stays paused. To resume it: vps-snapshots node resume {node['name']} --reason ...")
        raise


def _running(node: Body) -> str:
    if not node["running"]:
        return "no running jobs"
    return f"{node['running']} running: " + ", ".join(map(_doing, node["jobs"]))


def _doing(job: Body) -> str:
    return f"{formats.what(job)} ({formats.progress(job)})"
