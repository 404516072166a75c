"""Live snapshots of a real guest with an agent through the whole service, checked inside the guest."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.lab.domain import disk
from deploy.lab.lab import Lab, make_disk
from tests.acceptance.cell import AcceptanceCell, Server, eventually
from tests.chaos.halts import Halt, Halts, Moment
from tests.conftest import RedisServer, needs

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = {"consistency": "live"}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    for program in ("redis-server", "qemu-system-x86_64", "qemu-img", "setpriv"):
        needs(program)
    with tempfile.TemporaryDirectory(prefix="vps-", dir="/tmp") as name:  # a short path: sockets are below it
        yield Path(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cell(folder: Path) -> AsyncIterator[AcceptanceCell]:
    (folder / "r").mkdir()
    redis = RedisServer(folder / "r")
    redis.start()
    cell = AcceptanceCell(
        folder=folder,
        redis=redis,
        lab=Lab(folder / "l"),
        overrides={"VPS_SNAPSHOTS_LIVE": "allowed"},
        worker_command=(sys.executable, "-m", "tests.chaos.stage", folder, "none", "run"),
    )
    try:
        devices = [disk(make_disk(cell.lab.disk_path(name))) for name in ("a0", "a1")]
        server = await cell.add(1, devices, agent=True)
        await server.ready()
        await cell.start()
        await eventually(lambda: cell.freezes(server))
        yield cell
    finally:
        await cell.stop()


@pytest.fixture
def server(cell: AcceptanceCell) -> Server:
    return cell.servers[1]


async def freeze_status(cell: AcceptanceCell) -> str:
    """The status of the only guest's file systems, from its agent. Needs no libvirt, and no worker may run."""
    (channel,) = cell.lab.folder.rglob("org.qemu.guest_agent.0")
    reader, writer = await asyncio.open_unix_connection(channel)
    asked = ({"execute": "guest-sync", "arguments": {"id": 4711}}, {"execute": "guest-fsfreeze-status"})
    try:
        writer.writelines(json.dumps(command).encode() for command in asked)
        async with asyncio.timeout(60):
            while json.loads(await reader.readline()) != {"return": 4711}:
                pass  # an answer that the worker did not read
            return str(json.loads(await reader.readline())["return"])
    finally:
        writer.close()
        await writer.wait_closed()


async def test_the_guest_runs_on_and_a_restore_brings_its_data_back(cell: AcceptanceCell, server: Server) -> None:
    qemu = cell.pid(server)
    await server.console.write("A")
    await server.console.tick()
    snapshot_id, job = await cell.create(server, "live", **LIVE)
    gaps = await server.console.gaps()
    print(f"writes of the guest: {gaps.count}, gaps in ms: p99 {gaps.p99_ms}, longest {gaps.longest_ms}")  # noqa: T201 - a figure to read; the machine decides it
    assert (job["state"], job["consistency"], job["downtime_seconds"]) == ("completed", "agent_frozen", None)
    assert gaps.count > 0
    assert cell.pid(server) == qemu, "the server was not stopped"
    await server.console.write("B")

    assert (await cell.restore(snapshot_id))["state"] == "completed"
    booted = await server.ready()
    assert set(booted.markers.values()) == {"A"}
    await cell.delete(server, snapshot_id)
    await eventually(lambda: cell.freezes(server))
    await cell.check_disks()


@pytest.mark.parametrize(
    ("step", "label"),
    # After an interruption, the snapshot is taken without a freeze, unless it was complete.
    [("freezing", "crash_consistent"), ("snapshotting", "crash_consistent"), ("thawing", "agent_frozen")],
)
async def test_a_worker_that_dies_leaves_the_guest_frozen_until_the_next_one_starts(
    cell: AcceptanceCell, server: Server, folder: Path, step: str, label: str
) -> None:
    halts, qemu = Halts(folder), cell.pid(server)
    moment = Moment.BEFORE if step == "thawing" else Moment.AFTER
    halts.ask(Halt(kind="create", step=step, moment=moment, seconds=0))
    answer = await cell.begin_create(server, step, **LIVE)
    await eventually(halts.have_stopped)
    assert cell.worker is not None
    os.kill(cell.worker.pid, signal.SIGKILL)
    await cell.worker.ended()
    assert await freeze_status(cell) == "frozen"
    halts.forget()
    await cell.start_worker()
    await server.console.write("thawed")
    assert cell.client is not None
    job = await cell.client.follow(answer.headers["Operation-Location"], timeout_seconds=90)
    assert (job["state"], job["consistency"]) == ("completed", label)
    assert cell.pid(server) == qemu
    await cell.delete(server, answer.body["id"])
    await cell.check_disks()
