"""The promises of every driver: the port's docstrings as tests. The fake is trusted because it passes them too."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from drivers.base import (
    DiskCorrupt,
    DisksDiffer,
    Domain,
    DomainNotFound,
    Hypervisor,
    InvalidState,
    Power,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotSpec,
    UnsupportedServer,
)
from tests.contract.harness import ACCOUNT_ID, Bench

# One event loop for the suite: the driver of an embedded libvirt is bound to the loop in which it was opened.
pytestmark = pytest.mark.asyncio(loop_scope="session")

TAKEN_AT = datetime(2025, 1, 15, 18, 30, tzinfo=UTC)


def spec(tag: str = "vps-801", *, name: str = "pre-migration-snapshot", description: str = "") -> SnapshotSpec:
    return SnapshotSpec(tag=tag, name=name, description=description, created_at=TAKEN_AT)


def both(text: str) -> dict[str, str]:
    return {"vda": text, "vdb": text}


async def tags(bench: Bench, server_id: int = 1) -> dict[str, frozenset[str]]:
    return {found.tag: found.targets for found in await bench.hypervisor.snapshots(server_id)}


ON_A_SERVER: list[Callable[[Hypervisor], Awaitable[object]]] = [
    lambda hypervisor: hypervisor.power(404),
    lambda hypervisor: hypervisor.press_power_button(404),
    lambda hypervisor: hypervisor.wait_for_off(404, timeout_seconds=1),
    lambda hypervisor: hypervisor.cut_power(404),
    lambda hypervisor: hypervisor.start(404),
    lambda hypervisor: hypervisor.layout(404),
    lambda hypervisor: hypervisor.free_space(404),
    lambda hypervisor: hypervisor.snapshots(404),
    lambda hypervisor: hypervisor.take_snapshot(404, spec()),
    lambda hypervisor: hypervisor.list_snapshot(404, spec()),
    lambda hypervisor: hypervisor.refuse_live(404),
    lambda hypervisor: hypervisor.freeze(404, timeout_seconds=1),
    lambda hypervisor: hypervisor.thaw(404),
    lambda hypervisor: hypervisor.save_state(404, "vps-801"),
    lambda hypervisor: hypervisor.take_live_snapshot(404, spec()),
    lambda hypervisor: hypervisor.state_is_at(404, "vps-801"),
    lambda hypervisor: hypervisor.revert(404, "vps-801"),
    lambda hypervisor: hypervisor.delete_snapshot(404, "vps-801"),
    lambda hypervisor: hypervisor.repair(404),
    lambda hypervisor: hypervisor.size_mb(404, "vps-801"),
]


class TestServers:
    async def test_the_node_reports_its_software_and_free_space(self, bench: Bench) -> None:
        await bench.add_server(1)
        about = await bench.hypervisor.about()
        assert re.fullmatch(r"\w+ \d+\.\d+\.\d+", about.hypervisor)
        assert re.fullmatch(r"\w+ \d+\.\d+\.\d+", about.emulator)
        (pool,) = about.pools
        assert pool.path.startswith("/")
        assert 0 < pool.free_bytes <= pool.total_bytes

    async def test_an_adopted_domain_is_a_server(self, bench: Bench) -> None:
        await bench.add_server(1)
        await bench.add_server(2, adopted=False)
        expected = Domain(server_id=1, account_id=ACCOUNT_ID, name="server-1", power=Power.OFF)
        assert await bench.hypervisor.domains() == [expected]

    async def test_adoption_may_be_run_again_and_changed(self, bench: Bench) -> None:
        await bench.add_server(1, adopted=False)
        for account_id in (78, 78, 79):
            await bench.hypervisor.adopt("server-1", server_id=3, account_id=account_id)
        await bench.hypervisor.adopt("server-1", server_id=4, account_id=79)
        expected = Domain(server_id=4, account_id=79, name="server-1", power=Power.OFF)
        assert await bench.hypervisor.domains() == [expected]
        with pytest.raises(DomainNotFound):
            await bench.hypervisor.power(3)

    async def test_a_running_domain_can_be_adopted_and_stays_so(self, bench: Bench) -> None:
        await bench.add_server(1, running=True)
        await bench.hypervisor.adopt("server-1", server_id=5, account_id=80)
        await bench.hypervisor.cut_power(5)
        await bench.hypervisor.start(5)
        assert [domain.server_id for domain in await bench.hypervisor.domains()] == [5]

    async def test_no_two_domains_are_one_server(self, bench: Bench) -> None:
        await bench.add_server(1)
        await bench.add_server(2, adopted=False)
        with pytest.raises(InvalidState):
            await bench.hypervisor.adopt("server-2", server_id=1, account_id=ACCOUNT_ID)
        assert [domain.name for domain in await bench.hypervisor.domains()] == ["server-1"]

    async def test_a_domain_that_is_not_there_is_not_adopted(self, bench: Bench) -> None:
        with pytest.raises(DomainNotFound):
            await bench.hypervisor.adopt("server-9", server_id=9, account_id=ACCOUNT_ID)

    @pytest.mark.parametrize("call", ON_A_SERVER)
    async def test_an_unknown_server_is_not_found(
        self, bench: Bench, call: Callable[[Hypervisor], Awaitable[object]]
    ) -> None:
        with pytest.raises(DomainNotFound):
            await call(bench.hypervisor)

    async def test_a_restarted_driver_finds_all_that_was_there(self, bench: Bench) -> None:
        await bench.add_server(1)
        await bench.add_server(2, running=True)
        bench.write(1, "A")
        await bench.hypervisor.take_snapshot(1, spec())
        await bench.reopen()
        powers = {domain.server_id: domain.power for domain in await bench.hypervisor.domains()}
        assert powers == {1: Power.OFF, 2: Power.ON}
        (found,) = await bench.hypervisor.snapshots(1)
        assert found.complete
        assert found.spec == spec()
        assert bench.read(1) == both("A")


class TestPower:
    async def test_on_and_off_may_be_asked_for_twice(self, bench: Bench) -> None:
        await bench.add_server(1)
        for _ in range(2):
            await bench.hypervisor.start(1)
            assert await bench.hypervisor.power(1) is Power.ON
        for _ in range(2):
            await bench.hypervisor.cut_power(1)
            assert await bench.hypervisor.power(1) is Power.OFF
            assert await bench.hypervisor.was_shut_down(1) is False
        assert await bench.hypervisor.wait_for_off(1, timeout_seconds=0)

    async def test_the_power_button_turns_a_listening_guest_off(self, bench: Bench) -> None:
        await bench.add_server(1, running=True)
        for _ in range(30):  # a request before the guest listens is lost
            await bench.hypervisor.press_power_button(1)
            if await bench.hypervisor.wait_for_off(1, timeout_seconds=2):
                break
        assert await bench.hypervisor.power(1) is Power.OFF
        assert await bench.hypervisor.was_shut_down(1)

    async def test_a_deaf_guest_stays_on_until_its_power_is_cut(self, bench: Bench) -> None:
        await bench.add_server(1, running=True, deaf=True)
        await bench.hypervisor.press_power_button(1)
        assert not await bench.hypervisor.wait_for_off(1, timeout_seconds=0.5)
        assert await bench.hypervisor.power(1) is Power.ON
        await bench.hypervisor.cut_power(1)
        assert await bench.hypervisor.power(1) is Power.OFF

    async def test_the_power_button_of_a_server_that_is_off_does_nothing(self, bench: Bench) -> None:
        await bench.add_server(1)
        await bench.hypervisor.press_power_button(1)
        assert await bench.hypervisor.power(1) is Power.OFF

    async def test_a_wait_for_off_is_notified(self, bench: Bench) -> None:
        await bench.add_server(1, running=True)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.hypervisor.wait_for_off(1, timeout_seconds=60))
            await asyncio.sleep(0.05)
            await bench.hypervisor.cut_power(1)
        assert waiting.result()

    async def test_a_disk_may_be_changed_as_soon_as_the_power_is_cut(self, bench: Bench) -> None:
        await bench.add_server(1, running=True)
        await bench.hypervisor.cut_power(1)
        await bench.hypervisor.take_snapshot(1, spec())
        assert await tags(bench) == {"vps-801": {"vda", "vdb"}}

    async def test_a_watcher_is_notified_of_starts_and_stops(self, bench: Bench) -> None:
        await bench.add_server(1)
        changed = asyncio.Event()
        bench.hypervisor.watch(changed.set)
        for act in (bench.hypervisor.start, bench.hypervisor.cut_power):
            await bench.events_have_passed()
            changed.clear()
            await act(1)
            async with asyncio.timeout(60):
                await changed.wait()

    async def test_a_suspended_server_is_not_touched(self, bench: Bench) -> None:
        await bench.add_server(1, running=True)
        bench.suspend(1)
        assert await bench.hypervisor.power(1) is Power.PAUSED
        for refused in (bench.hypervisor.layout(1), bench.hypervisor.take_snapshot(1, spec())):
            with pytest.raises(InvalidState):
                await refused
        assert not await bench.hypervisor.wait_for_off(1, timeout_seconds=0)
        assert await bench.hypervisor.snapshots(1) == []
        await bench.hypervisor.cut_power(1)
        assert await bench.hypervisor.power(1) is Power.OFF


class TestLayout:
    @pytest.mark.parametrize("running", [False, True])
    async def test_it_lists_what_a_snapshot_would_hold(self, bench: Bench, running: bool) -> None:
        await bench.add_server(1, disks=3, running=running)
        layout = await bench.hypervisor.layout(1)
        assert [(disk.target, disk.virtual_bytes) for disk in layout.disks] == [
            ("vda", 64 << 20),
            ("vdb", 64 << 20),
            ("vdc", 64 << 20),
        ]
        assert layout.skipped == ()
        assert not layout.nvram
        assert layout.free_bytes > 0

    async def test_it_reports_free_space_also_for_a_suspended_server(self, bench: Bench) -> None:
        await bench.add_server(1, running=True)
        bench.suspend(1)  # as QEMU does when the storage is full
        assert await bench.hypervisor.free_space(1) > 0

    async def test_it_knows_uefi_variables(self, bench: Bench) -> None:
        await bench.add_server(1, uefi=True)
        assert (await bench.hypervisor.layout(1)).nvram

    async def test_a_ruined_disk_is_refused_by_name(self, bench: Bench) -> None:
        await bench.add_server(1)
        bench.ruin(1, "vdb")
        with pytest.raises((DiskCorrupt, UnsupportedServer), match="vdb"):
            await bench.hypervisor.layout(1)
        with pytest.raises(DiskCorrupt, match="vdb"):
            await bench.hypervisor.repair(1)


class TestSnapshots:
    async def test_a_revert_brings_every_disk_back(self, bench: Bench) -> None:
        await bench.add_server(1, disks=3)
        bench.write(1, "A")
        await bench.hypervisor.take_snapshot(1, spec())
        bench.write(1, "B")
        assert bench.read(1) == {"vda": "B", "vdb": "B", "vdc": "B"}
        await bench.hypervisor.revert(1, "vps-801")
        assert bench.read(1) == {"vda": "A", "vdb": "A", "vdc": "A"}
        assert await bench.hypervisor.power(1) is Power.OFF
        assert await bench.hypervisor.repair(1) == ()

    async def test_a_revert_of_a_disk_that_was_detached_since_changes_nothing(self, bench: Bench) -> None:
        await bench.add_server(1, disks=2)
        bench.write(1, "A")
        await bench.hypervisor.take_snapshot(1, spec())
        bench.write(1, "B")
        with pytest.raises(DisksDiffer, match="vdc"):
            await bench.hypervisor.revert(1, "vps-801", targets=frozenset({"vda", "vdb", "vdc"}))
        assert bench.read(1) == {"vda": "B", "vdb": "B"}

    async def test_reverts_between_six_snapshots_work_in_any_order(self, bench: Bench) -> None:
        await bench.add_server(1, disks=1)
        for text in "ABCDEF":
            bench.write(1, text)
            await bench.hypervisor.take_snapshot(1, spec(f"vps-{text}"))
        for text in "CAFECAFE":
            await bench.hypervisor.revert(1, f"vps-{text}")
            assert bench.read(1) == {"vda": text}
            bench.write(1, "lost")  # later writes do not change a snapshot
        assert len(await tags(bench)) == 6

    async def test_recorded_contents_are_read_back(self, bench: Bench) -> None:
        description = 'Вторник — <b>&amp;"quotes"\'</b>\n\n  three\tlines \\ and 100 %, ümläut 🎉\r\nlast]]>'
        await bench.add_server(1)
        await bench.hypervisor.take_snapshot(1, spec(name="before-update_1", description=description))
        await bench.hypervisor.take_snapshot(1, spec("vps-802", name="x", description=""))
        found = {snapshot.tag: snapshot.spec for snapshot in await bench.hypervisor.snapshots(1)}
        assert found == {
            "vps-801": spec(name="before-update_1", description=description),
            "vps-802": spec("vps-802", name="x", description=""),
        }

    async def test_a_tag_is_never_given_twice(self, bench: Bench) -> None:
        await bench.add_server(1)
        bench.plant_tag(1, "vdb", "vps-801")
        with pytest.raises(SnapshotExists):
            await bench.hypervisor.take_snapshot(1, spec())
        assert await tags(bench) == {"vps-801": {"vdb"}}

    async def test_a_tag_that_is_not_on_every_disk_is_found_and_is_not_complete(self, bench: Bench) -> None:
        await bench.add_server(1)
        bench.plant_tag(1, "vdb", "by-hand")
        (found,) = await bench.hypervisor.snapshots(1)
        assert (found.tag, found.targets, found.spec) == ("by-hand", frozenset({"vdb"}), None)
        assert not found.complete
        assert ["vda" in reason for reason in found.missing] == [True]

    @pytest.mark.parametrize("running", [False, True])
    async def test_a_snapshot_missing_in_the_list_is_listed_again(self, bench: Bench, running: bool) -> None:
        await bench.add_server(1)
        await bench.hypervisor.take_snapshot(1, spec(description="two\nlines"))
        if running:
            await bench.hypervisor.start(1)
        bench.unlist(1, "vps-801")
        (found,) = await bench.hypervisor.snapshots(1)
        assert (found.complete, found.spec) == (True, None)

        for _ in range(2):  # a second run is harmless
            await bench.hypervisor.list_snapshot(1, spec(description="two\nlines"))

        (found,) = await bench.hypervisor.snapshots(1)
        assert (found.complete, found.spec) == (True, spec(description="two\nlines"))
        with pytest.raises(SnapshotNotFound):
            await bench.hypervisor.list_snapshot(1, spec("vps-802"))

    async def test_a_snapshot_reverted_to_by_others_is_current_until_unlisted(self, bench: Bench) -> None:
        await bench.add_server(1)
        for tag, text in (("vps-801", "A"), ("vps-802", "B"), ("vps-803", "C")):
            bench.write(1, text)
            await bench.hypervisor.take_snapshot(1, spec(tag))
        await bench.hypervisor.revert(1, "vps-802")
        assert [found.tag for found in await bench.hypervisor.snapshots(1) if found.current] == []

        bench.revert_outside(1, "vps-801")

        assert [found.tag for found in await bench.hypervisor.snapshots(1) if found.current] == ["vps-801"]
        assert bench.read(1) == {"vda": "A", "vdb": "A"}
        await bench.reopen()
        await bench.hypervisor.revert(1, "vps-802")
        assert bench.read(1) == {"vda": "B", "vdb": "B"}
        bench.unlist(1, "vps-801")
        await bench.hypervisor.list_snapshot(1, spec("vps-801"))
        found = await bench.hypervisor.snapshots(1)
        assert [(one.tag, one.complete, one.current, one.spec is None) for one in found] == [
            (tag, True, False, False) for tag in ("vps-801", "vps-802", "vps-803")
        ]

    @pytest.mark.parametrize("target", ["vda", "vdb"])
    async def test_no_disk_is_reverted_where_one_lacks_the_tag(self, bench: Bench, target: str) -> None:
        await bench.add_server(1)
        bench.write(1, "A")
        await bench.hypervisor.take_snapshot(1, spec())
        bench.write(1, "B")
        bench.drop_tag(1, target, "vps-801")
        with pytest.raises(SnapshotNotFound):
            await bench.hypervisor.revert(1, "vps-801")
        assert bench.read(1) == both("B")

    async def test_the_disks_of_a_running_server_are_left_alone(self, bench: Bench) -> None:
        await bench.add_server(1)
        bench.write(1, "A")
        await bench.hypervisor.take_snapshot(1, spec())
        bench.write(1, "B")
        await bench.hypervisor.start(1)
        for call in (
            bench.hypervisor.take_snapshot(1, spec("vps-802")),
            bench.hypervisor.revert(1, "vps-801"),
            bench.hypervisor.repair(1),
        ):
            with pytest.raises(InvalidState):
                await call
        assert await bench.hypervisor.power(1) is Power.ON
        assert [*await tags(bench)] == ["vps-801"]
        await bench.hypervisor.cut_power(1)
        assert bench.read(1) == both("B")

    async def test_different_servers_are_worked_on_side_by_side(self, bench: Bench) -> None:
        servers = (1, 2, 3)
        for server_id in servers:
            await bench.add_server(server_id)
            bench.write(server_id, f"of {server_id}")
        await asyncio.gather(*(bench.hypervisor.take_snapshot(server_id, spec()) for server_id in servers))
        for server_id in servers:
            bench.write(server_id, "lost")
        await asyncio.gather(*(bench.hypervisor.revert(server_id, "vps-801") for server_id in servers))
        for server_id in servers:
            assert bench.read(server_id) == both(f"of {server_id}")

    @pytest.mark.parametrize("running", [False, True])
    async def test_its_size_is_known_whether_the_server_runs_or_not(self, bench: Bench, running: bool) -> None:
        await bench.add_server(1)
        bench.write(1, "A")
        await bench.hypervisor.take_snapshot(1, spec())
        if running:
            await bench.hypervisor.start(1)
        assert await bench.hypervisor.size_mb(1, "vps-801") > 0
        with pytest.raises(SnapshotNotFound):
            await bench.hypervisor.size_mb(1, "vps-802")


class TestLive:
    """Snapshots of a running server. A guest with an agent boots slowly: see test_live_kvm."""

    async def test_it_holds_every_disk_and_the_server_runs_on(self, bench: Bench) -> None:
        await bench.add_server(1)
        bench.write(1, "A")
        await bench.hypervisor.start(1)
        assert await bench.hypervisor.refuse_live(1) is False
        await bench.hypervisor.take_live_snapshot(1, spec())
        assert await tags(bench) == {"vps-801": frozenset({"vda", "vdb"})}
        await bench.hypervisor.list_snapshot(1, spec(), consistency="crash_consistent")
        assert await bench.hypervisor.power(1) is Power.ON
        (found,) = await bench.hypervisor.snapshots(1)
        assert found.complete
        assert found.contents is not None
        assert found.contents.consistency == "crash_consistent"
        assert await bench.hypervisor.size_mb(1, "vps-801") > 0
        await bench.hypervisor.cut_power(1)
        assert await bench.hypervisor.repair(1) == ()
        bench.write(1, "B")
        await bench.hypervisor.revert(1, "vps-801")
        assert bench.read(1) == both("A")

    async def test_a_tag_is_never_given_twice(self, bench: Bench) -> None:
        await bench.add_server(1)
        bench.plant_tag(1, "vdb", "vps-801")
        await bench.hypervisor.start(1)
        with pytest.raises(SnapshotExists):
            await bench.hypervisor.take_live_snapshot(1, spec())
        assert await tags(bench) == {"vps-801": frozenset({"vdb"})}

    @pytest.mark.parametrize("power", [Power.OFF, Power.PAUSED])
    async def test_only_a_server_that_runs_has_one(self, bench: Bench, power: Power) -> None:
        await bench.add_server(1, running=power is Power.PAUSED)
        if power is Power.PAUSED:
            bench.suspend(1)
        for call in (
            bench.hypervisor.refuse_live(1),
            bench.hypervisor.freeze(1, timeout_seconds=1),
            bench.hypervisor.take_live_snapshot(1, spec()),
        ):
            with pytest.raises(InvalidState):
                await call
        assert await tags(bench) == {}

    @pytest.mark.parametrize("running", [False, True])
    async def test_without_an_agent_nothing_is_frozen(self, bench: Bench, running: bool) -> None:
        await bench.add_server(1, running=running)
        if running:
            assert not await bench.hypervisor.freeze(1, timeout_seconds=1)
        assert not await bench.hypervisor.thaw(1)

    async def test_it_is_deleted_while_the_server_runs(self, bench: Bench) -> None:
        await bench.add_server(1, running=True)
        await bench.hypervisor.take_live_snapshot(1, spec())
        await bench.hypervisor.delete_snapshot(1, "vps-801")
        assert await tags(bench) == {}
        assert await bench.hypervisor.power(1) is Power.ON

    async def test_uefi_variables_that_change_meanwhile_are_noticed(self, bench: Bench) -> None:
        await bench.add_server(1, uefi=True)
        await bench.hypervisor.save_state(1, "vps-801")
        assert await bench.hypervisor.state_is_at(1, "vps-801")
        bench.write_nvram(1, "changed")
        assert not await bench.hypervisor.state_is_at(1, "vps-801")

    async def test_how_a_server_was_stopped_is_recorded(self, bench: Bench) -> None:
        await bench.add_server(1)
        await bench.hypervisor.take_snapshot(1, spec(), consistency="clean_shutdown")
        (found,) = await bench.hypervisor.snapshots(1)
        assert found.contents is not None
        assert found.contents.consistency == "clean_shutdown"


class TestDelete:
    @pytest.mark.parametrize("power", [Power.OFF, Power.ON])
    async def test_it_removes_one_snapshot_and_nothing_else(self, bench: Bench, power: Power) -> None:
        await bench.add_server(1)
        for tag, text in {"vps-801": "A", "vps-802": "B"}.items():
            bench.write(1, text)
            await bench.hypervisor.take_snapshot(1, spec(tag))
        bench.write(1, "C")
        if power is Power.ON:
            await bench.hypervisor.start(1)
        await bench.hypervisor.delete_snapshot(1, "vps-801")
        assert await tags(bench) == {"vps-802": {"vda", "vdb"}}
        assert await bench.hypervisor.power(1) is power
        await bench.hypervisor.cut_power(1)
        assert bench.read(1) == both("C")
        await bench.hypervisor.revert(1, "vps-802")
        assert bench.read(1) == both("B")

    @pytest.mark.parametrize("running", [False, True])
    async def test_a_tag_that_is_nowhere_is_fine(self, bench: Bench, running: bool) -> None:
        await bench.add_server(1, running=running)
        await bench.hypervisor.delete_snapshot(1, "vps-801")

    @pytest.mark.parametrize("running", [False, True])
    async def test_it_removes_what_is_left_of_a_snapshot(self, bench: Bench, running: bool) -> None:
        await bench.add_server(1, disks=3)
        bench.plant_tag(1, "vdb", "vps-801")  # on no other disk, and not recorded
        await bench.hypervisor.take_snapshot(1, spec("vps-802"))
        bench.drop_tag(1, "vda", "vps-802")  # recorded, but only on some disks
        await bench.hypervisor.take_snapshot(1, spec("vps-803"))
        for target in ("vda", "vdb", "vdc"):
            bench.drop_tag(1, target, "vps-803")  # only recorded
        if running:
            await bench.hypervisor.start(1)
        for tag in ("vps-801", "vps-802", "vps-803"):
            await bench.hypervisor.delete_snapshot(1, tag)
        assert await bench.hypervisor.snapshots(1) == []
        assert await bench.hypervisor.power(1) is (Power.ON if running else Power.OFF)


class TestUefi:
    async def test_its_variables_go_with_the_disks(self, bench: Bench) -> None:
        await bench.add_server(1, uefi=True)
        bench.write_nvram(1, "boots A")
        await bench.hypervisor.take_snapshot(1, spec())
        (found,) = await bench.hypervisor.snapshots(1)
        assert found.complete
        bench.write_nvram(1, "boots B")
        await bench.hypervisor.revert(1, "vps-801")
        assert bench.read_nvram(1) == "boots A"

    async def test_a_delete_takes_the_copy_along(self, bench: Bench) -> None:
        await bench.add_server(1, uefi=True)
        await bench.hypervisor.take_snapshot(1, spec())
        await bench.hypervisor.delete_snapshot(1, "vps-801")
        assert await bench.hypervisor.snapshots(1) == []


class TestRepair:
    async def test_a_torn_disk_is_repaired_and_keeps_its_data_and_snapshots(self, bench: Bench) -> None:
        await bench.add_server(1)
        bench.write(1, "A")
        await bench.hypervisor.take_snapshot(1, spec())
        bench.tear(1, "vdb")
        assert await bench.hypervisor.repair(1) == ("vdb",)
        assert await bench.hypervisor.repair(1) == ()
        bench.write(1, "B")
        await bench.hypervisor.revert(1, "vps-801")
        assert bench.read(1) == both("A")

    async def test_damage_of_a_cancelled_call_can_be_repaired(self, bench: Bench) -> None:
        await bench.add_server(1)
        bench.write(1, "A")
        await bench.hypervisor.take_snapshot(1, spec())
        bench.write(1, "B")
        hypervisor = bench.hypervisor
        changes: list[Callable[[], Awaitable[None]]] = [
            lambda: hypervisor.take_snapshot(1, spec("vps-802")),
            lambda: hypervisor.revert(1, "vps-801"),
            lambda: hypervisor.delete_snapshot(1, "vps-802"),
        ]
        for begin in changes:
            for turns in (0, 1, 3, 10):
                call = asyncio.ensure_future(begin())
                for _ in range(turns):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait({call})
                await bench.hypervisor.repair(1)
                await bench.hypervisor.delete_snapshot(1, "vps-802")
                assert [*await tags(bench)] == ["vps-801"]
        await bench.hypervisor.revert(1, "vps-801")
        assert bench.read(1) == both("A")
        assert await bench.hypervisor.repair(1) == ()
