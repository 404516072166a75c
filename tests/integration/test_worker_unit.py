"""What the worker does within the limits of its own systemd unit."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import needs, needs_module, needs_root
from tests.worker_unit import with_its_capabilities
from worker.lease import HypervisorLock

NOBODY = 65534
OPENED_BY_OTHERS = """
import sys
from drivers.base import InvalidState
from drivers.kvm.disks_xml import FileDisk
from drivers.kvm.readiness import refuse_other_files
try:
    refuse_other_files([FileDisk(target="vda", path=sys.argv[1])])
except InvalidState as error:
    print(error)
else:
    print("as opened")
"""
TAKEN = """
import sys
from pathlib import Path
from worker.lease import HypervisorLock, NodeTaken
try:
    HypervisorLock(Path(sys.argv[1])).take(orphan_seconds=0)
except NodeTaken as taken:
    print(taken)
"""


@pytest.fixture(autouse=True)
def _root_and_setpriv() -> None:
    needs_root()
    needs("setpriv")


def confined(code: str, *arguments: str | Path) -> str:
    """The output of the program, run with the capabilities of the worker's unit."""
    command = [*with_its_capabilities(), sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def opened_by(user: int, path: Path) -> Iterator[None]:
    """Another process has the file open, without the locks of QEMU."""
    drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"] if user else []
    with path.open("r+b") as file, subprocess.Popen([*drop, "cat"], stdin=subprocess.PIPE, stdout=file) as holder:
        assert holder.stdin is not None
        yield
        holder.stdin.close()


@pytest.mark.parametrize("user", [0, NOBODY], ids=["root", "another user"])
def test_a_disk_without_locks_is_found_among_the_files_of_its_qemu(tmp_path: Path, user: int) -> None:
    """Libvirt runs QEMU as a user of its own. As root, QEMU may have capabilities that the worker lacks."""
    needs_module("libvirt")
    disk, other = tmp_path / "disk", tmp_path / "other"
    for path in (disk, other):
        path.touch()
    with opened_by(user, disk):
        assert confined(OPENED_BY_OTHERS, disk) == "as opened"
        assert confined(OPENED_BY_OTHERS, other) == "the file of disk vda is not the one that the running server uses"


def test_another_worker_with_more_capabilities_is_noticed(tmp_path: Path) -> None:
    """One that was started by hand, as root."""
    lock = HypervisorLock(tmp_path)
    lock.take()
    try:
        assert f"held by pid {os.getpid()}: this node already has a worker" in confined(TAKEN, tmp_path)
    finally:
        lock.release()
