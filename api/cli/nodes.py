"""Nodes: list them, look at one, drain it before work on it, let it go on, reconcile."""

import asyncio
from enum import StrEnum
from typing import Annotated

import typer

from api.cli import completion, jobs, shown
from api.cli.client import Body, Client, patiently, segment
from api.cli.connection import run
from api.cli.exits import Exit, Trouble
from api.cli.options import All, Json, Limit, MaxWait, NodeArgument, Reason, Yes, confirm
from api.cli.output import Column, Output

LOOK_SECONDS = 1.0

app = typer.Typer(no_args_is_help=True, help="One node: show, drain, resume, reconcile.")


class State(StrEnum):
    ALIVE = "alive"
    SILENT = "silent"
    PAUSED = "paused"


class Sort(StrEnum):
    NAME = "name"
    NAME_DOWN = "-name"
    HEARTBEAT = "heartbeat"
    HEARTBEAT_DOWN = "-heartbeat"
    QUEUED = "queued"
    QUEUED_DOWN = "-queued"
    FREE = "free"
    FREE_DOWN = "-free"


COLUMNS = (
    Column(title="NODE", of=lambda node: node["name"]),
    Column(title="STATE", of=shown.node_state),
    Column(title="HEARD", of=lambda node: shown.ago(node["heartbeat_at"]), yields=3, right=True),
    Column(title="QUEUED", of=lambda node: node["queued"], right=True),
    Column(title="RUNNING", of=lambda node: node["running"], right=True),
    Column(title="SERVERS", of=lambda node: node["servers"], yields=4, right=True),
    Column(title="FREE", of=shown.free, yields=1, right=True),
    Column(title="FINDINGS", of=lambda node: node["findings"], yields=2, right=True),
    Column(title="WORKER", of=lambda node: node["versions"].get("worker", "-"), yields=5),
    Column(title="PAUSED BECAUSE", of=lambda node: node["paused"]["reason"] if node["paused"] else "", yields=6),
)
POOL_COLUMNS = (
    Column(title="POOL", of=lambda pool: pool["path"]),
    Column(title="FREE", of=lambda pool: shown.size(pool["free_bytes"]), right=True),
    Column(title="OF", of=lambda pool: shown.size(pool["total_bytes"]), right=True),
)


