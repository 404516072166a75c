"""The faults of the fake hypervisor: each has the same effect as on real disks."""

import asyncio
import subprocess
import sys
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drivers.base import DiskFailed, DriverError, Power, SnapshotSpec, StartFailed
from drivers.fake import FIRST_SERVER_ID, TORN, FakeHypervisor, Misused, simulated_node
from drivers.fake_faults import Effect, Happening, Killed, Moment, Rule, write_rules
from drivers.fake_state import FakeDisk, FakeServer

SPEC = SnapshotSpec(tag="vps-801", name="x", description="", created_at=datetime(2025, 1, 15, tzinfo=UTC))
ON_DISKS = (
    *(Effect.SNAPSHOT_DISK, Effect.REVERT_DISK, Effect.DELETE_TAG),
    *(Effect.CLEAR_BITMAPS, Effect.RESIZE_DISK),
)
GIB = 1 << 30
BOUND_SECONDS = 20
TURNS = 100  # of the event loop; an effect that nothing holds takes a few


@pytest.fixture
def fake() -> FakeHypervisor:
    return FakeHypervisor([_server()])


def _server() -> FakeServer:
    disks = {target: FakeDisk(content="A", virtual_bytes=20 * GIB) for target in ("vda", "vdb")}
    return FakeServer(
        name="server-1",
        server_id=1,
        account_id=77,
        disks=disks,
        nvram="as installed",
        generation=1,
        checkpoints=["c0"],
        agent=True,
    )


async def reached(fake: FakeHypervisor, effect: Effect, call: Coroutine[None, None, None]) -> asyncio.Future[None]:
    """Start the call, and return once it is in the effect and would have ended if nothing held it there."""
    entered = asyncio.Event()
    fake.faults.hook = lambda happening: entered.set() if happening.effect is effect else None
    running = asyncio.ensure_future(call)
    async with asyncio.timeout(BOUND_SECONDS):
        await entered.wait()
    fake.faults.hook = None
    for _ in range(TURNS):
        await asyncio.sleep(0)
    return running


async def all_effects(fake: FakeHypervisor) -> None:
    """Make a call of each kind, so that every effect occurs at least once."""
    await fake.domains()
    await fake.adopt("server-1", server_id=1, account_id=77)
    await fake.hold(1)
    await fake.take_snapshot(1, SPEC)
    fake.server(1).disks["vda"].dirty = True
    await fake.repair(1)
    fake.write(1, "B")
    for disk in fake.server(1).disks.values():
        disk.virtual_bytes = 40 * GIB
        disk.bitmaps = ["b0"]
    await fake.clear_bitmaps(1)
    await fake.revert(1, "vps-801")
    await fake.resize(1, {"vda": 40 * GIB, "vdb": 40 * GIB})
    await fake.renew_generation_id(1)
    await fake.size_mb(1, "vps-801")
    await fake.start(1)
    await fake.freeze(1, timeout_seconds=60)
    await fake.take_live_snapshot(1, replace(SPEC, tag="vps-802"))
    await fake.thaw(1)
    await fake.press_power_button(1)
    await fake.cut_power(1)
    await fake.delete_snapshot(1, "vps-801")
    await fake.let_go(1)


async def test_every_effect_is_seen_at_its_moments(fake: FakeHypervisor) -> None:
    seen: set[tuple[Effect, Moment]] = set()
    fake.faults.hook = lambda happening: seen.add((happening.effect, happening.moment))
    await all_effects(fake)
    expected = {(effect, moment) for effect in Effect for moment in (Moment.BEFORE, Moment.AFTER)}
    assert seen == expected | {(effect, Moment.DURING) for effect in ON_DISKS}


@pytest.mark.parametrize("effect", list(Effect))
async def test_every_effect_can_fail(fake: FakeHypervisor, effect: Effect) -> None:
    fake.faults.fail(effect)
    with pytest.raises(DriverError):
        await all_effects(fake)


async def test_a_fault_occurs_as_often_as_requested(fake: FakeHypervisor) -> None:
    fake.faults.fail(Effect.START, times=2)
    for _ in range(2):
        with pytest.raises(StartFailed):
            await fake.start(1)
    await fake.start(1)


