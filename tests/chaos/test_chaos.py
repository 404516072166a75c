"""Short campaigns: `make chaos` plays long ones."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest

from tests import libvirtd
from tests.chaos.__main__ import campaign
from tests.conftest import needs, needs_root


@pytest.mark.parametrize(("wanted", "daemon"), [("4", True), ("steps:5", False)])
def test_nothing_is_lost_or_stuck_whatever_is_killed(wanted: str, daemon: bool) -> None:
    for program in ("redis-server", "qemu-io", *libvirtd.PROGRAMS):
        needs(program)
    if daemon:
        needs_root()
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))  # a short path: sockets are below it
    summary = asyncio.run(campaign(folder, wanted=wanted, seed=20260, daemon=daemon, quiet=True))
    assert summary.violations == [], f"{summary.text()}\nkept for inspection: {folder}"
    assert summary.killed >= 4
    assert summary.claims["publish claim_refused"] > 0, summary.text()
    shutil.rmtree(folder)
