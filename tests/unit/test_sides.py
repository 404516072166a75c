"""Each side's programs run with the packages of its lock, and no side installs what only the other one needs."""

import platform
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.packages.lock import pinned, pinned_for

LOCK = Path(__file__).parents[2] / "deploy" / "lock"
# Imports a program with only the named distributions and ours available.
ALONE = """
import sys
from importlib.metadata import packages_distributions

allowed = {*sys.argv[2].split(","), "vps-snapshots"}
hidden = {
    name
    for name, owners in packages_distributions().items()
    if not allowed & {owner.lower().replace("_", "-") for owner in owners}
}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hide())
program, sys.argv[1:] = sys.argv[1], ["--help"]
module = __import__(program, fromlist=["main"])
for command in getattr(module, "COMMANDS", ()):  # of the command line, which imports them when they are called
    command.load()
module.main()
"""
PROGRAMS = [
    ("front-end", "api.main"),
    ("front-end", "api.gateway.main"),
    ("front-end", "api.cli.main"),
    ("cli", "api.cli.main"),
    ("node", "worker.main"),
    *(("simulated", program) for program in ("api.main", "api.gateway.main", "worker.main")),  # `DRIVER=fake make run`
]


@pytest.mark.parametrize(("side", "program"), PROGRAMS)
def test_a_program_needs_no_package_of_another_side(side: str, program: str) -> None:
    names = ",".join(entry.name for entry in pinned(LOCK / f"{side}.txt"))
    done = subprocess.run([sys.executable, "-c", ALONE, program, names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: " in done.stdout


def test_a_node_has_no_http_server_and_a_front_end_no_libvirt() -> None:
    names = {side: {entry.name for entry in pinned(LOCK / f"{side}.txt")} for side in ("front-end", "node", "cli")}
    assert not {"aiohttp", "jinja2"} & names["node"]
    assert "libvirt-python" not in names["front-end"] | names["cli"]
    assert not {"redis", "arq", "pydantic-settings"} & names["cli"]


def test_only_a_node_has_arq() -> None:
    """arq's requirement of redis-py then binds no other program."""
    assert {
        side: "arq" in {entry.name for entry in pinned(LOCK / f"{side}.txt")} for side in ("front-end", "node")
    } == {
        "front-end": False,
        "node": True,
    }


@pytest.mark.parametrize("side", ["front-end", "node", "cli", "simulated"])
def test_pip_has_nothing_against_a_locked_side(side: str) -> None:
    """`pip check` before anything is installed: each package finds the versions that it requires."""
    here = {"python": platform.python_version(), "machine": platform.machine()}
    locked = {canonicalize_name(entry.name): entry.version for entry in pinned_for(LOCK / f"{side}.txt", **here)}
    extras = ("front-end", "worker") if side == "simulated" else (side,)
    ours = [one for extra in extras for one in _wanted("vps-snapshots", extra)]
    wanted = [*ours, *(one for name in locked for one in _wanted(name))]
    against = [
        f"{one} is not {locked.get(canonicalize_name(one.name))}"
        for one in wanted
        if not one.specifier.contains(locked.get(canonicalize_name(one.name), "0"))
    ]
    assert len(wanted) > len(locked) - 1
    assert against == []


def _wanted(name: str, extra: str = "") -> list[Requirement]:
    """The requirements of a package, except those on itself."""
    stated = [Requirement(line) for line in requires(name) or ()]
    return [
        one
        for one in stated
        if canonicalize_name(one.name) != name and (one.marker is None or one.marker.evaluate({"extra": extra}))
    ]