def list_nodes(
    context: typer.Context,
    *,
    state: Annotated[State | None, typer.Option(help="In this state only.")] = None,
    sort: Annotated[Sort, typer.Option(help="By this; with - from the greatest.")] = Sort.NAME,
    limit: Limit = 100,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List nodes with what they do and how much is free."""
    output = Output(as_json=as_json)

    async def show(client: Client) -> None:
        listed = await client.parts("ops/nodes/", {"state": state, "sort": sort}, limit=None if everything else limit)
        output.document(listed) if as_json else output.list(COLUMNS, listed, none="No such nodes.")

    run(context, show)


@app.command("show")
def show_node(context: typer.Context, node: NodeArgument, *, as_json: Json = False) -> None:
    """Show a node with its pools and the jobs that run on it."""
    output = Output(as_json=as_json)

    async def show(client: Client) -> None:
        found = await client.get(f"ops/nodes/{segment(node)}/")
        output.document(found) if as_json else _show_one(output, found)

    run(context, show)


@app.command("drain")
def drain_node(
    context: typer.Context,
    node: NodeArgument,
    *,
    reason: Reason,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until no job runs on it.")] = True,
    max_wait: MaxWait = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Have a node take no new job, and wait until none runs on it: then its worker can be stopped."""
    output = Output(as_json=as_json)

    async def drain(client: Client) -> None:
        confirm(f"Drain {node}? It takes no new job until it is resumed.", yes=yes)
        paused = (await client.post(f"ops/nodes/{segment(node)}/pause/", {"reason": reason})).body
        if wait:
            paused = await _empty(client, paused, output, most_seconds=max_wait)
        if as_json:
            output.document(paused)
        else:
            runs = "nothing runs on it" if wait else f"{paused['running']} running"
            output.say(f"{node} is paused, {runs}, {paused['queued']} queued")

    run(context, drain)


@app.command("resume")
def resume_node(
    context: typer.Context, node: NodeArgument, *, reason: Reason, yes: Yes = False, as_json: Json = False
) -> None:
    """Let a node that was drained take jobs again."""
    output = Output(as_json=as_json)

    async def resume(client: Client) -> None:
        confirm(f"Let {node} take jobs again?", yes=yes)
        resumed = (await client.post(f"ops/nodes/{segment(node)}/resume/", {"reason": reason})).body
        output.document(resumed) if as_json else output.say(f"{node} takes jobs again, {resumed['queued']} queued")

    run(context, resume)


@app.command("reconcile")
def reconcile_node(context: typer.Context, node: NodeArgument, *, yes: Yes = False, as_json: Json = False) -> None:
    """Have a node compare its servers with the store, now."""
    _reconcile(context, [node], everything=False, yes=yes, output=Output(as_json=as_json))


def reconcile_nodes(
    context: typer.Context,
    nodes: Annotated[list[str] | None, typer.Argument(metavar="NODE...", autocompletion=completion.nodes)] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Each node that is alive.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Have nodes compare their servers with the store, now. What they find: findings."""
    if bool(nodes) is everything:
        raise typer.BadParameter("give the names of nodes, or --all")
    _reconcile(context, nodes or [], everything=everything, yes=yes, output=Output(as_json=as_json))


def _reconcile(context: typer.Context, nodes: list[str], *, everything: bool, yes: bool, output: Output) -> None:
    async def reconcile(client: Client) -> None:
        names = nodes
        if everything:
            alive = await client.parts("ops/nodes/", {"state": "alive"}, limit=None)
            names = [node["name"] for node in alive["results"]]
        confirm(f"Reconcile {names[0] if len(names) == 1 else f'{len(names)} nodes'}?", yes=yes)
        results = [(await client.post(f"ops/nodes/{segment(name)}/reconcile/")).body for name in names]
        if output.as_json:
            output.document({"results": results})
        else:
            output.say(f"asked of {', '.join(names) or 'no node'}; they begin within seconds")

    run(context, reconcile)


async def _empty(client: Client, node: Body, output: Output, *, most_seconds: float | None) -> Body:
    """The node once no job runs on it. Raises Trouble where it is silent, or after `most_seconds`."""
    path, told = f"ops/nodes/{segment(node['name'])}/", -1
    was_empty = False  # a job that was taken in the moment of the pause shows up at the second look
    try:
        async with asyncio.timeout(most_seconds):
            while True:
                node = await patiently(lambda: client.get(path), told=lambda away: output.note(f"{away} Trying again."))
                if not node["running"] and was_empty:
                    return node
                if not node["alive"]:
                    raise Trouble(
                        Exit.REFUSED,
                        f"{node['name']} is paused, but silent since {shown.ago(node['heartbeat_at'])}:"
                        f" its {node['running']} running jobs end when its worker is back.",
                    )
                was_empty = not node["running"]
                if node["running"] != told and node["running"]:
                    told = node["running"]
                    output.note(f"{told} running: " + ", ".join(map(_doing, node["jobs"])))
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        left = f"{node['running']} running, and it stays paused"
        raise Trouble(Exit.STILL_RUNNING, f"{node['name']} is not empty yet: {left}.") from None
    except asyncio.CancelledError:
        output.note(f"{node['name']} stays paused; vps-snapshots node resume lets it go on.")
        raise


def _doing(job: Body) -> str:
    return f"{shown.what(job)} ({shown.progress(job)})"


def _show_one(output: Output, node: Body) -> None:
    paused = node["paused"]
    output.facts(
        (
            ("node", node["name"]),
            ("state", shown.node_state(node)),
            ("paused", f"{shown.at(paused['since'])} by {paused['by']}: {paused['reason']}" if paused else None),
            ("heard", f"{shown.ago(node['heartbeat_at'])} ago"),
            ("worker", f"{node['worker_at']}, version {node['versions'].get('worker', 'unknown')}"),
            ("hypervisor", node["versions"].get("hypervisor")),
            ("emulator", node["versions"].get("emulator")),
            ("jobs", f"{node['queued']} queued, {node['running']} running"),
            ("servers", f"{node['servers']}, {node['findings']} with findings"),
        )
    )
    if node["pools"]:
        output.heading("Pools")
        output.table(POOL_COLUMNS, node["pools"], none="")
    if node["jobs"]:
        output.heading("Running")
        output.table(jobs.COLUMNS, node["jobs"], none="")
