"""Failures with real disks during a job: it fails with the reason, leaves nothing behind, and the server is unchanged.

The one server is a QEMU without an operating system. It has three disks, the second on a small file system of its own.
"""

import asyncio
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.lab.domain import Device, disk
from deploy.lab.lab import Lab, make_disk
from tests.acceptance.cell import AcceptanceCell, Server, is_sound, tags
from tests.chaos.halts import Halts
from tests.conftest import RedisServer, needs
from tests.queueing import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVER = 201
STEP_SECONDS = 8


@dataclass(frozen=True, kw_only=True)
class Node:
    cell: AcceptanceCell
    halts: Halts
    server: Server
    cd: Path
    small: Path  # the file system of the second disk
    kept: int  # a snapshot that exists

    async def create(self) -> dict[str, Any]:
        _, job = await self.cell.create(self.server, "never")
        return job

    async def restore(self) -> dict[str, Any]:
        return await self.cell.restore(self.kept)

    def refused(self, job: dict[str, Any], code: str, *words: str) -> None:
        """Check that the job failed for that reason, left nothing behind, and that the server is running."""
        error = job["error"]
        assert (job["state"], error["code"], error["stranded"]) == ("failed", code, False), job
        assert all(word in error["detail"] for word in words), error
        assert self.cell.is_on(self.server)
        customers = [[tag for tag in tags(path) if "safety" not in tag] for path in self.server.disks if path.exists()]
        assert all(held == [f"vps-{self.kept}"] for held in customers), customers

    async def is_well(self) -> bool:
        return bool((await self.restore())["state"] == "completed")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    for program in ("redis-server", "qemu-system-x86_64", "qemu-img", "qemu-io", "setpriv", "mount"):
        needs(program)
    with tempfile.TemporaryDirectory(prefix="vps-", dir="/tmp") as name:  # a short path: sockets are below it
        yield Path(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(folder: Path) -> AsyncIterator[Node]:
    (folder / "r").mkdir()
    small = folder / "small"
    small.mkdir()
    redis = RedisServer(folder / "r")
    redis.start()
    halts = Halts(folder)
    programs = halts.put_in_front()
    overrides = {"GRACE_SECONDS": "0.1", "STEP_SECONDS": str(STEP_SECONDS), "FREE_FLOOR_MB": "0", "START_SECONDS": "3"}
    cell = AcceptanceCell(
        folder=folder,
        redis=redis,
        lab=Lab(folder / "l"),
        overrides={
            "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            **{f"VPS_SNAPSHOTS_{name}": value for name, value in overrides.items()},
        },
    )
    with mounted("-t", "tmpfs", "-o", "size=16m", "tmpfs", small):
        try:
            disks = [cell.lab.disk_path("first"), small / "second", cell.lab.disk_path("third")]
            devices = [disk(make_disk(path, "8M")) for path in disks]
            cd = make_disk(cell.lab.disk_path("cd"), format="raw")
            devices.append(Device(path=cd, format="raw", cdrom=True, readonly=True))
            server = await cell.add(SERVER, devices, guest=False)
            await cell.start()
            kept, job = await cell.create(server, "kept")
            assert job["state"] == "completed", job
            await written_since(cell, server)
            yield Node(cell=cell, halts=halts, server=server, cd=cd, small=small, kept=kept)
        finally:
            await cell.stop()


async def written_since(cell: AcceptanceCell, server: Server) -> None:
    """Write to each disk, as a guest would: a disk that equals the snapshot needs no revert."""
    assert cell.worker is not None
    await cell.worker.stop()
    await cell.lab.cut_power(server.name)
    for path in server.disks:
        writing = ["qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 64k", str(path)]
        await asyncio.to_thread(subprocess.check_call, writing)
    await cell.lab.start(server.name)
    await cell.start_worker()


@contextmanager
def mounted(*how: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *how], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", how[-1]], check=True)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    with mounted("--bind", path, path):
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        yield


@contextmanager
def full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def away(path: Path) -> Iterator[None]:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(path)


@contextmanager
def marked_corrupt(path: Path) -> Iterator[None]:
    with path.open("r+b") as file:
        for features in (1 << 1, 0):
            file.seek(72)
            file.write(struct.pack(">Q", features))
            file.flush()
            if features:
                yield


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_create_that_one_of_three_disks_refuses_leaves_no_trace(node: Node, which: int) -> None:
    node.halts.refuse("-c", node.server.disks[which])
    node.refused(await node.create(), "disk_failed", f"vd{'abc'[which]}")


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_restore_that_one_of_three_disks_refuses_brings_all_back(node: Node, which: int) -> None:
    node.halts.refuse("-a", node.server.disks[which])
    node.refused(await node.restore(), "disk_failed", f"vd{'abc'[which]}")


async def test_a_disk_that_is_full_refuses_and_keeps_its_snapshots(node: Node) -> None:
    with full(node.small):
        node.refused(await node.create(), "disk_failed", "vdb")
        node.refused(await node.restore(), "disk_failed", "vdb")  # there is no room for the safety snapshot
    assert await node.is_well()


async def test_a_file_that_became_read_only_is_named_before_the_server_is_stopped(node: Node) -> None:
    with read_only(node.server.disks[1]):
        for job in (await node.create(), await node.restore()):
            node.refused(job, "unsupported_server", "vdb", "written")
            assert job["downtime_seconds"] is None
    assert await node.is_well()


async def test_a_file_that_vanished_under_a_running_server_is_named_before_it_is_stopped(node: Node) -> None:
    with away(node.server.disks[2]):
        for job in (await node.create(), await node.restore()):
            node.refused(job, "unsupported_server", "vdc", "missing")
            assert job["downtime_seconds"] is None
    assert await node.is_well()


async def test_an_image_that_is_marked_corrupt_is_named_before_the_server_is_stopped(node: Node) -> None:
    with marked_corrupt(node.server.disks[0]):
        for job in (await node.create(), await node.restore()):
            node.refused(job, "disk_corrupt", "vda")
            assert job["downtime_seconds"] is None
    assert await node.is_well()


async def test_a_qemu_img_that_hangs_is_given_up_and_killed(node: Node) -> None:
    node.halts.hang("-c")
    node.refused(await node.create(), "step_timeout", f"{STEP_SECONDS} seconds")


async def test_a_server_that_does_not_start_again_is_stranded_loudly_and_its_snapshots_are_good(node: Node) -> None:
    """Must run last: at its end, everything is checked with the server off."""
    creating = asyncio.create_task(node.cell.create(node.server, "good"))
    # Removed only now: a server that could not start again is not stopped.
    await until(lambda: not node.cell.is_on(node.server))
    with away(node.cd):
        snapshot_id, job = await creating
    error: Any = job["error"]
    assert (job["state"], error["code"], error["stranded"]) == ("failed", "start_failed", True)
    assert not node.cell.is_on(node.server)
    lines = node.cell.worker_log.read_text().splitlines()
    assert [line for line in lines if '"job.stranded"' in line and '"error"' in line]
    assert len([line for line in lines if '"step.tried"' in line and '"start_failed"' in line]) >= 2
    _, snapshot = await node.cell.call("GET", f"/api/v1/snapshots/{snapshot_id}/")
    assert snapshot["status"] == "completed"
    assert await node.is_well()  # also while the server is off
    assert not node.cell.is_on(node.server)
    assert all(map(is_sound, node.server.disks))
