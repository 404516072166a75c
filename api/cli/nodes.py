"""Commands for nodes."""

from typing import Annotated, Literal

import typer

from api import words
from api.cli import completion, credentials, formats, jobs
from api.cli.client import Body, Client, retrying, segment
from api.cli.commands import list_all, perform
from api.cli.exits import CliError, Exit, Unreachable
from api.cli.help import group
from api.cli.later import asyncio
from api.cli.options import All, Json, Limit, MaxWait, NodeArgument, Reason, Yes, confirm
from api.cli.output import Column, Output

POLL_SECONDS = 1.0

app = group("Show, drain, resume or reconcile a node, and manage its credentials.")
app.add_typer(credentials.app, name="credential")


State = Literal["alive", "silent", "paused"]
Sort = Literal["name", "-name", "heartbeat", "-heartbeat", "queued", "-queued", "free", "-free"]

COLUMNS = (
    Column(title="NODE", of=lambda node: node["name"]),
    Column(title="STATE", of=formats.node_state),
    Column(title="LAST SEEN", of=lambda node: formats.age(node["heartbeat_at"]), yields=3, right=True),
    Column(title="QUEUED", of=lambda node: node["queued"], right=True),
    Column(title="RUNNING", of=lambda node: node["running"], right=True),
    Column(title="SERVERS", of=lambda node: node["servers"], yields=4, right=True),
    Column(title="FREE", of=formats.free, yields=1, right=True),
    Column(title="FINDINGS", of=lambda node: node["findings"], yields=2, right=True),
    Column(title="WORKER", of=lambda node: node["versions"].get("worker", "-"), yields=5),
    Column(title="PAUSE REASON", of=lambda node: node["paused"]["reason"] if node["paused"] else "", yields=6),
)
POOL_COLUMNS = (
    Column(title="POOL", of=lambda pool: pool["path"]),
    Column(title="FREE", of=lambda pool: words.size(pool["free_bytes"]), right=True),
    Column(title="TOTAL", of=lambda pool: words.size(pool["total_bytes"]), right=True),
)


