"""The Lua scripts, each atomic in Redis, and the modules that they include.

The first lines of a script or of a module may name modules of `shared/`: `-- include: clock, records`. Of these, a
script carries only the definitions that it uses, because Redis creates each of them in every run. The module
`states` is generated from `worker/store/model.py` and `worker/store/bounds.py`, so that states and bounds are defined
once.

A script with the line `-- Only reads.` cannot write; Redis enforces that. One with `-- Only reads and notes.` writes
only optional data, with the module `notes`. Both work while Redis refuses writes, and can be repeated.

A script with the line `-- Also when full.` frees memory, or ends what was begun: it is run also while Redis has no
memory left for anything else. What it adds is bounded by what Redis has already.

An HTTP call runs as one script, `entered`: it checks the caller and the rate limit, runs the call, and writes the audit
entry. A script of a node runs within `nodes/enter`, which checks the node's credential.

Each script runs inside `shared/guard.lua`, and Redis's reply is {unreadable records: {{key, reason}, ...}, answer}.
"""

import json
import re
from functools import cache
from importlib.resources import files
from itertools import takewhile

from worker.store.bounds import FULL_FROM, KEPT_WHEN_SHORT, Bounds
from worker.store.model import MAY_FOLLOW, SNAPSHOTS_PER_SERVER, SNAPSHOTS_PER_SERVER_MOST, STEPS, JobKind

GUARD = "shared/guard"
ENTER = "access/enter"
ENTER_AS_NODE = "nodes/enter"
_ASK = "local ask = cjson.decode(ARGV[1])\n"
_INCLUDE = "-- include: "
_DEFINITIONS = re.compile(r"^(?=local |function )", re.MULTILINE)
_DEFINED = re.compile(r"(?:local )?function (\w+)|local ([\w, ]+)")
_COMMENTS_AND_STRINGS = re.compile(r"--.*|'[^'\n]*'")
_NAMES = re.compile(r"(?<![\w.:])[A-Za-z_]\w*")
_LINE = re.compile(r"user_script:(\d+):")
_ONLY_READS = re.compile(r"^-- Only reads( and notes)?\.$", re.MULTILINE)
_ALSO_WHEN_FULL = re.compile(r"^-- Also when full\.$", re.MULTILINE)
# Read when the program starts: after an upgrade of its package, the files are those of another release.
_FILES = {
    f"{folder.name}/{file.name.removesuffix('.lua')}": file.read_text()
    for folder in files(__package__).iterdir()
    if folder.is_dir()
    for file in folder.iterdir()
    if file.name.endswith(".lua")
}


@cache
def text(name: str) -> str:
    """The complete text of the script `name` ("customers/admit") for Redis."""
    script = source(name)
    found = _ONLY_READS.search(script)
    flags = "#!lua flags=no-writes\n" if found and not found[1] else ""
    is_of_node = name.startswith("nodes/")
    return flags + (_within(ENTER_AS_NODE, script) if is_of_node else _guarded(_modules(script) + script))


@cache
def entered(name: str) -> str:
    """The script `name` as part of `access/enter`, which checks its caller first."""
    return _within(ENTER, source(name))


@cache
def when_full(name: str) -> str:
    """The script `name`, as a full Redis runs it. Only then: with these flags, Redis would also refuse it before its
    first write while it accepts no writes for another reason."""
    return f"#!lua flags=allow-oom\n{text(name)}"


def _within(name: str, script: str) -> str:
    """The script as the function `body` of the script `name`."""
    outer = source(name)
    body = f"local function body(ask)\n{script.replace(_ASK, '')}end\n"
    return _guarded(_modules(script, outer) + body + outer)


def _guarded(lua: str) -> str:
    return f"{source(GUARD)}local function script()\n{lua}end\nreturn {{left_out, script()}}\n"


