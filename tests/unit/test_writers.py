"""The column "Written by" of `worker/store/KEYS.md` names each Lua file that writes to a key, as far as the text of the
file shows the key: as literals and variables in the call, or in a local variable."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

STORE = Path("worker/store")
FILES = sorted(path for path in STORE.glob("*/*.lua") if path.name != "guard.lua")
STATEMENT = re.compile(
    r"^\s*local (?P<name>\w+) = (?P<value>'.*)$"
    r"|\bfor (?P<variables>[\w, ]+) in\b|\bfunction [\w.]*\((?P<parameters>[\w, ]*)\)"  # names of several keys
    # removals are in another column
    r"|(?:redis\.p?call\('(?:HSET|HSETNX|HINCRBY|SADD|ZADD|LPUSH|RPUSH|SET|XADD)', |(?<![\w.])write\()(?P<key>[^,]+),",
    re.MULTILINE,
)


def writers() -> dict[str, set[str]]:
    """The writers of each key: its pattern with `*` for each placeholder."""
    lines = (STORE / "KEYS.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {re.sub("<[a-z0-9]+>", "*", key.strip("`")): set(re.findall(r"[a-z_/]+", by)) for key, _, _, by, *_ in cells}


ROWS = writers()


def pattern(key: str, known: dict[str, str]) -> str:
    """The pattern of a Lua expression."""
    parts = [part.strip() for part in key.split("..")]
    return "".join(part[1:-1] if part.startswith("'") else known.get(part, "*") for part in parts)


def written(lua: str) -> Iterator[str]:
    """The patterns to which a Lua file writes; an unknown part is `*`."""
    known: dict[str, str] = {}
    for found in STATEMENT.finditer(re.sub(r"--.*", "", lua)):
        if found["name"]:
            known[found["name"]] = pattern(found["value"], known)
        elif found["key"]:
            yield pattern(found["key"], known)
        else:
            for name in (found["variables"] or found["parameters"] or "").split(", "):
                known.pop(name, None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_keys_md_names_a_lua_file_at_each_key_to_which_it_writes(path: Path) -> None:
    name = path.stem if path.parent.name == "shared" else f"{path.parent.name}/{path.stem}"
    assert {key for key in written(path.read_text()) if key in ROWS and name not in ROWS[key]} == set()


def test_the_key_is_known_in_most_files() -> None:
    known = {path for path in FILES for key in written(path.read_text()) if key in ROWS}
    assert len(known) > len(FILES) / 3
