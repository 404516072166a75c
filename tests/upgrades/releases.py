"""Releases of the service, each run from the files of its commit with the libraries of this checkout."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
FIRST = "0a79ed0"  # before gateways: its nodes connect to Redis
PARTS = ("api", "worker", "drivers")
MODULES = {"api": "api.main", "gateway": "api.gateway.main", "worker": "worker.main"}
ACCOUNTS = "deploy/redis/users.acl"


@dataclass(frozen=True, kw_only=True)
class Release:
    """`tree` has its packages. `accounts`: the rules of each account in its users.acl, without Redis's own account."""

    name: str
    tree: Path
    accounts: Mapping[str, Sequence[str]]

    @property
    def has_gateway(self) -> bool:
        return (self.tree / "api" / "gateway").exists()

    def command(self, program: str, *arguments: str) -> tuple[str, ...]:
        """-P: do not import from the current folder, which has the packages of this checkout."""
        return (sys.executable, "-P", "-c", f"from {MODULES[program]} import main; main()", *arguments)

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": ""}

    def check(self) -> None:
        """Check that its programs import its own packages and not those of this checkout."""
        asked = f"import {', '.join(PARTS)}; print(*(m.__path__[0] for m in ({', '.join(PARTS)})))"
        command = (sys.executable, "-P", "-c", asked)
        said = subprocess.run(
            command, env=os.environ | self.environment, cwd=CHECKOUT, check=True, capture_output=True, text=True
        )
        assert said.stdout.split() == [str(self.tree / part) for part in PARTS], said.stdout


def today() -> Release:
    return Release(name="today", tree=CHECKOUT, accounts=_accounts(CHECKOUT / ACCOUNTS))


def following(folder: Path) -> Release:
    """A simulated next release that needs no new version of any record: this checkout with one more protocol between
    nodes and gateways, a column of the journal, a field of a job's record and a fact of a job."""
    folder.mkdir()
    for part in PARTS:
        shutil.copytree(CHECKOUT / part, folder / part)  # with compiled files and matching times
    for file, (before, after) in CHANGES.items():
        path = folder / file
        text = path.read_text()
        assert text.count(before) == 1, f"{file} has not once: {before}"
        path.write_text(text.replace(before, after))
    return Release(name="following", tree=folder, accounts=today().accounts)


# File -> a text that occurs once, and its replacement in the next release.
CHANGES = {
    "worker/store/nodes/protocol.py": ("PROTOCOLS = frozenset({", "PROTOCOLS = frozenset({1000, "),
    "worker/store/shared/enqueue.lua": ("  job.v, job.state,", "  job.new = 'new'\n  job.v, job.state,"),
    "worker/procedures/work.py": (
        "    was_running: bool = False\n",
        "    was_running: bool = False\n    new: str = 'new'\n",
    ),
    "worker/journal.py": (
        "        _migrate(db, path)\n    except",
        "        _migrate(db, path)\n"
        "        with suppress(sqlite3.OperationalError):\n"
        "            db.execute('ALTER TABLE jobs ADD COLUMN new TEXT')\n    except",
    ),
}


def of_commit(commit: str, folder: Path) -> Release:
    """Raises LookupError if this clone does not have it."""
    packed = subprocess.run(
        ["git", "archive", commit, *PARTS, ACCOUNTS], cwd=CHECKOUT, check=False, capture_output=True
    )
    if packed.returncode:
        raise LookupError(f"no such tag or commit: {commit}: {packed.stderr.decode().strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return Release(name=commit, tree=folder, accounts=_accounts(folder / ACCOUNTS))


def newest_tag() -> str | None:
    """The newest release tag; None if there is none."""
    command = ["git", "tag", "--list", "v*", "--sort=-version:refname"]
    found = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.split()
    return found[0] if found else None


def _accounts(file: Path) -> dict[str, list[str]]:
    """A selector in parentheses is one rule."""
    found = {}
    for line in file.read_text().splitlines():
        (_, name, *rules), *selectors = [part.split() for part in line.split(" (")]
        found[name] = [*rules, *(f"({' '.join(words)}" for words in selectors)]
    return {name: rules for name, rules in found.items() if name != "default"}
