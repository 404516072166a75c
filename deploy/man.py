"""Manual pages, from the same texts as the help: `python -m deploy.man FOLDER PROGRAM...` writes one for each program,
and one for each of its commands."""

import re
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

CLIENT = "vps-snapshots"
MODULES = {  # each has the `app` of its program
    CLIENT: "api.cli.main",
    "vps-snapshots-api": "api.main",
    "vps-snapshots-gateway": "api.gateway.main",
    "vps-snapshots-worker": "worker.main",
}
_ALSO = "SEE ALSO"
_ENDS_OF_SERVICES = (  # those of the client are in api.cli.exits, which is installed with the client only
    ("0", "success, or ended by SIGTERM or SIGINT"),
    ("1", "not done; standard error has the reason"),
    ("2", "wrong usage, or invalid settings"),
)


def pages(program: str) -> dict[str, str]:
    """The text of each page of a program, by file name."""
    root = typer.main.get_command(import_module(MODULES[program]).app)
    context = root.make_context(program, [], resilient_parsing=True)
    return {f"{title}.1": _page(title, command, own) for title, command, own in _all(program, root, context)}


def _all(title: str, command: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    yield title, command, context
    for name, inner in getattr(command, "commands", {}).items():
        own = inner.make_context(name, [], parent=context, resilient_parsing=True)
        yield from _all(f"{title}-{name}", own.command, own)  # which is loaded now


def _page(title: str, command: Any, context: Any) -> str:
    program = context.find_root().info_name
    spoken, *rest = (command.help or "").replace("\b\n", "").split("\n\n")
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [
        f'.TH "{title.upper()}" "1" "" "{program}" "User commands"',
        _section("NAME", f"{_text(title)} \\- {_text(' '.join(spoken.split()).rstrip('.'))}"),
        _section("SYNOPSIS", f".B {_text(context.command_path)}\n{_text(usage)}"),
    ]
    if text := _paragraphs((spoken, *rest)):
        parts.append(_section("DESCRIPTION", text))
    records = [found for param in command.get_params(context) if (found := _help(param, context))]
    if records:
        parts.append(_section("OPTIONS AND ARGUMENTS", _items(records)))
    if command.epilog and program != CLIENT:
        parts.append(_section("SETTINGS", _paragraphs(command.epilog.split("\n\n"))))
    if inner := getattr(command, "commands", None):
        listed = [(name, one.get_short_help_str(500)) for name, one in inner.items()]
        parts.append(_section("COMMANDS", _items(listed)))
        also = ", ".join(f".BR {_text(f'{title}-{name}')} (1)" for name in inner)
        parts.append(_section(_ALSO, also.replace(", .BR", ",\n.BR")))
    if context.parent is None:
        parts.append(_section("EXIT STATUS", _items([*_ends_of(program)])))
    else:
        parts.append(_section(_ALSO, f".BR {program} (1)") if not inner else "")
    return "\n".join(filter(None, parts)) + "\n"


def _ends_of(program: str) -> Iterable[tuple[str, str]]:
    if program != CLIENT:
        return _ENDS_OF_SERVICES
    from api.cli.exits import Exit  # noqa: PLC0415 - a node has only its worker

    return ((str(code.value), code.meaning) for code in Exit)


def _help(param: Any, context: Any) -> tuple[str, str] | None:
    record = param.get_help_record(context)
    if record is not None:
        return str(record[0]), str(record[1])
    return (param.make_metavar(context), param.help or "") if param.param_type_name == "argument" else None


def _paragraphs(parts: Iterable[str]) -> str:
    return "\n.PP\n".join(_text(" ".join(part.split())) for part in parts)


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
    for program in sys.argv[2:]:
        for name, text in pages(program).items():
            (folder / name).write_text(text)


if __name__ == "__main__":
    main()
