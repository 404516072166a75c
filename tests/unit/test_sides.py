"""Each side's programs run with the packages of its lock, and no side installs what only the other needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.packages.lock import pinned

LOCK = Path(__file__).parents[2] / "deploy" / "lock"
# Imports a program where only the named distributions can be found, and ours.
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
__import__(program, fromlist=["main"]).main()
"""
PROGRAMS = [
    ("front-end", "api.main"),
    ("front-end", "api.gateway.main"),
    ("front-end", "api.cli.main"),
    ("cli", "api.cli.main"),
    ("node", "worker.main"),
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
