"""The lab of the tests and the demo: a real guest with an embedded libvirt."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.lab.domain import disk
from deploy.lab.lab import Lab, make_disk
from tests.conftest import needs, needs_module


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    for program in ("qemu-system-x86_64", "qemu-img", "busybox", "cpio"):
        needs(program)
    needs_module("libvirt")
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))  # a socket's path is limited to 107 characters
    lab = Lab(folder)
    try:
        yield lab
        await lab.remove_all()
    finally:
        shutil.rmtree(folder)


async def test_a_guest_counts_its_boots_and_keeps_what_was_written(lab: Lab) -> None:
    disks = [disk(make_disk(lab.disk_path(name))) for name in ("a.qcow2", "b.qcow2")]
    await lab.define(lab.domain_xml("guest", disks))
    console = lab.console("guest")

    await lab.start("guest")
    assert lab.is_on("guest")
    first = await console.ready(after=0)
    assert first.boots == {"vda": 1, "vdb": 1}
    assert first.markers == {"vda": "", "vdb": ""}
    await console.write("hello")

    await lab.shut_down("guest")
    await console.powered_off(after=first.end)
    assert await lab.power("guest") == "off"
    assert not lab.is_on("guest")

    await lab.start("guest")
    second = await console.ready(after=first.end)
    assert second.boots == {"vda": 2, "vdb": 2}
    assert second.markers == {"vda": "hello", "vdb": "hello"}
