"""A short campaign: `make failovers` plays long ones."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests.chaos.failovers import Fault, campaign
from tests.conftest import needs, needs_root


def test_nothing_admitted_is_lost_or_done_twice_when_the_primary_or_a_front_end_dies() -> None:
    for program in ("redis-server", "openssl", "haproxy", "ip"):
        needs(program)
    needs_root()
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))  # a short path: sockets are below it
    summary = asyncio.run(campaign(folder, faults=[Fault.SPLIT], say=lambda _: None))
    assert summary.violations == [], f"{summary.text()}\nkept for inspection: {folder}"
    assert (summary.faults.total(), summary.front_ends_killed) == (1, 2)
    shutil.rmtree(folder)
