"""Manual pages, from the same texts as the help: `python -m api.cli.man FOLDER` writes one for the program and one for
each of its commands."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from api.cli.connection import PROGRAM
from api.cli.exits import Exit
from api.cli.main import app

_ALSO = "SEE ALSO"


def pages() -> dict[str, str]:
    """The text of each page, by file name."""
    root = typer.main.get_command(app)
    return dict(_pages_of(PROGRAM, root, root.make_context(PROGRAM, [], resilient_parsing=True)))


def _pages_of(title: str, command: Any, context: Any) -> Iterator[tuple[str, str]]:
    yield f"{title}.1", _page(title, command, context)
    for name, inner in getattr(command, "commands", {}).items():
        own = inner.make_context(name, [], parent=context, resilient_parsing=True)
        yield from _pages_of(f"{title}-{name}", inner, own)


def _page(title: str, command: Any, context: Any) -> str:
    spoken, *rest = (command.help or "").replace("\b\n", "").split("\n\n")
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [
        f'.TH "{title.upper()}" "1" "" "{PROGRAM}" "User commands"',
        _section("NAME", f"{_text(title)} \\- {_text(' '.join(spoken.split()).rstrip('.'))}"),
        _section("SYNOPSIS", f".B {_text(context.command_path)}\n{_text(usage)}"),
    ]
    if text := "\n.PP\n".join(_text(" ".join(part.split())) for part in (spoken, *rest)):
        parts.append(_section("DESCRIPTION", text))
    records = [found for param in command.get_params(context) if (found := _help(param, context))]
    if records:
        parts.append(_section("OPTIONS AND ARGUMENTS", _items(records)))
    if inner := getattr(command, "commands", None):
        listed = [(name, one.get_short_help_str(500)) for name, one in inner.items()]
        parts.append(_section("COMMANDS", _items(listed)))
        also = ", ".join(f".BR {_text(f'{title}-{name}')} (1)" for name in inner)
        parts.append(_section(_ALSO, also.replace(", .BR", ",\n.BR")))
    if context.parent is None:
        parts.append(_section("EXIT STATUS", _items([(str(code.value), code.meaning) for code in Exit])))
    else:
        parts.append(_section(_ALSO, f".BR {PROGRAM} (1)") if not inner else "")
    return "\n".join(filter(None, parts)) + "\n"


def _help(param: Any, context: Any) -> tuple[str, str] | None:
    record = param.get_help_record(context)
    if record is not None:
        return str(record[0]), str(record[1])
    return (param.make_metavar(context), param.help or "") if param.param_type_name == "argument" else None


def _items(items: list[tuple[str, str]]) -> str:
    return "\n".join(f".TP\n.B {_text(name)}\n{_text(' '.join(text.split())) or '-'}" for name, text in items)


def _section(name: str, text: str) -> str:
    return f".SH {name}\n{text}"


def _text(text: str) -> str:
    """Escape what roff would read as a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.\'])", r"\\&\1", escaped, flags=re.MULTILINE)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
