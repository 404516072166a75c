"""A short campaign: `make chaos` plays a long one."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests.chaos.__main__ import campaign
from tests.conftest import needs

KILLS, SEED = 15, 20260


def test_nothing_is_lost_or_stuck_whatever_is_killed() -> None:
    for program in ("redis-server", "qemu-system-x86_64", "qemu-img", "qemu-io", "setpriv"):
        needs(program)
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))  # short, for the sockets' sake
    summary = asyncio.run(campaign(folder, kills=KILLS, seed=SEED, sabotage="", quiet=True))
    assert summary.violations == [], f"{summary.text()}\nleft for a look: {folder}"
    assert sum(summary.kills.values()) == KILLS
    shutil.rmtree(folder)
