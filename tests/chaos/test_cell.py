"""A short campaign: `make cell` plays long ones."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests.conftest import needs, needs_module, needs_root
from tests.libvirtd import PROGRAMS

needs_module("libvirt")

from tests.chaos.cell import Event, campaign  # noqa: E402 - only where there is a libvirt

EVENTS = (Event.APART, Event.MIGRATION, Event.DRAIN, Event.UPGRADE)


def test_the_dashboard_shows_the_real_machines_whatever_happens_to_nodes() -> None:
    for program in (*PROGRAMS, "redis-server", "openssl", "haproxy", "ip", "virsh"):
        needs(program)
    needs_root()
    folder = Path(tempfile.mkdtemp(prefix="many-", dir="/tmp"))  # a short path: sockets are below it
    summary = asyncio.run(campaign(folder, events=EVENTS, seed=3, guests_each=1, say=lambda _: None))
    assert summary.violations == [], f"{summary.text()}\nkept for inspection: {folder}"
    assert summary.events.total() == len(EVENTS)
    shutil.rmtree(folder)
