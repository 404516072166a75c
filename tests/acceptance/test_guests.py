"""Real guests through the whole service, from HTTP through Redis and a worker to QEMU, checked on their consoles.

All tests share one cell with several servers, because a boot takes 3 to 5 s. Each test leaves its server as it found
it.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.lab.domain import Device, disk
from deploy.lab.lab import Lab, make_disk
from tests.acceptance.cell import GRACE_SECONDS, AcceptanceCell, Server, eventually, is_sound, tags
from tests.chaos.halts import Halt, Halts, Moment
from tests.conftest import RedisServer, needs

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLAIN, DEAF, OFF, UEFI, UEFI_OFF, ODD, RAW, BLOCK, GONE, TPM = range(101, 111)


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
    cell = AcceptanceCell(folder=folder, redis=redis, lab=Lab(folder / "l"))
    try:
        await _furnish(cell)
        await cell.start()
        yield cell
    finally:
        await cell.stop()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def sound_disks(cell: AcceptanceCell) -> AsyncIterator[None]:
    """After each test, check that `qemu-img check` finds nothing on any disk that the test changed."""
    yield
    await cell.check_disks()


async def _furnish(cell: AcceptanceCell) -> None:
    def new(name: str, **how: object) -> Path:
        return make_disk(cell.lab.disk_path(name), **how)  # type: ignore[arg-type] # its own keywords

    await cell.add(PLAIN, [disk(new("p0")), disk(new("p1"))])
    await cell.add(DEAF, [disk(new("d0"))], deaf=True)
    await cell.add(OFF, [disk(new("o0")), disk(new("o1"))], running=False)
    await cell.add(UEFI, [disk(new("u0"))], uefi=True)
    await cell.add(UEFI_OFF, [disk(new("f0"))], running=False, uefi=True)
    cell.lab.nvram_path(f"s{UEFI_OFF}").write_bytes(b"variables of the first day")
    base = new("base")
    devices = [
        disk(new("over", backing=base)),
        Device(path=new("ro"), readonly=True),
        Device(path=new("shared", format="raw"), format="raw", shareable=True, left_out=True),
        Device(path=None, cdrom=True),
    ]
    await cell.add(ODD, devices)
    await cell.add(RAW, [disk(new("r0")), Device(path=new("r1", format="raw"), format="raw")])
    await cell.add(GONE, [disk(new("g0")), disk(cell.lab.disk_path("nowhere"))], running=False)
    await cell.add(BLOCK, [disk(new("b0")), Device(path=Path("/dev/loop0"), format="raw", block=True)], running=False)
    await cell.add(TPM, [disk(new("t0"))], running=False, tpm=True)
    for server_id in (PLAIN, DEAF, UEFI, ODD, RAW):
        await cell.servers[server_id].ready()


async def write(server: Server, text: str) -> None:
    await server.console.write(text)


def markers(server: Server) -> set[str]:
    assert server.booted is not None
    return set(server.booted.markers.values())


async def test_a_restore_brings_the_data_of_both_disks_back(cell: AcceptanceCell) -> None:
    server = cell.servers[PLAIN]
    await write(server, "A")
    snapshot_id, job = await cell.create(server, "a")
    assert (job["state"], job["error"]) == ("completed", None)
    downtime = job["downtime_seconds"]
    assert isinstance(downtime, float)
    assert downtime > 0
    booted = await server.ready()
    assert (set(booted.boots.values()), markers(server)) == ({2}, {"A"})
    await write(server, "B")

    job = await cell.restore(snapshot_id)

    assert job["state"] == "completed"
    booted = await server.ready()
    # the boots of the snapshot, and this one
    assert (set(booted.boots.values()), markers(server)) == ({2}, {"A"})
    status, undo = await cell.call("POST", f"/api/v1/restores/{job['id']}/undo/")
    assert status == 202
    assert cell.client is not None
    ended = await cell.client.follow(f"/api/v1/jobs/{undo['id']}/", timeout_seconds=90)
    assert ended["state"] == "completed"
    await server.ready()
    assert markers(server) == {"B"}
    await cell.delete(server, snapshot_id)


async def test_a_delete_does_not_stop_the_guest(cell: AcceptanceCell) -> None:
    server = cell.servers[PLAIN]
    snapshot_id, _ = await cell.create(server, "short")
    await server.ready()
    pid = cell.pid(server)

    await cell.delete(server, snapshot_id)

    assert cell.pid(server) == pid
    await write(server, "alive")
    status, page = await cell.call("GET", f"/api/v1/snapshots/?server_id={server.id}")
    assert (status, page["count"]) == (200, 0)


def fill_disk(path: Path, command: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(path)], check=True, capture_output=True)


async def test_the_size_is_what_the_disks_hold(cell: AcceptanceCell) -> None:
    server = cell.servers[OFF]
    sizes = []
    for name, megabytes in (("small", 4), ("large", 24)):
        fill = f"write -P 1 0 {megabytes}M"
        fill_disk(server.disks[0], fill)
        snapshot_id, _ = await cell.create(server, name)
        _, snapshot = await cell.call("GET", f"/api/v1/snapshots/{snapshot_id}/")
        sizes.append(snapshot["size_mb"])
        await cell.delete(server, snapshot_id)
    assert sizes == [4, 24]


async def test_a_guest_that_ignores_the_power_button_is_cut_off_after_the_grace(cell: AcceptanceCell) -> None:
    server = cell.servers[DEAF]
    await write(server, "A")
    snapshot_id, job = await cell.create(server, "a")
    assert job["state"] == "completed"
    downtime = job["downtime_seconds"]
    assert isinstance(downtime, float)
    assert downtime > GRACE_SECONDS
    await server.ready()
    assert markers(server) == {"A"}
    await cell.delete(server, snapshot_id)


async def test_a_server_that_was_off_stays_off(cell: AcceptanceCell) -> None:
    server = cell.servers[OFF]
    snapshot_id, job = await cell.create(server, "off")
    assert (job["state"], job["downtime_seconds"]) == ("completed", None)
    assert not cell.is_on(server)
    assert (await cell.restore(snapshot_id))["state"] == "completed"
    assert not cell.is_on(server)
    await cell.delete(server, snapshot_id)
    assert not cell.is_on(server)
    assert all(map(is_sound, server.disks))


async def test_uefi_variables_are_part_of_the_snapshot(cell: AcceptanceCell) -> None:
    server, variables = cell.servers[UEFI_OFF], cell.lab.nvram_path(f"s{UEFI_OFF}")
    first = variables.read_bytes()
    snapshot_id, job = await cell.create(server, "uefi")
    assert job["state"] == "completed", job["error"]
    variables.write_bytes(b"variables of another day")

    assert (await cell.restore(snapshot_id))["state"] == "completed"

    assert variables.read_bytes() == first
    await cell.delete(server, snapshot_id)
    assert copies(variables) == []


def copies(variables: Path) -> list[str]:
    """The copies that belong to customers' snapshots."""
    return [path.name for path in variables.parent.glob(f"{variables.name}.vps-[0-9]*")]


