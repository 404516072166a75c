"""`top`: the cell as it goes, what is worst first."""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from api.cli import jobs, nodes, servers, shown
from api.cli.client import Body, Client
from api.cli.connection import PROGRAM, run
from api.cli.exits import Unreachable
from api.cli.options import Json
from api.cli.output import Column, Output, table

LISTED = 50  # of each list; what fits is shown
_AROUND = 3  # lines of a section beside its rows: one that is empty, its title, its table's head

_STRANDED = tuple(column for column in servers.COLUMNS if column.title != "FINDINGS")
_NODES = tuple(column for column in nodes.COLUMNS if column.title != "WORKER")
_RUNNING = tuple(column for column in jobs.COLUMNS if column.title != "ERROR")
_WAITING = tuple(column for column in jobs.COLUMNS if column.title not in {"STATE", "ERROR"})


@dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    columns: Sequence[Column]
    rows: Sequence[Body]
    total: int | None  # also of those that are not listed


def top(
    context: typer.Context,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end; so it does in a pipe.")] = False,
    interval: Annotated[float, typer.Option(min=0.5, metavar="SECONDS", help="Between two looks.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Watch the cell: stranded servers, nodes, jobs with their steps. q or Ctrl-C ends it."""
    output = Output(as_json=as_json)

    async def show(client: Client) -> None:
        if as_json and not once:
            while True:
                output.line(await _look(client))
                await asyncio.sleep(interval)
        now = await _look(client)
        if as_json:
            output.document(now)
        elif once or not (output.console.is_terminal and sys.stdin.isatty()):
            _print(output, now)
        else:
            await _watch(client, now, output, interval=interval)

    run(context, show)


async def _look(client: Client) -> Body:
    """Everything at once: one document, as `--json` prints it."""
    overview, stranded, silent, busy, running, waiting = await asyncio.gather(
        client.get("ops/overview/"),
        client.get("ops/servers/", {"stranded": "true", "limit": LISTED}),
        client.get("ops/nodes/", {"state": "silent", "limit": LISTED}),
        client.get("ops/nodes/", {"sort": "-queued", "limit": LISTED}),
        client.get("ops/jobs/", {"state": "in_progress", "limit": LISTED}),
        client.get("ops/jobs/", {"state": "queued", "limit": LISTED}),
    )
    worst = {node["name"]: node for node in (*silent["results"], *busy["results"])}
    return {
        "overview": overview,
        "stranded": stranded["results"],
        "nodes": list(worst.values()),
        "running": running["results"],
        "waiting": waiting["results"],
    }


def _sections(now: Body) -> list[Section]:
    overview = now["overview"]
    counts = overview["nodes"]
    return [
        Section(title="Stranded", columns=_STRANDED, rows=now["stranded"], total=overview["stranded_servers"]),
        Section(title="Nodes", columns=_NODES, rows=now["nodes"], total=counts["alive"] + counts["silent"]),
        Section(title="Running", columns=_RUNNING, rows=now["running"], total=overview["in_progress"]),
        Section(title="Waiting", columns=_WAITING, rows=now["waiting"], total=overview["queued"]),
    ]


def _print(output: Output, now: Body) -> None:
    output.say(shown.glance(now["overview"]))
    for section in _sections(now):
        if section.rows:
            output.heading(f"{section.title} ({section.total})")
            output.table(section.columns, section.rows, none="")


async def _watch(client: Client, now: Body, output: Output, *, interval: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - slow to import

    trouble: Unreachable | None = None
    seen_at, ended = datetime.now(UTC), asyncio.Event()
    with _keys(ended), Live(console=output.console, screen=True, auto_refresh=False) as live:
        while not ended.is_set():
            size = output.console.size
            live.update(_screen(now, seen_at, trouble, width=size.width, height=size.height), refresh=True)
            try:
                async with asyncio.timeout(interval):
                    await ended.wait()
            except TimeoutError:
                try:
                    now, seen_at, trouble = await _look(client), datetime.now(UTC), None
                except Unreachable as away:
                    trouble = away


def _screen(now: Body, seen_at: datetime, trouble: Unreachable | None, *, width: int, height: int) -> RenderableType:
    head = Text.assemble((PROGRAM, "bold"), f"  {seen_at:%H:%M:%S} UTC  ", ("q ends", "dim"))
    if trouble is not None:
        head.append(f"  {trouble}", style="bold red")
    head.truncate(width, overflow="ellipsis")
    glance = shown.glance(now["overview"])
    lines: list[RenderableType] = [head, glance]
    sections = [section for section in _sections(now) if section.rows]
    shares = _shares([len(section.rows) for section in sections], height - 2 - -(-glance.cell_len // width))
    for section, share in zip(sections, shares, strict=True):
        more = "" if section.total is None or section.total <= share else f", {share} shown"
        style = "bold red" if section.title == "Stranded" else "bold"
        lines += [Text(""), Text(f"{section.title} ({section.total}{more})", style=style)]
        lines.append(table(section.columns, section.rows[:share], width=width))
    return Group(*lines)


def _shares(rows: list[int], height: int) -> list[int]:
    """How many rows each section shows in so many lines: the longest give way."""
    shares = list(rows)
    while sum(shares) + _AROUND * len(shares) > height and max(shares) > 1:
        shares[shares.index(max(shares))] -= 1
    return shares


@contextmanager
def _keys(ended: asyncio.Event) -> Iterator[None]:
    """Set it when q is pressed; the terminal is afterwards as it was."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    loop = asyncio.get_running_loop()

    def read() -> None:
        typed = os.read(stdin, 64)
        if not typed or b"q" in typed.lower():
            ended.set()

    tty.setcbreak(stdin)
    loop.add_reader(stdin, read)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
