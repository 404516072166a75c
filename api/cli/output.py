"""Printing: tables that fit the terminal, complete plain tables in a pipe, or JSON."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_GAP = 2
_READABLE = 20  # characters that stay of the widest column


@dataclass(frozen=True, kw_only=True)
class Column:
    """`yields`: columns with the highest are dropped first if the terminal is too narrow; those with 0 stay."""

    title: str
    of: "Callable[[dict[str, Any]], str | int | Text]"
    yields: int = 0
    right: bool = False
    digits: int | None = None  # how many digits of an ID a terminal shows; None: all


class Output:
    """Results go to standard output, everything else to standard error."""

    def __init__(self, *, as_json: bool) -> None:
        from rich.console import Console  # noqa: PLC0415 - a command imports rich when it prints: --help is quick

        class Printing(Console):
            def on_broken_pipe(self) -> None:  # rich would exit with 1
                raise BrokenPipeError

        self.as_json = as_json
        self.console = Printing(highlight=False)
        self.errors = Console(stderr=True, highlight=False)

    def document(self, body: Any) -> None:
        typer.echo(json.dumps(body, indent=2))

    def line(self, body: Any) -> None:
        typer.echo(json.dumps(body))

    def say(self, text: "str | Text") -> None:
        self._print(self.console, text)

    def note(self, text: "str | Text") -> None:
        self._print(self.errors, text)

    def table(self, columns: Sequence[Column], rows: Sequence[dict[str, Any]], *, none: str) -> None:
        """`none`: the text for an empty table."""
        if not rows:
            self.note(none)
        elif self.console.is_terminal:
            self._paged(table(columns, rows, width=self.console.width), lines=len(rows) + 1)
        else:
            self._plain(columns, rows)

    def list(self, columns: Sequence[Column], listed: dict[str, Any], *, none: str) -> None:
        """A list from the API, and whether there are more rows."""
        self.table(columns, listed["results"], none=none)
        rows, count = len(listed["results"]), listed.get("count")
        if listed.get("after") or (count is not None and count > rows):
            of = f" of {count:,}" if count is not None else ""
            self.note(f"{rows:,}{of} rows; use --limit or --all for more")

    def facts(self, pairs: "Iterable[tuple[str, str | Text | None]]") -> None:
        """Names and values, one per line; pairs without a value are left out."""
        known = [(name, _clean(value)) for name, value in pairs if value]
        wide = max((len(name) for name, _ in known), default=0)
        for name, value in known:
            self.say(styled(name.ljust(wide + _GAP), "dim") + value)

    def heading(self, text: str) -> None:
        self.say("")
        self.say(styled(text, "bold"))

    def _paged(self, shown: "Table", *, lines: int) -> None:
        """Print through a pager if the text is longer than the screen."""
        pager = shlex.split(os.environ.get("PAGER", "less"))
        if lines < self.console.height or not pager or not sys.stdin.isatty() or shutil.which(pager[0]) is None:
            self.console.print(shown)
            return
        with self.console.capture() as captured:
            self.console.print(shown)
        # F: ends by itself if all fits, R: colors, X: leaves the screen as it is
        environment = {"LESS": "FRX", **os.environ}
        subprocess.run(pager, input=captured.get().encode(), env=environment, check=False)

    def _plain(self, columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> None:
        cells = [
            [column.title for column in columns],
            *([cell.plain or "-" for cell in row] for row in _cells(columns, rows)),
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            typer.echo((" " * _GAP).join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip())

    def _print(self, console: "Console", text: "str | Text") -> None:
        console.print(_clean(text), soft_wrap=not console.is_terminal)


def styled(text: str, style: str = "") -> "Text":
    """Our own text, for a terminal."""
    from rich.text import Text  # noqa: PLC0415 - as above

    return Text(text, style=style)


def printable(text: str) -> str:
    """Text from others without control characters."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def table(columns: Sequence[Column], rows: Sequence[dict[str, Any]], *, width: int) -> "Table":
    """The table within `width` columns: it drops columns first, then cuts texts."""
    from rich.table import Table  # noqa: PLC0415 - as above

    kept = _fitting(columns, rows, width)
    grid = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    for column, most in kept:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        grid.add_column(column.title, justify=justify, no_wrap=True, overflow="ellipsis", max_width=most)
    for row in _cells([column for column, _ in kept], rows, short=True):
        grid.add_row(*row)
    return grid


def _fitting(columns: Sequence[Column], rows: Sequence[dict[str, Any]], width: int) -> list[tuple[Column, int]]:
    """The columns that stay, each with the most characters of a text. Only the texts of the widest column are cut."""
    texts = list(zip(*_cells(columns, rows, short=True), strict=True))
    widths = [
        max(len(column.title), *(text.cell_len for text in own)) + _GAP
        for column, own in zip(columns, texts, strict=True)
    ]
    kept = [n for n, column in enumerate(columns) if not column.yields or any(text.plain for text in texts[n])]
    for n in sorted(kept, key=lambda n: -columns[n].yields):
        if not columns[n].yields or sum(widths[n] for n in kept) - _GAP <= width:
            break
        kept.remove(n)
    widest = max(kept, key=lambda n: widths[n])
    excess = max(0, sum(widths[n] for n in kept) - _GAP - width)
    widths[widest] = max(widths[widest] - excess, min(widths[widest], _READABLE))
    return [(columns[n], widths[n] - _GAP) for n in kept]


def _cells(columns: Sequence[Column], rows: Sequence[dict[str, Any]], *, short: bool = False) -> "list[list[Text]]":
    """`short`: shorten IDs as on a terminal."""
    return [[_clean(column.of(row))[: column.digits if short else None] for column in columns] for row in rows]


def _clean(value: "str | int | Text") -> "Text":
    if isinstance(value, str | int):
        return styled(printable(str(value)).replace("\n", " "))
    return value  # our own text