async def test_a_refusal_before_the_change_leaves_the_disk_whole(fake: FakeHypervisor) -> None:
    fake.faults.fail(Effect.SNAPSHOT_DISK, "vdb")
    with pytest.raises(DiskFailed, match="vdb"):
        await fake.take_snapshot(1, SPEC)
    assert {target: [*disk.tags] for target, disk in fake.server(1).disks.items()} == {"vda": ["vps-801"], "vdb": []}
    assert await fake.repair(1) == ()


async def test_a_fault_of_one_server_spares_the_others(fake: FakeHypervisor) -> None:
    fake.add(FakeServer(name="server-2", server_id=2))
    fake.faults.fail(Effect.START, server_id=2)
    await fake.start(1)
    with pytest.raises(StartFailed):
        await fake.start(2)


async def test_rules_in_a_file_hold_while_they_are_there(tmp_path: Path) -> None:
    rules_file = tmp_path / "faults.json"
    fake = simulated_node(tmp_path / "fake.json", servers=2)
    await fake.cut_power(12345)
    write_rules(rules_file, [Rule(effect=Effect.START, server_id=12345, fails=True)])
    for _ in range(2):
        with pytest.raises(StartFailed):
            await fake.start(12345)
    await fake.start(12346)
    write_rules(rules_file, [Rule(effect=Effect.START, seconds=3600)])
    starting = await reached(fake, Effect.START, fake.start(12345))
    assert not starting.done()
    starting.cancel()
    await asyncio.wait([starting])
    write_rules(rules_file, [Rule(effect=Effect.START, waits=True)])
    starting = await reached(fake, Effect.START, fake.start(12345))
    assert not starting.done()
    rules_file.unlink()
    await starting


@pytest.mark.parametrize("effect", ON_DISKS)
@pytest.mark.parametrize("moment", list(Moment))
async def test_a_kill_strikes_before_during_or_after_an_effect(
    fake: FakeHypervisor, effect: Effect, moment: Moment
) -> None:
    def kill(happening: Happening) -> None:
        if (happening.effect, happening.moment, happening.target) == (effect, moment, "vdb"):
            raise Killed

    fake.faults.hook = kill
    with pytest.raises(Killed):
        await all_effects(fake)
    fake.faults.hook = None
    assert not fake.server(1).disks["vda"].dirty
    assert fake.server(1).disks["vdb"].dirty is (moment is Moment.DURING)


async def test_a_guest_that_starts_on_a_torn_disk_destroys_its_snapshots(fake: FakeHypervisor) -> None:
    await fake.take_snapshot(1, SPEC)
    fake.write(1, "B")
    fake.faults.fail(Effect.REVERT_DISK, "vdb", at=Moment.DURING)
    with pytest.raises(DiskFailed):
        await fake.revert(1, "vps-801")
    await fake.start(1)
    assert fake.misuse == ["server 1 was started with vdb dirty"]
    (found,) = await fake.snapshots(1)
    assert found.targets == {"vda"}
    assert fake.read(1) == {"vda": "A", "vdb": TORN}


async def test_a_repair_before_the_start_saves_them(fake: FakeHypervisor) -> None:
    await fake.take_snapshot(1, SPEC)
    fake.write(1, "B")
    fake.faults.fail(Effect.REVERT_DISK, "vdb", at=Moment.DURING)
    with pytest.raises(DiskFailed):
        await fake.revert(1, "vps-801")
    assert await fake.repair(1) == ("vdb",)
    await fake.revert(1, "vps-801")
    await fake.start(1)
    assert fake.read(1) == {"vda": "A", "vdb": "A"}
    assert fake.misuse == []


async def test_a_disk_that_is_at_the_snapshot_is_left_alone_by_a_revert(fake: FakeHypervisor) -> None:
    await fake.take_snapshot(1, SPEC)
    assert await fake.is_at(1, "vps-801")
    fake.faults.fail(Effect.REVERT_DISK)
    await fake.revert(1, "vps-801")
    fake.write(1, "B")
    assert not await fake.is_at(1, "vps-801")


async def test_a_torn_disk_that_is_touched_before_its_repair_is_a_misuse(fake: FakeHypervisor) -> None:
    fake.faults.fail(Effect.SNAPSHOT_DISK, "vda", at=Moment.DURING)
    with pytest.raises(DiskFailed):
        await fake.take_snapshot(1, SPEC)
    with pytest.raises(Misused):
        await fake.delete_snapshot(1, "vps-801")
    assert fake.misuse


