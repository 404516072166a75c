"""A short campaign of migrations: `make migrations` plays long ones."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests.conftest import needs, needs_module, needs_root
from tests.libvirtd import PROGRAMS

needs_module("libvirt")

from tests.chaos.migrations import campaign  # noqa: E402 - only where there is a libvirt


def test_a_server_that_moves_is_whole_on_one_node_whatever_is_killed() -> None:
    for program in (*PROGRAMS, "redis-server", "virsh", "qemu-io"):
        needs(program)
    needs_root()
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))  # a short path: sockets are below it
    summary = asyncio.run(campaign(folder, kills=2, seed=4, quiet=True))
    assert summary.violations == [], f"{summary.text()}\nkept for inspection: {folder}"
    shutil.rmtree(folder)
