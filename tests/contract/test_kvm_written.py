"""A snapshot's recorded contents compared with the server's current disks, and the entry that holds a server."""

import asyncio
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libvirt
import pytest

from deploy.lab.domain import Device, disk
from deploy.lab.lab import make_disk
from drivers import qcow2
from drivers.base import (
    DiskFailed,
    DisksDiffer,
    DomainNotFound,
    GrownDisk,
    Power,
    ServerInUse,
    SnapshotNotFound,
    SnapshotSpec,
    UnsupportedServer,
)
from drivers.fake_faults import Killed
from drivers.kvm import KvmHypervisor, listing, records
from drivers.kvm.places import SYSTEM
from tests.contract.kvm_bench import KvmBench, qemu_img, read_text, write_text

pytestmark = pytest.mark.asyncio(loop_scope="session")

SPEC = SnapshotSpec(tag="vps-801", name="before", description="", created_at=datetime(2025, 1, 15, tzinfo=UTC))
MEBIBYTE = 1 << 20


def attach(bench: KvmBench, devices: Sequence[Device]) -> None:
    """Attach exactly these, in the order vda, vdb, ...; the record in the metadata stays."""
    domain = bench.domain(1)
    kept = listing.written_down(domain, SYSTEM).records.values()
    bench.connection.defineXML(bench.lab.domain_xml("server-1", devices))
    for record in kept:
        listing.write_record(domain, record)


async def adopted_with(bench: KvmBench, devices: Sequence[Device]) -> None:
    attach(bench, devices)
    await bench.hypervisor.adopt("server-1", server_id=1, account_id=77)