def list_nodes(
    context: typer.Context,
    *,
    state: Annotated[State | None, typer.Option(help="Filter by state.")] = None,
    sort: Annotated[Sort, typer.Option(help="Sort key; prefix it with - for descending order.")] = "name",
    limit: Limit = 100,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List nodes with their load and free storage."""
    query, rows = {"state": state, "sort": sort}, None if everything else limit
    list_all(context, "ops/nodes/", query, COLUMNS, limit=rows, as_json=as_json, none="No matching nodes.")


@app.command("show")
def show_node(context: typer.Context, node: NodeArgument, *, as_json: Json = False) -> None:
    """Show a node with its storage pools and running jobs."""
    perform(context, lambda client: client.get(f"ops/nodes/{segment(node)}/"), show_one, as_json=as_json)


@app.command("drain")
def drain_node(
    context: typer.Context,
    node: NodeArgument,
    *,
    reason: Reason,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until no job is running.")] = True,
    max_wait: MaxWait = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Stop giving jobs to a node, and wait until none is running. Its worker can then be stopped."""
    notes = Output(as_json=as_json)

    async def drain(client: Client) -> Body:
        paused = await client.post(f"ops/nodes/{segment(node)}/pause/", {"reason": reason})
        return await _drained(client, paused, notes, max_seconds=max_wait) if wait else paused

    def show(output: Output, paused: Body) -> None:
        running = "no running jobs" if wait else f"{paused['running']} running"
        output.say(f"{node} is paused, {running}, {paused['queued']} queued")

    question = None if yes else f"Drain {node}? It starts no new jobs until it is resumed."
    perform(context, drain, show, as_json=as_json, question=question)


@app.command("resume")
def resume_node(
    context: typer.Context, node: NodeArgument, *, reason: Reason, yes: Yes = False, as_json: Json = False
) -> None:
    """Give jobs to a paused node again."""
    perform(
        context,
        lambda client: client.post(f"ops/nodes/{segment(node)}/resume/", {"reason": reason}),
        lambda output, resumed: output.say(f"{node} resumed, {resumed['queued']} queued"),
        as_json=as_json,
        question=None if yes else f"Resume {node}?",
    )


@app.command("reconcile")
def reconcile_node(context: typer.Context, node: NodeArgument, *, yes: Yes = False, as_json: Json = False) -> None:
    """Compare a node's disks and snapshots with the service's records now."""
    _reconcile(context, [node], everything=False, yes=yes, as_json=as_json)


def reconcile_nodes(
    context: typer.Context,
    nodes: Annotated[list[str] | None, typer.Argument(metavar="NODE...", autocompletion=completion.nodes)] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Reconcile all nodes that are alive.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Compare nodes' disks and snapshots with the service's records now. `findings` lists the differences."""
    if bool(nodes) is everything:
        raise typer.BadParameter("specify either node names or --all")
    _reconcile(context, nodes or [], everything=everything, yes=yes, as_json=as_json)


def _reconcile(context: typer.Context, nodes: list[str], *, everything: bool, yes: bool, as_json: bool) -> None:
    names = list(nodes)

    async def reconcile(client: Client) -> Body:
        if everything:
            alive = await client.collect("ops/nodes/", {"state": "alive"}, limit=None)
            names.extend(node["name"] for node in alive["results"])
        if not yes:
            confirm(f"Reconcile {names[0] if len(names) == 1 else words.plural(len(names), 'node')}?")
        return {"results": [await client.post(f"ops/nodes/{segment(name)}/reconcile/") for name in names]}

    def show(output: Output, _: Body) -> None:
        where = f"on {', '.join(names)}; it starts within seconds" if names else "on no node: none is alive"
        output.say(f"reconcile requested {where}")

    perform(context, reconcile, show, as_json=as_json)


async def _drained(client: Client, node: Body, output: Output, *, max_seconds: float | None) -> Body:
    """The node once no job is running. Raises CliError if it is silent, or after `max_seconds`."""
    path, noted = f"ops/nodes/{segment(node['name'])}/", -1
    was_idle = False  # a job that its worker took just before the pause appears only in the second poll

    def note_outage(error: Unreachable) -> None:
        output.note(f"{error} Retrying.")

    try:
        async with asyncio.timeout(max_seconds):
            while True:
                node = await retrying(lambda: client.get(path), on_outage=note_outage)
                if not node["running"] and was_idle:
                    return node
                if not node["alive"]:
                    raise CliError(
                        Exit.REFUSED,
                        f"{node['name']} is paused, but has been silent for {formats.age(node['heartbeat_at'])}."
                        f" Its {node['running']} running jobs finish once its worker is back.",
                    )
                was_idle = not node["running"]
                if node["running"] != noted and node["running"]:
                    noted = node["running"]
                    output.note(f"{noted} running: " + ", ".join(map(_doing, node["jobs"])))
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        left = words.plural(node["running"], "job")
        raise CliError(Exit.STILL_RUNNING, f"{node['name']} still runs {left}. It stays paused.") from None
    except asyncio.CancelledError:
        output.note(f"{node['name']} stays paused. To resume it: vps-snapshots node resume {node['name']} --reason ...")
        raise


def _doing(job: Body) -> str:
    return f"{formats.what(job)} ({formats.progress(job)})"


def show_one(output: Output, node: Body) -> None:
    paused = node["paused"]
    output.facts(
        (
            ("node", node["name"]),
            ("state", formats.node_state(node)),
            ("paused", f"{formats.at(paused['since'])} UTC by {paused['by']}: {paused['reason']}" if paused else None),
            ("last seen", f"{formats.age(node['heartbeat_at'])} ago"),
            ("worker", f"{node['worker_at']}, version {node['versions'].get('worker', 'unknown')}"),
            ("hypervisor", node["versions"].get("hypervisor")),
            ("emulator", node["versions"].get("emulator")),
            ("jobs", f"{node['queued']} queued, {node['running']} running"),
            ("servers", f"{node['servers']}, {node['findings']} with findings"),
        )
    )
    if node["pools"]:
        output.heading("Storage pools")
        output.table(POOL_COLUMNS, node["pools"], none="")
    if node["jobs"]:
        output.heading("Running jobs")
        output.table(jobs.COLUMNS, node["jobs"], none="")
