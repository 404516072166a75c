"""Commands for nodes."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

import typer

from api import words
from api.cli import completion, credentials, draining, formats, jobs
from api.cli.client import Body, Client, segment
from api.cli.commands import list_all, perform
from api.cli.options import All, Json, Limit, MaxWait, NodeArgument, NodeArguments, Reason, Until, Yes, confirm, rfc3339
from api.cli.output import Column, Output
from worker.program.command_line import group

app = group()
app.add_typer(credentials.app, name="credential")


State = Literal["alive", "silent", "paused", "failing"]
Sort = Literal["name", "-name", "heartbeat", "-heartbeat", "queued", "-queued", "free", "-free", "failed", "-failed"]

COLUMNS = (
    Column(title="NODE", of=lambda node: node["name"]),
    Column(title="STATE", of=formats.node_state),
    Column(title="HEARTBEAT", of=lambda node: formats.age(node["heartbeat_at"]), yields=3, right=True),
    Column(title="QUEUED", of=lambda node: node["queued"], right=True),
    Column(title="IN PROGRESS", of=lambda node: node["running"], right=True),
    Column(title="FAILED", of=formats.failed_lately, yields=1, right=True),
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
    query, rows = {"state": state, "sort": sort}, None if everything else limit
    list_all(context, "ops/nodes/", query, COLUMNS, limit=rows, as_json=as_json, none="No matching nodes.")


@app.command("show")
def show_node(context: typer.Context, node: NodeArgument, *, as_json: Json = False) -> None:
    """Show a node with its storage pools and jobs in progress."""
    perform(context, lambda client: client.get(f"ops/nodes/{segment(node)}/"), show_one, as_json=as_json)


@app.command("drain")
def drain_nodes(  # noqa: PLR0913 - an option is a parameter
    context: typer.Context,
    nodes: NodeArguments,
    *,
    reason: Reason,
    until: Until = None,
    until_back: Annotated[
        bool, typer.Option("--until-back", help="Resume each node when its host has rebooted.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until no job is running.")] = True,
    max_wait: MaxWait = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Stop giving jobs to nodes, and wait until none is running. Their workers can then be stopped."""
    if until and until_back:
        raise typer.BadParameter("specify either --until or --until-back")
    notes = Output(as_json=as_json)
    body: Body = {"reason": reason} | ({"until": rfc3339(until)} if until else {})
    body |= {"until_back": True} if until_back else {}

    async def drain(client: Client) -> list[Body]:
        paused = [await client.post(f"ops/nodes/{segment(node)}/pause/", body) for node in nodes]
        return await draining.wait_until_empty(client, paused, notes, max_seconds=max_wait) if wait else paused

    def show(output: Output, paused: Body) -> None:
        running = "no running jobs" if wait else f"{paused['running']} running"
        output.say(f"{paused['name']} is paused{draining.end(paused)}, {running}, {paused['queued']} queued")

    end = "until its host has rebooted" if until_back else f"until {rfc3339(until)}" if until else "until it is resumed"
    question = None if yes else f"Drain {', '.join(nodes)}? Each starts no new jobs {end}."
    _each(context, drain, show, as_json=as_json, question=question)


@app.command("resume")
def resume_nodes(
    context: typer.Context, nodes: NodeArguments, *, reason: Reason, yes: Yes = False, as_json: Json = False
) -> None:
    """Give jobs to paused nodes again."""

    async def resume(client: Client) -> list[Body]:
        return [await client.post(f"ops/nodes/{segment(node)}/resume/", {"reason": reason}) for node in nodes]

    def show(output: Output, resumed: Body) -> None:
        output.say(f"{resumed['name']} resumed, {resumed['queued']} queued")

    _each(context, resume, show, as_json=as_json, question=None if yes else f"Resume {', '.join(nodes)}?")


def _each(
    context: typer.Context,
    call: Callable[[Client], Awaitable[list[Body]]],
    show: Callable[[Output, Body], None],
    *,
    as_json: bool,
    question: str | None,
) -> None:
    """Like `perform`, for several nodes. With one node, the JSON is the node itself."""

    async def several(client: Client) -> Body:
        found = await call(client)
        return found[0] if len(found) == 1 else {"results": found}

    def show_each(output: Output, body: Body) -> None:
        for node in body.get("results", [body]):
            show(output, node)

    perform(context, several, show_each, as_json=as_json, question=question)


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


def show_one(output: Output, node: Body) -> None:
    paused = node["paused"]
    output.facts(
        (
            ("node", node["name"]),
            ("state", formats.node_state(node)),
            ("paused", f"{formats.at(paused['since'])} UTC by {paused['by']}: {paused['reason']}" if paused else None),
            ("pause ends", draining.end(node).strip() or None),
            ("heartbeat", f"{formats.age(node['heartbeat_at'])} ago"),
            ("worker", f"{node['worker_at']}, version {node['versions'].get('worker', 'unknown')}"),
            ("hypervisor", node["versions"].get("hypervisor")),
            ("emulator", node["versions"].get("emulator")),
            ("jobs", f"{node['queued']} queued, {node['running']} in progress"),
            ("last hour", formats.ended_lately(node)),
            ("servers", f"{node['servers']}, {node['findings']} with findings"),
        )
    )
    if node["pools"]:
        output.heading("Storage pools")
        output.table(POOL_COLUMNS, node["pools"], none="")
    if node["jobs"]:
        output.heading("Jobs in progress")
        output.table(jobs.COLUMNS, node["jobs"], none="")
