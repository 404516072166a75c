"""A server's surroundings: domains with the same files, backing files, overlays, requirements of its next start."""

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.lab.domain import Device, disk
from deploy.lab.lab import make_disk
from drivers import image_chain
from drivers.base import DisksDiffer, InvalidState, ServerInUse, SnapshotSpec, StartFailed, UnsupportedServer
from drivers.kvm import survey_libvirt
from tests.contract.kvm_bench import KvmBench, qemu_img, read_text, write_text
from tests.walking import walk
from worker.store.model import JobKind, NoteCode

pytestmark = pytest.mark.asyncio(loop_scope="session")

SPEC = SnapshotSpec(tag="vps-801", name="before", description="", created_at=datetime(2025, 1, 15, tzinfo=UTC))


def linked(path: Path, to: Path) -> Path:
    os.link(to, path)
    return path


def symlinked(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


def over(path: Path, base: Path) -> Path:
    return make_disk(path, backing=base)


class TestOtherDomains:
    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            (lambda _path, to: to, "also a disk of another server"),
            (linked, "also a disk of another server"),
            (symlinked, "also a disk of another server"),
            (over, "a disk of another server is based on it"),
        ],
    )
    async def test_a_file_in_two_servers_is_found_and_refused_for_both(
        self, kvm_bench: KvmBench, other: Callable[[Path, Path], Path], reason: str
    ) -> None:
        await kvm_bench.add_server(1, disks=1)
        theirs = other(kvm_bench.lab.disk_path("theirs"), kvm_bench.path(1, "vda"))
        await kvm_bench.add_domain(2, [disk(theirs)], adopted=False)
        with pytest.raises(UnsupportedServer, match=reason) as refused:
            await kvm_bench.hypervisor.layout(1)
        assert "server-2" not in str(refused.value)
        (found,) = (await kvm_bench.hypervisor.shared_disks())[1]
        assert found.target == "vda"
        assert reason in found.reason

    async def test_a_disk_that_another_server_only_reads_is_refused_and_one_that_both_only_read_is_not(
        self, kvm_bench: KvmBench
    ) -> None:
        common = Device(path=make_disk(kvm_bench.lab.disk_path("common")), readonly=True)
        await kvm_bench.add_domain(1, [disk(make_disk(kvm_bench.path(1, "vda"))), common])
        await kvm_bench.add_domain(2, [disk(make_disk(kvm_bench.path(2, "vda"))), common])
        await kvm_bench.hypervisor.layout(1)
        await kvm_bench.add_domain(3, [Device(path=kvm_bench.path(1, "vda"), readonly=True)], adopted=False)
        with pytest.raises(UnsupportedServer, match="another server"):
            await kvm_bench.hypervisor.layout(1)
        await kvm_bench.hypervisor.layout(2)

    async def test_clones_of_one_template_share_nothing_that_matters(self, kvm_bench: KvmBench) -> None:
        template = make_disk(kvm_bench.lab.disk_path("template"))
        await kvm_bench.add_domain(9, [disk(template)], adopted=False)
        for server_id in (1, 2):
            clone = over(kvm_bench.path(server_id, "vda"), template)
            await kvm_bench.add_domain(server_id, [disk(clone)])
        assert await kvm_bench.hypervisor.shared_disks() == {}
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await kvm_bench.hypervisor.revert(1, SPEC.tag)

    async def test_a_copy_of_a_server_does_not_take_its_snapshots_along(self, kvm_bench: KvmBench) -> None:
        """A clone as `virt-clone` makes it, with the metadata of the original."""
        await kvm_bench.add_server(1, disks=1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await kvm_bench.hypervisor.adopt("server-1", server_id=2, account_id=78)
        (found,) = await kvm_bench.hypervisor.snapshots(2)
        assert (found.spec, found.contents) == (None, None)


class TestBases:
    @pytest.mark.parametrize("what", ["merged", "replaced", "written to"])
    async def test_a_snapshot_whose_base_is_not_what_it_was_is_not_restored(
        self, kvm_bench: KvmBench, what: str
    ) -> None:
        base, path = kvm_bench.lab.disk_path("base"), kvm_bench.path(1, "vda")
        write_text(make_disk(base), "of the base")
        await kvm_bench.add_domain(1, [disk(over(path, base))])
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert (await kvm_bench.hypervisor.restore_plan(1, SPEC.tag)).targets == ("vda",)
        if what == "merged":
            qemu_img("rebase", "-f", "qcow2", "-b", "", str(path))
        elif what == "replaced":
            other = make_disk(kvm_bench.lab.disk_path("other"))
            qemu_img("rebase", "-f", "qcow2", "-F", "qcow2", "-b", str(other), str(path))
        else:
            write_text(base, "of another day")
        with pytest.raises(DisksDiffer, match=r"base image .*vda|vda .*base image"):
            await kvm_bench.hypervisor.restore_plan(1, SPEC.tag)
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert not found.complete
        await kvm_bench.hypervisor.delete_snapshot(1, SPEC.tag)

    async def test_a_base_that_is_moved_with_its_times_stays_the_same(self, kvm_bench: KvmBench) -> None:
        base, path = kvm_bench.lab.disk_path("base"), kvm_bench.path(1, "vda")
        write_text(make_disk(base), "of the base")
        await kvm_bench.add_domain(1, [disk(over(path, base))])
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        moved = kvm_bench.lab.disk_path("elsewhere")
        before = image_chain.base(str(path))
        base.rename(moved)
        qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(moved), str(path))
        assert image_chain.base(str(path)) == before
        await kvm_bench.hypervisor.revert(1, SPEC.tag)
        assert read_text(path) == "of the base"

    async def test_an_overlay_of_a_backup_is_not_snapshotted(self, kvm_bench: KvmBench) -> None:
        """A snapshot of the overlay would be lost when the overlay is merged."""
        await kvm_bench.add_server(1, disks=1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        domain, path = kvm_bench.domain(1), kvm_bench.path(1, "vda")
        xml = domain.XMLDesc(0)
        overlay = over(kvm_bench.lab.disk_path("overlay"), path)
        kvm_bench.connection.defineXML(xml.replace(str(path), str(overlay)))
        with pytest.raises(ServerInUse, match="disk vda has a temporary overlay"):
            await kvm_bench.hypervisor.layout(1)
        kvm_bench.connection.defineXML(xml)
        await kvm_bench.hypervisor.layout(1)


class TestNextStart:
    async def test_a_server_that_could_not_start_again_is_not_stopped(self, kvm_bench: KvmBench) -> None:
        seed = make_disk(kvm_bench.lab.disk_path("seed.iso"), format="raw")
        devices = [
            disk(make_disk(kvm_bench.path(1, "vda"))),
            Device(path=seed, format="raw", cdrom=True, readonly=True),
        ]
        await kvm_bench.add_domain(1, devices)
        await kvm_bench.hypervisor.start(1)
        await kvm_bench.hypervisor.layout(1)
        seed.unlink()
        with pytest.raises(InvalidState, match="could not be started again: the file of cdrom sda is missing"):
            await kvm_bench.hypervisor.layout(1)
        await kvm_bench.hypervisor.cut_power(1)
        await kvm_bench.hypervisor.layout(1)  # a job makes nothing worse for a server that is off

    async def test_a_start_without_a_disk_can_be_repeated(self, kvm_bench: KvmBench) -> None:
        """For example, its storage was unavailable for a moment."""
        await kvm_bench.add_server(1, disks=1)
        path, away = kvm_bench.path(1, "vda"), kvm_bench.lab.disk_path("away")
        path.rename(away)
        with pytest.raises(StartFailed) as refused:
            await kvm_bench.hypervisor.start(1)
        assert refused.value.retryable
        assert str(path) in refused.value.cause  # for operators: libvirt's and QEMU's own words
        assert str(path) not in refused.value.detail  # for customers
        away.rename(path)
        await kvm_bench.hypervisor.start(1)

    async def test_a_file_that_was_put_in_the_place_of_the_one_in_use_is_noticed(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, disks=1, running=True)
        path = kvm_bench.path(1, "vda")
        path.unlink()  # QEMU writes to the unlinked file until it exits
        make_disk(path)
        with pytest.raises(InvalidState, match="the file of disk vda is not the one that the running server uses"):
            await kvm_bench.hypervisor.layout(1)

    async def test_a_network_card_that_the_next_start_would_lose_is_noticed(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, disks=1, running=True)
        card = "<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>"
        kvm_bench.domain(1).attachDeviceFlags(card, 1)  # VIR_DOMAIN_AFFECT_LIVE
        with pytest.raises(InvalidState, match="a network card that it would lose"):
            await kvm_bench.hypervisor.layout(1)

    async def test_live_only_vcpus_and_memory_are_reported_and_not_refused(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, disks=1)
        domain = kvm_bench.domain(1)
        room = "<maxMemory slots='2' unit='MiB'>1024</maxMemory><memory"
        cells = "<cpu><numa><cell id='0' cpus='0-1' memory='128' unit='MiB'/></numa></cpu><os>"
        xml = domain.XMLDesc(0).replace("<memory", room, 1).replace("<os>", cells, 1)
        kvm_bench.connection.defineXML(re.sub("<vcpu.*</vcpu>", "<vcpu current='1'>2</vcpu>", xml))
        await kvm_bench.hypervisor.start(1)
        assert (await kvm_bench.hypervisor.layout(1)).reduced == ()
        domain.setVcpusFlags(2, 1)  # VIR_DOMAIN_AFFECT_LIVE
        module = "<memory model='dimm'><target><size unit='MiB'>256</size><node>0</node></target></memory>"
        domain.attachDeviceFlags(module, 1)
        less = ("1 vCPU instead of 2", "128 MiB of memory instead of 384")
        assert (await kvm_bench.hypervisor.layout(1)).reduced == less
        (surveyed,) = await survey_libvirt(kvm_bench.lab.uri)
        assert surveyed.refused == ()
        assert len([note for note in surveyed.noticed if "after a job" in note]) == 2

        foretold = await walk(JobKind.CHECK_CREATE, kvm_bench.hypervisor)
        created = await walk(JobKind.CREATE, kvm_bench.hypervisor)
        assert created.failed_in is None
        assert created.told == foretold.told == {NoteCode.RESOURCES_REDUCED}
        assert (await kvm_bench.hypervisor.layout(1)).reduced == ()  # after it has started again

    async def test_a_server_whose_memory_was_saved_to_a_file_is_not_changed(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, disks=1, running=True)
        kvm_bench.domain(1).save(str(kvm_bench.lab.folder / "saved"))
        with pytest.raises(InvalidState, match="saved memory"):
            await kvm_bench.hypervisor.layout(1)