async def test_qemus_own_change_is_not_torn_when_the_worker_dies(fake: FakeHypervisor) -> None:
    await fake.take_snapshot(1, SPEC)
    await fake.start(1)
    fake.faults.fail(Effect.DELETE_TAG, "vda", at=Moment.AFTER, error=Killed())
    with pytest.raises(Killed):
        await fake.delete_snapshot(1, "vps-801")
    await fake.delete_snapshot(1, "vps-801")
    assert await fake.snapshots(1) == []


async def test_a_hanging_call_continues_when_it_is_released(fake: FakeHypervisor) -> None:
    released = fake.faults.hang(Effect.SNAPSHOT_DISK)
    call = await reached(fake, Effect.SNAPSHOT_DISK, fake.take_snapshot(1, SPEC))
    assert not call.done()
    assert fake.server(1).disks["vda"].dirty
    released.set()
    await call
    assert await fake.repair(1) == ()


async def test_a_cancelled_change_of_a_disk_breaks_off_and_one_of_libvirt_is_finished(fake: FakeHypervisor) -> None:
    for effect, call in {Effect.START: fake.start(1), Effect.SNAPSHOT_DISK: fake.take_snapshot(1, SPEC)}.items():
        fake.faults.hang(effect)
        running = await reached(fake, effect, call)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        fake.faults.heal()
        if effect is Effect.START:
            assert await fake.power(1) is Power.ON
            await fake.cut_power(1)
    assert await fake.repair(1) == ("vda",)


class TestStateFile:
    async def test_a_simulated_node_has_its_servers_and_remembers_them(self, tmp_path: Path) -> None:
        node = simulated_node(tmp_path / "fake.json", servers=2)
        assert [(found.server_id, found.account_id, found.name, found.power) for found in await node.domains()] == [
            (12345, 77, "web-server-01", Power.ON),
            (12346, 77, "web-server-02", Power.ON),
        ]
        await node.cut_power(12345)
        await node.take_snapshot(12345, SPEC)
        again = simulated_node(tmp_path / "fake.json", servers=3)
        assert [found.power for found in await again.domains()] == [Power.OFF, Power.ON, Power.ON]
        (found,) = await again.snapshots(12345)
        assert found.complete
        assert found.spec == SPEC
        assert await again.size_mb(12345, SPEC.tag) == 5120

    async def test_the_file_does_not_grow_with_every_process(self, tmp_path: Path) -> None:
        path = tmp_path / "fake.json"
        for _ in range(20):
            node = simulated_node(path, servers=3)
            for _ in range(5):
                await node.cut_power(12345)
                await node.start(12345)
        assert len(path.read_bytes().splitlines()) <= 11

    async def test_a_line_that_was_cut_off_is_a_change_that_never_was(self, tmp_path: Path) -> None:
        path = tmp_path / "fake.json"
        node = simulated_node(path, servers=1)
        await node.cut_power(12345)
        await node.start(12345)
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        node = simulated_node(path, servers=1)
        assert await node.power(12345) is Power.OFF
        await node.start(12345)
        assert await simulated_node(path, servers=1).power(12345) is Power.ON

    async def test_a_process_that_is_killed_leaves_the_disk_torn(self, tmp_path: Path) -> None:
        path = tmp_path / "fake.json"
        program = f"""
import asyncio, os, signal, pathlib
from drivers.fake import simulated_node
from drivers.fake_faults import Effect, Moment
from tests.unit.test_fake import SPEC

def die(happening):
    if (happening.effect, happening.moment, happening.target) == (Effect.SNAPSHOT_DISK, Moment.DURING, "vdb"):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    node = simulated_node(pathlib.Path({str(path)!r}), servers=1)
    node.faults.hook = die
    await node.cut_power({FIRST_SERVER_ID})
    await node.take_snapshot({FIRST_SERVER_ID}, SPEC)

asyncio.run(main())
"""
        killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], check=False)
        assert killed.returncode == -9
        node = simulated_node(path, servers=1)
        assert await node.repair(FIRST_SERVER_ID) == ("vdb",)


def test_a_job_tells_an_error_of_the_driver_as_a_sentence() -> None:
    assert DiskFailed("disk vda: it could not be reverted").detail == "Disk vda: it could not be reverted."
