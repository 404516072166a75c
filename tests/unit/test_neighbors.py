"""The check of other domains' files when some storage is slow."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers.base import HypervisorUnavailable, UnsupportedServer
from tests.conftest import needs_module

needs_module("libvirt")

from drivers.kvm import neighbors, sharing  # noqa: E402 - only where there is a libvirt
from drivers.kvm.disks_xml import FileDisk  # noqa: E402 - only where there is a libvirt
from drivers.kvm.places import SYSTEM  # noqa: E402 - only where there is a libvirt

OURS, THEIRS = "uuid-1", "uuid-2"


class Slow:
    """A connection whose check of all files ends when the test lets it."""

    def __init__(self) -> None:
        self.looks: list[asyncio.Future[sharing.Uses]] = []
        self.begun: asyncio.Queue[asyncio.Future[sharing.Uses]] = asyncio.Queue()

    async def call(self, _work: Callable[..., Any]) -> sharing.Uses:
        self.looks.append(asyncio.get_running_loop().create_future())
        self.begun.put_nowait(self.looks[-1])
        return await self.looks[-1]

    async def on(self, _server_id: int, _work: Callable[..., Any]) -> str:
        return OURS


@pytest.fixture
def disk(tmp_path: Path) -> FileDisk:
    (tmp_path / "vda").write_bytes(b"")
    return FileDisk(target="vda", path=str(tmp_path / "vda"))


def used_by_others(disk: FileDisk) -> sharing.Uses:
    status = Path(disk.path).stat()
    return {THEIRS: frozenset({(sharing.Use.DISK, (status.st_dev, status.st_ino))})}


def patient_for(seconds: float, slow: Slow) -> neighbors.Neighbors:
    return neighbors.Neighbors(slow, SYSTEM, look_seconds=seconds)  # type: ignore[arg-type] # all that it asks


async def test_all_waiting_callers_share_one_scan(disk: FileDisk) -> None:
    slow = Slow()
    found = patient_for(60, slow)
    waiting = [asyncio.ensure_future(found.refuse_shared(1, [disk])) for _ in range(3)]
    (await slow.begun.get()).set_result(used_by_others(disk))
    for each in waiting:
        with pytest.raises(UnsupportedServer, match=r"^disk vda cannot be snapshotted: it is also a disk of another"):
            await each
    assert len(slow.looks) == 1


async def test_unresponsive_storage_blocks_nobody_and_costs_one_scan(disk: FileDisk) -> None:
    slow = Slow()
    found = patient_for(0.0, slow)
    for _ in range(3):
        await found.refuse_shared(1, [disk])
        with pytest.raises(HypervisorUnavailable):
            await found.shared_disks()
    assert len(slow.looks) == 1
    slow.looks[0].set_result({})


async def test_the_result_of_a_late_scan_is_not_used(disk: FileDisk) -> None:
    slow = Slow()
    found = patient_for(0.0, slow)
    await found.refuse_shared(1, [disk])
    slow.looks[0].set_result(used_by_others(disk))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await found.refuse_shared(1, [disk])
    assert len(slow.looks) == 2
    slow.looks[1].set_exception(HypervisorUnavailable("gone"))


async def test_a_failed_scan_is_repeated(disk: FileDisk) -> None:
    slow = Slow()
    found = patient_for(60, slow)
    for _ in range(2):
        asking = asyncio.ensure_future(found.refuse_shared(1, [disk]))
        (await slow.begun.get()).set_exception(HypervisorUnavailable("gone"))
        with pytest.raises(HypervisorUnavailable):
            await asking