async def test_a_guest_that_boots_by_uefi_is_snapshotted_restored_and_runs_through_the_delete(
    cell: AcceptanceCell,
) -> None:
    server, variables = cell.servers[UEFI], cell.lab.nvram_path(f"s{UEFI}")
    await write(server, "A")
    snapshot_id, job = await cell.create(server, "uefi")
    assert job["state"] == "completed", job["error"]
    copy = server.disks[0].with_name(f"{server.disks[0].name}.vps-{snapshot_id}.nvram")
    assert copy.read_bytes()
    assert copies(variables) == []
    await server.ready()
    await write(server, "B")
    assert (await cell.restore(snapshot_id))["state"] == "completed"
    await server.ready()
    assert markers(server) == {"A"}
    pid = cell.pid(server)
    await cell.delete(server, snapshot_id)
    assert cell.pid(server) == pid
    assert not copy.exists()
    await write(server, "alive")


async def test_omitted_disks_are_named(cell: AcceptanceCell) -> None:
    server = cell.servers[ODD]
    await write(server, "A")
    snapshot_id, job = await cell.create(server, "odd")
    assert job["state"] == "completed", job["error"]
    await server.ready()
    await write(server, "B")
    assert (await cell.restore(snapshot_id))["state"] == "completed"
    booted = await server.ready()
    assert booted.markers["vda"] == "A"
    said = [line for line in cell.worker_log.read_text().splitlines() if "disks.skipped" in line]
    assert "read-only" in said[-1]
    assert "its definition excludes it from snapshots" in said[-1]
    assert "cdrom" in said[-1]
    await cell.delete(server, snapshot_id)


