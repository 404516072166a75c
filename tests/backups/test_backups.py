"""A short campaign: `make backups-beside` plays long ones."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests import libvirtd
from tests.backups import tool
from tests.backups.__main__ import campaign
from tests.conftest import needs, needs_root


def test_backups_beside_snapshots_are_correct_or_reported_broken() -> None:
    for program in ("redis-server", "qemu-io", "qemu-nbd", *libvirtd.PROGRAMS, *tool.PROGRAMS):
        needs(program)
    needs_root()
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))  # a short path: sockets are below it
    tally = asyncio.run(campaign(folder, rounds=6, seed=20261, quiet=True))
    assert tally.violations == [], f"{tally.text()}\nkept for inspection: {folder}"
    assert tally.compared >= 4
    shutil.rmtree(folder)