def line_of(lua: str, message: str) -> str:
    """The line of the script's text that Redis's message names ("user_script:631: ..."); empty if it names none."""
    found, lines = _LINE.search(message), lua.splitlines()
    return lines[int(found[1]) - 1].strip() if found and int(found[1]) <= len(lines) else ""


@cache
def only_reads(name: str) -> bool:
    """Whether the script `name` writes nothing except notes."""
    return _ONLY_READS.search(source(name)) is not None


@cache
def runs_when_full(name: str) -> bool:
    """Whether the script `name` is run also while Redis is full."""
    return _ALSO_WHEN_FULL.search(source(name)) is not None


def linked(script: str) -> str:
    """A script with the guard and its modules, for tests and benchmarks that have Lua of their own.

    Its answer leaves out unreadable records.
    """
    return source(GUARD) + _modules(script) + script


def _modules(*scripts: str) -> str:
    """What the scripts use of the modules that they include, each definition once and after its own dependencies."""
    modules: dict[str, str] = {}

    def add(module: str) -> None:
        if module not in modules:
            if f"shared/{module}" not in _FILES and module != "states":
                raise KeyError(f"{module}: no such module, but a script or a module includes it")
            lua = source(f"shared/{module}")
            for needed in includes(lua):
                add(needed)
            modules[module] = lua

    for script in scripts:
        for module in includes(script):
            add(module)
    return _used("".join(modules.values()), by="".join(scripts))


def _used(modules: str, *, by: str) -> str:
    """The definitions that the script `by` uses, directly or through others, without the comments between them."""
    definitions = _DEFINITIONS.split(re.sub(r"^(--.*)?\n", "", modules, flags=re.MULTILINE))
    needed, names = set[int](), _names(by)
    while found := {n for n, lua in enumerate(definitions) if n not in needed and _defined(lua) & names}:
        needed |= found
        names = names.union(*(_names(definitions[n]) for n in found))
    return "".join(definitions[n] for n in sorted(needed))


def _names(lua: str) -> set[str]:
    return set(_NAMES.findall(_COMMENTS_AND_STRINGS.sub("", lua)))


def _defined(definition: str) -> set[str]:
    found = _DEFINED.match(definition)
    return set((found[1] or found[2]).strip().split(", ")) if found else set()


def source(name: str) -> str:
    """The source of one script or module."""
    if name == "shared/states":
        table = {state: dict.fromkeys(followers, True) for state, followers in MAY_FOLLOW.items()}
        only_look = {kind: True for kind in JobKind if kind.only_looks}
        overwrites = {kind: True for kind in JobKind if kind.overwrites}
        steps_of = {kind: dict.fromkeys(steps, True) for kind, steps in STEPS.items()}
        tables: dict[str, object] = {"MAY_FOLLOW": table, "ONLY_LOOKS": only_look, "STEPS_OF": steps_of}
        tables |= {
            "KINDS": dict.fromkeys(JobKind, True),
            "OVERWRITES": overwrites,
            "BOUNDS": Bounds().model_dump(),
            "FULL_FROM": FULL_FROM,
            "KEPT_WHEN_SHORT": KEPT_WHEN_SHORT,
            "SNAPSHOTS_PER_SERVER": SNAPSHOTS_PER_SERVER,
            "SNAPSHOTS_PER_SERVER_MOST": SNAPSHOTS_PER_SERVER_MOST,
        }
        return "".join(f"local {name} = {_lua(held)}\n" for name, held in tables.items())
    return _FILES[name]


def _lua(held: object) -> str:
    """The value as a Lua literal, which Redis compiles once instead of parsing it in each run."""
    if isinstance(held, dict):
        return f"{{{', '.join(f'[{_lua(str(key))}] = {_lua(value)}' for key, value in held.items())}}}"
    return json.dumps(held)


def includes(lua: str) -> list[str]:
    """The modules that the first lines name."""
    lines = takewhile(lambda line: line.startswith(_INCLUDE), lua.splitlines())
    return [module for line in lines for module in line.removeprefix(_INCLUDE).split(", ")]