@pytest.mark.parametrize(("server_id", "named"), [(RAW, "disk vdb"), (BLOCK, "disk vdb"), (GONE, "disk vdb")])
async def test_unsupported_storage_is_refused_by_name_before_the_stop(
    cell: AcceptanceCell, server_id: int, named: str
) -> None:
    server = cell.servers[server_id]
    was_on = cell.is_on(server)
    snapshot_id, job = await cell.create(server, "never")
    error = job["error"]
    assert isinstance(error, dict)
    assert (job["state"], error["code"], error["stranded"]) == ("failed", "unsupported_server", False)
    assert named in error["detail"].lower()
    assert job["downtime_seconds"] is None
    assert cell.is_on(server) is was_on
    if was_on:
        after = server.console.end()
        await write(server, "alive")
        assert b"READY" not in server.console.log.read_bytes()[after:], "it was booted again"
    _, snapshot = await cell.call("GET", f"/api/v1/snapshots/{snapshot_id}/")
    assert (snapshot["status"], snapshot["size_mb"]) == ("failed", None)


async def _is_at(cell: AcceptanceCell, place: str, step: str) -> bool:
    assert cell.client is not None
    return bool((await cell.client.call("GET", place)).body["step"] == step)


async def test_a_worker_killed_while_a_guest_is_off_is_finished_by_the_next(cell: AcceptanceCell, folder: Path) -> None:
    server, halts, usual = cell.servers[DEAF], Halts(folder), cell.worker_command
    assert cell.worker is not None
    assert cell.client is not None
    assert await cell.worker.stop() == 0
    cell.worker_command = (sys.executable, "-m", "tests.chaos.stage", folder, "none", "run")
    await cell.start_worker()
    halts.ask(Halt(kind="create", step="stopping", moment=Moment.AFTER, seconds=0))
    answer = await cell.begin_create(server, "killed")
    place = answer.headers["Operation-Location"]
    await eventually(halts.have_stopped)
    assert not cell.is_on(server)
    os.kill(cell.worker.pid, signal.SIGKILL)
    await cell.worker.ended()
    halts.forget()

    cell.worker_command = usual
    await cell.start_worker()

    job = await cell.client.follow(place, timeout_seconds=90)
    assert (job["state"], job["attempts"]) == ("completed", 2)
    await server.ready()
    await cell.delete(server, answer.body["id"])


async def test_jobs_of_two_servers_run_side_by_side(cell: AcceptanceCell) -> None:
    plain, deaf = cell.servers[PLAIN], cell.servers[DEAF]
    assert cell.client is not None
    answer = await cell.begin_create(deaf, "slow")
    slow_id, place = answer.body["id"], answer.headers["Operation-Location"]
    await eventually(lambda: _is_at(cell, place, "stopping"))
    quick_id, quick = await cell.create(plain, "quick")
    slow = await cell.client.follow(place, timeout_seconds=90)
    assert slow["state"] == "completed"
    assert quick["started_at"] < slow["finished_at"]
    for server, snapshot_id in ((plain, quick_id), (deaf, slow_id)):
        await server.ready()
        await cell.delete(server, snapshot_id)


async def test_every_disk_is_sound_when_its_guest_is_off(cell: AcceptanceCell) -> None:
    """Must run last: it stops the worker and, with the embedded libvirt in this process, the guests."""
    assert cell.worker is not None
    assert await cell.worker.stop() == 0
    for server in cell.servers.values():
        if cell.is_on(server):
            await cell.lab.cut_power(server.name)
        for path in server.disks:
            if path.exists():
                assert is_sound(path), f"{server.name}: {path.name}"
                assert [tag for tag in tags(path) if not tag.startswith("vps-safety-")] == []
