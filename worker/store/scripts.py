"""The Lua scripts, each atomic in Redis, and the modules that they include.

The first line of a script or of a module may name modules of `shared/`: `-- include: clock, records`. The module
`states` is generated from `worker/store/model.py`, so that states, kinds and steps are defined once.

A script with the line `-- Only reads.` writes nothing but the list of unreadable records, by the guard. One with
`-- Only reads and notes.` writes only what it can do without, by the module `notes`. Both work while Redis refuses
writes, and may be run again. Neither has Redis's flag `no-writes`: it would keep the guard from telling operators.
"""

import json
import re
from functools import cache
from importlib.resources import files

from worker.store.model import MAY_FOLLOW, STEPS, JobKind

_INCLUDE = re.compile(r"-- include: ([a-z_, ]+)\n")
_ONLY_READS = re.compile(r"^-- Only reads(?: and notes)?\.$", re.MULTILINE)


@cache
def text(name: str) -> str:
    """The script `name` ("customers/admit"), preceded by its modules."""
    return linked(source(name))


@cache
def only_reads(name: str) -> bool:
    """Whether the script `name` changes nothing but its notes."""
    return _ONLY_READS.search(source(name)) is not None


def linked(script: str) -> str:
    """A script, preceded by the guard against bad records and by the modules that its first line includes, each once
    and after those that it needs."""
    modules: dict[str, str] = {}

    def add(module: str) -> None:
        if module not in modules:
            lua = source(f"shared/{module}")
            for needed in includes(lua):
                add(needed)
            modules[module] = lua

    for module in includes(script):
        add(module)
    return source("shared/guard") + "".join(modules.values()) + script


def source(name: str) -> str:
    """The source of one script or module."""
    if name == "shared/states":
        table = {state: dict.fromkeys(followers, True) for state, followers in MAY_FOLLOW.items()}
        only_look = {kind: True for kind in JobKind if kind.only_looks}
        steps_of = {kind: dict.fromkeys(steps, True) for kind, steps in STEPS.items()}
        tables = {"MAY_FOLLOW": table, "ONLY_LOOKS": only_look, "STEPS_OF": steps_of}
        return "".join(f"local {name} = cjson.decode('{json.dumps(held)}')\n" for name, held in tables.items())
    return (files(__package__) / f"{name}.lua").read_text()


def includes(lua: str) -> list[str]:
    """The modules that the first line names."""
    named = _INCLUDE.match(lua)
    return named[1].split(", ") if named else []
