"""`top`: a live view of the cell, worst first."""

import os
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli import formats, jobs, nodes, servers
from api.cli.access import PROGRAM
from api.cli.client import Body, Client
from api.cli.connection import run
from api.cli.exits import Unreachable
from api.cli.later import asyncio
from api.cli.options import Json
from api.cli.output import Column, Output, styled, table

if TYPE_CHECKING:
    from rich.console import RenderableType

LIMIT = 50  # rows read for each list; the screen shows as many as fit
_OVERHEAD = 3  # lines of a section besides its rows: an empty line, the title, the table's header

_STRANDED = tuple(column for column in servers.COLUMNS if column.title != "FINDINGS")
_NODES = tuple(column for column in nodes.COLUMNS if column.title != "WORKER")
_RUNNING = tuple(column for column in jobs.COLUMNS if column.title != "ERROR")
_WAITING = tuple(column for column in jobs.COLUMNS if column.title not in {"STATE", "ERROR"})


@dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    columns: Sequence[Column]
    rows: Sequence[Body]
    total: int | None  # includes the rows beyond LIMIT


def top(
    context: typer.Context,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit; the default in a pipe.")] = False,
    interval: Annotated[float, typer.Option(min=0.5, metavar="SECONDS", help="Refresh interval.")] = 2.0,
    as_json: Json = False,
) -> None:
    output = Output(as_json=as_json)

    async def show(client: Client) -> None:
        if as_json and not once:
            while True:
                output.line(await _poll(client))
                await asyncio.sleep(interval)
        now = await _poll(client)
        if as_json:
            output.document(now)
        elif once or not (output.console.is_terminal and sys.stdin.isatty()):
            _print(output, now)
        else:
            await _watch(client, now, output, interval=interval)

    run(context, show)


async def _poll(client: Client) -> Body:
    """Poll once. Returns the document that `--json` prints."""
    overview, stranded, silent, busy, running, waiting = await asyncio.gather(
        client.get("ops/overview/"),
        client.get("ops/servers/", {"stranded": "true", "limit": LIMIT}),
        client.get("ops/nodes/", {"state": "silent", "limit": LIMIT}),
        client.get("ops/nodes/", {"sort": "-queued", "limit": LIMIT}),
        client.get("ops/jobs/", {"state": "in_progress", "limit": LIMIT}),
        client.get("ops/jobs/", {"state": "queued", "limit": LIMIT}),
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
        Section(title="In progress", columns=_RUNNING, rows=now["running"], total=overview["in_progress"]),
        Section(title="Queued", columns=_WAITING, rows=now["waiting"], total=overview["queued"]),
    ]


def _print(output: Output, now: Body) -> None:
    output.say(formats.summary(now["overview"]))
    for section in _sections(now):
        if section.rows:
            output.heading(f"{section.title} ({section.total})")
            output.table(section.columns, section.rows, none="")


async def _watch(client: Client, now: Body, output: Output, *, interval: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - slow to import

    outage: Unreachable | None = None
    seen_at, ended = datetime.now(UTC), asyncio.Event()
    with _keys(ended), Live(console=output.console, screen=True, auto_refresh=False) as live:
        while not ended.is_set():
            size = output.console.size
            live.update(_screen(now, seen_at, outage, width=size.width, height=size.height), refresh=True)
            try:
                async with asyncio.timeout(interval):
                    await ended.wait()
            except TimeoutError:
                try:
                    now, seen_at, outage = await _poll(client), datetime.now(UTC), None
                except Unreachable as error:
                    outage = error


def _screen(now: Body, seen_at: datetime, outage: Unreachable | None, *, width: int, height: int) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415 - slow to import
    from rich.text import Text  # noqa: PLC0415

    head = Text.assemble((PROGRAM, "bold"), f"  {seen_at:%H:%M:%S} UTC  ", ("q quits", "dim"))
    if outage is not None:
        head.append(f"  {outage}", style="bold red")
    head.truncate(width, overflow="ellipsis")
    summary = formats.summary(now["overview"])
    lines: list[RenderableType] = [head, summary]
    sections = [section for section in _sections(now) if section.rows]
    shares = _shares([len(section.rows) for section in sections], height - 2 - -(-summary.cell_len // width))
    for section, share in zip(sections, shares, strict=True):
        more = "" if section.total is None or section.total <= share else f", first {share}"
        style = "bold red" if section.title == "Stranded" else "bold"
        lines += [styled(""), styled(f"{section.title} ({section.total}{more})", style)]
        lines.append(table(section.columns, section.rows[:share], width=width))
    return Group(*lines)


def _shares(rows: list[int], height: int) -> list[int]:
    """The rows of each section that fit into `height` lines; the longest sections are cut."""
    shares = list(rows)
    while sum(shares) + _OVERHEAD * len(shares) > height and max(shares) > 1:
        shares[shares.index(max(shares))] -= 1
    return shares


@contextmanager
def _keys(ended: "asyncio.Event") -> Iterator[None]:
    """Sets `ended` when q is pressed, and restores the terminal afterward."""
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
