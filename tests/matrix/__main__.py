"""Runs the tests with other versions than those of the lock and of this machine, and writes docs/versions.md.

ONLY="valkey-9 redis-py-8" runs these rows; T="tests/security" runs these tests instead of the row's own, T=store those
of `make newest`. PYTHON=python3.12 runs the row of this interpreter. `files` compares the page's table of servers that
load each other's files (files.py). A row's output and programs stay in .matrix. Exits with 1 if a test failed.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.matrix import files, table
from tests.matrix.servers import SERVERS

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".matrix"
ON_A_SERVER = (
    *("tests/unit/test_connection.py", "tests/integration", "tests/security", "tests/compat", "tests/fuzz"),
    *("tests/chaos/test_failovers.py", "tests/chaos/test_chaos.py"),
)
ON_A_REDIS_PY = ("tests/unit", "tests/integration", "tests/security", "tests/compat", "tests/chaos/test_failovers.py")
ON_DEBIAN = (
    *("tests/unit", "tests/contract", "tests/integration", "tests/security", "tests/compat", "tests/acceptance"),
    *("tests/backups", "tests/browser", "tests/chaos", "tests/fuzz"),
)
ON_A_PYTHON = ("tests/unit", "tests/contract", "tests/integration", "tests/security", "tests/compat")
PYTHONS = ("python3.11", "python3.12", "python3.13")
REDIS_PY, DEBIAN_13 = "redis-py-8", "debian-13"
FILES = "files"
ROWS = (*SERVERS, REDIS_PY, *PYTHONS, DEBIAN_13, FILES)


@dataclass(frozen=True, kw_only=True)
class Row:
    """`root`: the path of the checkout in the command's view."""

    tests: tuple[str, ...]
    command: tuple[str, ...]
    settings: Mapping[str, str]
    root: Path = ROOT


def main() -> None:
    wanted, python = os.environ.get("ONLY", "").split(), os.environ.get("MATRIX_PYTHON", "")
    rows = [Path(python).name] if python and not wanted else wanted or ROWS
    if unknown := set(rows) - {*ROWS, Path(python).name}:
        sys.exit(f"no such row: {', '.join(sorted(unknown))}; there are: {', '.join(ROWS)}")
    CACHE.mkdir(exist_ok=True)
    failed = [row for row in rows if not _holds(row, python)]
    sys.exit(f"not without a failure: {', '.join(failed)}" if failed else 0)


def _holds(row: str, python: str) -> bool:
    print(f"\n== {row}", flush=True)
    if row == FILES:
        return not [print(line) for line in files.differences(CACHE)]
    log = CACHE / f"{row}.log"
    try:
        prepared = _prepared(row, python)
        junit = prepared.root / ".matrix" / f"{row}.xml"
        junit.parent.mkdir(exist_ok=True)
        junit.unlink(missing_ok=True)
        asked = os.environ.get("T", "")
        tests = os.environ["STORE"].split() if asked == "store" else asked.split() or prepared.tests
        name = junit.relative_to(prepared.root)
        pytest = ["-m", "pytest", "-p", "no:cacheprovider", f"-n{_workers()}", f"--junitxml={name}", *tests]
        with log.open("w") as output:
            subprocess.run(
                [*prepared.command, *pytest],
                cwd=ROOT,
                env={**os.environ, **prepared.settings},
                stdout=output,
                stderr=output,
                check=False,
            )
        result = table.read(row, asked or "all", log.read_text(), junit)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"{error}; {log}")
        return False
    table.write(result)
    print(f"{result.line}\n{log}")
    return not result.failed


def _prepared(row: str, python: str) -> Row:
    here = (*_reaping(sys.executable), sys.executable)
    if row in SERVERS:
        return Row(tests=ON_A_SERVER, command=here, settings={"REDIS_SERVER": SERVERS[row](CACHE)})
    if row == REDIS_PY:
        return Row(tests=ON_A_REDIS_PY, command=here, settings={"PYTHONPATH": f"{sys.prefix}-newest"})
    if row == DEBIAN_13:
        root, chroot = CACHE / row, str(Path(__file__).with_name("debian.sh"))
        subprocess.run([chroot, root, "trixie"], check=True)
        inside = (chroot, str(root), "run", *_reaping(".venv/bin/python"), ".venv/bin/python")
        return Row(tests=ON_DEBIAN, command=inside, settings={}, root=root / "srv" / "checkout")
    venv = f"{sys.prefix}-{row}"
    plain = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "PYTHON"}}
    setup = ["make", "setup-tests", f"VENV={venv}", f"PYTHON={python or row}"]
    subprocess.run(setup, cwd=ROOT, env=plain, check=True)
    program = f"{venv}/bin/python"
    return Row(tests=ON_A_PYTHON, command=(*_reaping(program), program), settings={})


def _reaping(program: str) -> tuple[str, ...]:
    return (program, "-m", "deploy.lab.reaping")


def _workers() -> str:
    return os.environ.get("WORKERS") or str(2 * (os.cpu_count() or 1))


if __name__ == "__main__":
    main()