class TestContents:
    async def test_a_snapshot_says_what_it_holds_by_a_stamp_that_stays(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.contents is not None
        assert [held.target for held in found.contents.disks] == ["vda", "vdb"]
        assert {held.virtual_bytes for held in found.contents.disks} == {64 * MEBIBYTE}
        assert all(held.stamp.partition(".")[2] for held in found.contents.disks)
        (moved,) = [kvm_bench.path(1, "vdb").rename(kvm_bench.lab.disk_path("elsewhere.qcow2"))]
        await adopted_with(kvm_bench, [disk(moved), disk(kvm_bench.path(1, "vda"))])
        (again,) = await kvm_bench.hypervisor.snapshots(1)
        assert (again.complete, again.missing, again.contents) == (True, (), found.contents)
        plan = await kvm_bench.hypervisor.restore_plan(1, "vps-801")
        assert sorted(plan.targets) == ["vda", "vdb"]

    @pytest.mark.parametrize("what", ["detached", "read-only", "replaced", "added", "tag deleted"])
    async def test_differing_disks_are_refused_by_name_and_the_rest_is_restored_on_request(
        self, kvm_bench: KvmBench, what: str
    ) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        first, second = (kvm_bench.path(1, target) for target in ("vda", "vdb"))
        other = make_disk(kvm_bench.lab.disk_path("other.qcow2"))
        write_text(first, "B")
        target = "vdb"
        if what == "detached":
            await adopted_with(kvm_bench, [disk(first)])
        elif what == "read-only":
            await adopted_with(kvm_bench, [disk(first), Device(path=second, readonly=True)])
        elif what == "replaced":
            await adopted_with(kvm_bench, [disk(first), disk(other)])
        elif what == "added":
            await adopted_with(kvm_bench, [disk(first), disk(second), disk(other)])
            target = "vdc"
        else:
            kvm_bench.drop_tag(1, "vdb", "vps-801")

        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert not found.complete
        (reason,) = found.missing
        assert reason.startswith(f"disk {target}")
        assert str(second.parent) not in reason
        with pytest.raises(DisksDiffer, match=f"disk {target}"):
            await kvm_bench.hypervisor.restore_plan(1, "vps-801")
        plan = await kvm_bench.hypervisor.restore_plan(1, "vps-801", present_only=True)
        assert plan.targets == (("vda", "vdb") if what == "added" else ("vda",))
        assert [skipped.target for skipped in plan.not_restored] == [target]
        await kvm_bench.hypervisor.revert(1, "vps-801", targets=frozenset(plan.targets))
        assert read_text(first) == "A"
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        for path in (first, second):
            assert (await qcow2.image(str(path))).tags == ()

    async def test_a_detached_disk_loses_the_tag_also_where_another_server_runs_on_it(
        self, kvm_bench: KvmBench
    ) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await adopted_with(kvm_bench, [disk(kvm_bench.path(1, "vda"))])
        await kvm_bench.add_domain(2, [disk(kvm_bench.path(1, "vdb"))])
        await kvm_bench.hypervisor.start(2)
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        assert await kvm_bench.hypervisor.snapshots(1) == []
        assert await kvm_bench.hypervisor.snapshots(2) == []
        await kvm_bench.hypervisor.cut_power(2)
        assert await kvm_bench.hypervisor.repair(2) == ()

    async def test_a_held_disk_is_retried_and_a_missing_file_is_fine(
        self, kvm_bench: KvmBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(qcow2, "LOCK_SECONDS", 0.1)
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await adopted_with(kvm_bench, [disk(kvm_bench.path(1, "vda"))])
        second = kvm_bench.path(1, "vdb")
        options = f"driver=qcow2,file.driver=file,file.filename={second}"
        command = ["qemu-io", "--image-opts", options]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # noqa: ASYNC220
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.write(b"length\n")
            holder.stdin.flush()
            holder.stdout.read(len("qemu-io> "))
            with pytest.raises(DiskFailed, match="vdb"):
                await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.spec == SPEC
        second.unlink()
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        assert await kvm_bench.hypervisor.snapshots(1) == []

    async def test_a_file_that_took_the_place_of_a_detached_one_is_left_alone(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await adopted_with(kvm_bench, [disk(kvm_bench.path(1, "vda"))])
        kvm_bench.path(1, "vdb").unlink()
        make_disk(kvm_bench.path(1, "vdb"))
        kvm_bench.plant_tag(1, "vdb", "vps-801")
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        assert (await qcow2.image(str(kvm_bench.path(1, "vdb")))).tags == ("vps-801",)

    async def test_disks_that_were_enlarged_are_named(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        qemu_img("resize", "-q", "-f", "qcow2", str(kvm_bench.path(1, "vdb")), "128M")
        plan = await kvm_bench.hypervisor.restore_plan(1, "vps-801")
        assert plan.grown == (GrownDisk(target="vdb", snapshot_bytes=64 * MEBIBYTE, virtual_bytes=128 * MEBIBYTE),)

    async def test_one_that_is_smaller_now_is_refused(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        qemu_img("resize", "-q", "--shrink", "-f", "qcow2", str(kvm_bench.path(1, "vdb")), "32M")
        with pytest.raises(UnsupportedServer, match="disk vdb is smaller"):
            await kvm_bench.hypervisor.restore_plan(1, "vps-801")

    async def test_a_tag_that_is_nowhere_is_not_found(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        with pytest.raises(SnapshotNotFound):
            await kvm_bench.hypervisor.restore_plan(1, "vps-801")


class TestBase:
    async def clone(self, bench: KvmBench) -> Path:
        """A server with a snapshot, over the base that is returned."""
        base = make_disk(bench.lab.disk_path("base.qcow2"))
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(bench.path(1, "vda")))
        await bench.add_domain(1, [disk(bench.path(1, "vda"))])
        bench.write(1, "A")
        await bench.hypervisor.take_snapshot(1, SPEC)
        bench.write(1, "B")
        return base

    async def test_a_touched_base_needs_disks_present(self, kvm_bench: KvmBench) -> None:
        base = await self.clone(kvm_bench)
        os.utime(base, (0, base.stat().st_mtime + 2))  # as nova does
        with pytest.raises(DisksDiffer, match=r"base image of disk vda .* may have been changed"):
            await kvm_bench.hypervisor.restore_plan(1, "vps-801")
        plan = await kvm_bench.hypervisor.restore_plan(1, "vps-801", present_only=True)
        assert (plan.targets, plan.not_restored) == (("vda",), ())
        await kvm_bench.hypervisor.revert(1, "vps-801", targets=frozenset(plan.targets))
        assert kvm_bench.read(1) == {"vda": "A"}

    async def test_a_rollback_ignores_the_base(self, kvm_bench: KvmBench) -> None:
        os.utime(await self.clone(kvm_bench), (0, 0))
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert kvm_bench.read(1) == {"vda": "A"}

    async def test_one_that_was_copied_by_a_tool_that_keeps_whole_seconds_is_the_same(
        self, kvm_bench: KvmBench
    ) -> None:
        base = await self.clone(kvm_bench)
        os.utime(base, ns=(0, base.stat().st_mtime_ns // 10**9 * 10**9))
        assert (await kvm_bench.hypervisor.restore_plan(1, "vps-801")).targets == ("vda",)

    async def test_one_that_was_written_to_is_another(self, kvm_bench: KvmBench) -> None:
        write_text(await self.clone(kvm_bench), "changed")
        for present_only in (False, True):
            with pytest.raises((DisksDiffer, SnapshotNotFound)):
                await kvm_bench.hypervisor.restore_plan(1, "vps-801", present_only=present_only)


class Dying:
    """A domain whose process dies at the call with that number that changes something."""

    def __init__(self, domain: Any, calls: int) -> None:
        self._domain = domain
        self._left = calls

    def __getattr__(self, name: str) -> Any:
        if name in {"setMetadata", "listAllSnapshots"}:  # the entries are listed in order to delete them
            self._left -= 1
            if not self._left:
                raise Killed(name)
        return getattr(self._domain, name)


class TestOlderVersions:
    async def test_a_snapshot_that_is_only_listed_by_libvirt_is_whole_and_is_moved(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, running=True)
        await kvm_bench.hypervisor.cut_power(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        domain = kvm_bench.domain(1)
        listing.list_for_people(domain, SPEC, SYSTEM)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, records.NAMESPACE, 2)
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert (found.spec, found.complete, found.settled) == (SPEC, True, False)
        assert found.contents is not None
        assert [(held.target, bool(held.stamp)) for held in found.contents.disks] == [("vda", True), ("vdb", True)]

        await kvm_bench.hypervisor.list_snapshot(1, SPEC, found.contents)

        assert domain.listAllSnapshots(0) == []
        assert await kvm_bench.hypervisor.snapshots(1) == [replace(found, settled=True)]

    @pytest.mark.parametrize("calls", [1, 2, 3])
    async def test_a_kill_within_the_move_leaves_a_whole_snapshot_that_the_next_one_moves(
        self, kvm_bench: KvmBench, calls: int
    ) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        domain = kvm_bench.domain(1)
        listing.list_for_people(domain, SPEC, SYSTEM)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, records.NAMESPACE, 2)
        await kvm_bench.hypervisor.start(1)  # two definitions
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.contents is not None

        with pytest.raises(Killed):
            listing.write_record(Dying(domain, calls), records.Record(spec=SPEC, contents=found.contents))

        (left,) = await kvm_bench.hypervisor.snapshots(1)
        assert (left.spec, left.complete, left.settled) == (SPEC, True, False)
        await kvm_bench.hypervisor.list_snapshot(1, SPEC, left.contents)
        assert domain.listAllSnapshots(0) == []
        assert await kvm_bench.hypervisor.snapshots(1) == [replace(left, settled=True)]

    async def test_a_snapshot_with_a_detached_disk_says_so(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        domain = kvm_bench.domain(1)
        listing.list_for_people(domain, SPEC, SYSTEM)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, records.NAMESPACE, 2)
        await adopted_with(kvm_bench, [disk(kvm_bench.path(1, "vda"))])
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.missing == ("disk vdb is in the snapshot, but is no longer attached to the server",)
        await kvm_bench.hypervisor.list_snapshot(1, SPEC, found.contents)
        assert domain.listAllSnapshots(0) == []
        assert await kvm_bench.hypervisor.snapshots(1) == [replace(found, settled=True)]

    async def test_records_in_one_definition_are_written_to_both(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await kvm_bench.hypervisor.start(1)
        domain = kvm_bench.domain(1)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, records.NAMESPACE, 2)
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert (found.complete, found.settled) == (True, False)
        await kvm_bench.hypervisor.list_snapshot(1, SPEC, found.contents)
        await kvm_bench.hypervisor.cut_power(1)
        assert await kvm_bench.hypervisor.snapshots(1) == [replace(found, settled=True)]


class TestHold:
    @pytest.mark.parametrize("running", [False, True])
    async def test_it_is_held_and_released_and_shows_no_snapshot(self, kvm_bench: KvmBench, running: bool) -> None:
        await kvm_bench.add_server(1, running=running)
        for _ in range(2):
            await kvm_bench.hypervisor.hold(1)
        assert [one.getName() for one in kvm_bench.domain(1).listAllSnapshots(0)] == ["vps-job"]
        assert await kvm_bench.hypervisor.snapshots(1) == []
        for _ in range(2):
            await kvm_bench.hypervisor.let_go(1)
        assert kvm_bench.domain(1).listAllSnapshots(0) == []

    async def test_beside_checkpoints_it_is_held_while_it_runs(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, running=True)
        domain = kvm_bench.domain(1)
        domain.checkpointCreateXML("<domaincheckpoint><name>c1</name></domaincheckpoint>", 0)
        await kvm_bench.hypervisor.hold(1)
        await kvm_bench.hypervisor.cut_power(1)
        assert [one.getName() for one in domain.listAllSnapshots(0)] == ["vps-job"]
        await kvm_bench.hypervisor.let_go(1)
        await kvm_bench.hypervisor.hold(1)  # off: libvirt 9 does not accept an entry then, which is not a failure
        await kvm_bench.hypervisor.let_go(1)
        assert domain.listAllSnapshots(0) == []
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.complete

    async def test_one_redefined_without_its_mark_is_found_until_released(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        devices = [disk(kvm_bench.path(1, target)) for target in ("vda", "vdb")]
        await kvm_bench.hypervisor.hold(1)
        kvm_bench.connection.defineXML(kvm_bench.lab.domain_xml("server-1", devices))
        assert await kvm_bench.hypervisor.domains() == []
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await kvm_bench.hypervisor.start(1)
        assert await kvm_bench.hypervisor.power(1) is Power.ON
        await kvm_bench.hypervisor.let_go(1)
        with pytest.raises(DomainNotFound):
            await kvm_bench.hypervisor.power(1)

    async def test_the_next_process_finds_a_redefined_one_by_its_identity(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.hold(1)
        identity = await kvm_bench.hypervisor.identity(1)
        devices = [disk(kvm_bench.path(1, target)) for target in ("vda", "vdb")]
        kvm_bench.connection.defineXML(kvm_bench.lab.domain_xml("server-1", devices))
        after = await KvmHypervisor.open(kvm_bench.lab.uri)
        try:
            with pytest.raises(DomainNotFound):
                await after.power(1)
            after.recall(1, identity)
            assert await after.identity(1) == identity
            await kvm_bench.hypervisor.adopt("server-1", server_id=2, account_id=77)
            with pytest.raises(DomainNotFound):
                await after.power(1)
            await kvm_bench.add_server(3, disks=1)
            after.recall(3, identity)  # after another one: adopted entries come before it
            assert await after.identity(3) != identity
        finally:
            await after.close()

    async def test_one_that_was_given_to_another_server_is_not_found(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.hold(1)
        await kvm_bench.hypervisor.adopt("server-1", server_id=2, account_id=77)
        with pytest.raises(DomainNotFound):
            await kvm_bench.hypervisor.power(1)


class TestInUse:
    async def test_a_server_that_is_backed_up_is_in_use(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, running=True)
        await kvm_bench.hypervisor.refuse_if_in_use(1)
        domain = kvm_bench.domain(1)
        scratch = kvm_bench.lab.disk_path("scratch")
        server = f"<server transport='unix' socket='{kvm_bench.lab.folder}/nbd'/>"
        disks = f"<disk name='vda' backup='yes' type='file'><scratch file='{scratch}'/></disk>"
        xml = f"<domainbackup mode='pull'>{server}<disks>{disks}<disk name='vdb' backup='no'/></disks></domainbackup>"
        await asyncio.to_thread(domain.backupBegin, xml, None, 0)
        for call in (kvm_bench.hypervisor.refuse_if_in_use, kvm_bench.hypervisor.layout, kvm_bench.hypervisor.hold):
            with pytest.raises(ServerInUse, match="backed up"):
                await call(1)
        await asyncio.to_thread(domain.abortJob)
        async with asyncio.timeout(60):
            while domain.jobStats(0).get("type"):  # noqa: ASYNC110 - what QEMU does
                await asyncio.sleep(0.05)
        await kvm_bench.hypervisor.layout(1)

    async def test_a_server_whose_disk_is_copied_is_in_use(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, running=True)
        domain = kvm_bench.domain(1)
        copy = kvm_bench.lab.disk_path("copy")
        xml = f"<disk type='file'><source file='{copy}'/><driver type='qcow2'/></disk>"
        await asyncio.to_thread(domain.blockCopy, "vdb", xml, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
        with pytest.raises(ServerInUse, match="disk vdb is being copied"):
            await kvm_bench.hypervisor.refuse_if_in_use(1)
        await asyncio.to_thread(domain.blockJobAbort, "vdb", 0)
        await kvm_bench.hypervisor.refuse_if_in_use(1)
