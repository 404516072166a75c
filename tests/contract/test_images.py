"""Images as providers have them: refusals before the stop, damage, bitmaps, sizes, unusual chains, foreign IDs."""

import os
import signal
import struct
import subprocess
import xml.etree.ElementTree as ET
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libvirt
import pytest

from deploy.lab import domains
from deploy.lab.domain import disk
from deploy.lab.lab import make_disk
from drivers import image_locks, qcow2
from drivers.base import (
    DiskCorrupt,
    DiskFailed,
    DriverError,
    InvalidState,
    Power,
    ServerInUse,
    SnapshotNotFound,
    SnapshotSpec,
    UnsupportedServer,
)
from drivers.image_locks import Holder
from drivers.kvm import disks
from drivers.kvm.disks_xml import BackingFile, FileDisk
from tests.contract.kvm_bench import (
    KvmBench,
    break_a_cluster,
    held,
    image_options,
    qemu_img,
    read_text,
    write_text,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

TAG = "vps-801"
SPEC = SnapshotSpec(tag=TAG, name="n", description="", created_at=datetime(2025, 1, 15, tzinfo=UTC))
SECRET = ("--object", "secret,id=s,data=abc")


class TestRefusedBeforeTheStop:
    @pytest.mark.parametrize(
        ("odd", "text"),
        [
            ("encrypted base", "backing file of disk vdb is encrypted"),
            ("luks base", "backing file of disk vdb is encrypted"),
            ("base's base missing", "backing file of disk vdb is missing"),
            ("base's base of no format", "does not state the format"),
            ("base is a folder", "neither a file nor a block device"),
            ("base is itself", "is a loop"),
            ("bases in a circle", "is a loop"),
            ("base of another format", "cannot be read as qcow2"),
            ("base over the network", "backing file of disk vdb is not a file"),
            ("json: over the network", "backing file of disk vdb is not a file"),
            ("json: relative", "relative path in its options"),
            ("json: odd options", "unsupported option"),
            ("json: no JSON", "invalid name"),
            ("json: two formats", "two different formats"),
            ("one bit", "1-bit refcounts"),
            ("two bits", "2-bit refcounts"),
            ("four bits and full", "maximum number of snapshots: 13"),
            ("unknown feature", "cannot be read as qcow2"),
            ("base with an unknown feature", "cannot be read as qcow2"),
            ("broken bitmaps", "disk vdb cannot be read|QEMU cannot open disk vdb"),
            ("data file", "external data file"),
            ("base of which only QEMU knows", "QEMU cannot open disk vdb with all its backing files"),
            ("base that may name other files", "a backing file has the format vmdk, which is not supported"),
        ],
    )
    async def test_an_image_that_would_fail_later_is_refused_by_name(
        self, kvm_bench: KvmBench, odd: str, text: str
    ) -> None:
        folder = kvm_bench.lab.disk_path("x").parent
        plain, path = make_disk(folder / "plain"), make_odd(folder, odd)
        await kvm_bench.add_domain(1, [disk(plain), disk(path)])
        with pytest.raises(UnsupportedServer, match=text):
            await kvm_bench.hypervisor.layout(1)
        with pytest.raises(DriverError, match="vdb"):
            await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert (await qcow2.image(str(plain))).tags == ()

    @pytest.mark.parametrize(
        "name",
        [
            'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{base}"}}}}',
            'json:{{"file":{{"filename":"{base}"}}}}',
            'json:{{"driver":"qcow2","file.driver":"file","file.filename":"{base}"}}',
            'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{base}","discard":"unmap"}},"read-only":true}}',
            "base",
        ],
    )
    async def test_a_base_is_followed_by_whatever_name_qemu_takes(self, kvm_bench: KvmBench, name: str) -> None:
        base = make_disk(kvm_bench.lab.disk_path("base"))
        write_text(base, "of the base")
        path = make_disk(kvm_bench.lab.disk_path("over"))
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", name.format(base=base), "-F", "qcow2", str(path))
        await kvm_bench.add_domain(1, [disk(path)])
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        write_text(path, "own")
        await kvm_bench.hypervisor.revert(1, TAG)
        assert read_text(path) == "of the base"

    async def test_a_base_that_someone_writes_to_is_refused_and_one_that_others_read_is_not(
        self, kvm_bench: KvmBench
    ) -> None:
        base = make_disk(kvm_bench.lab.disk_path("base"))
        path = make_disk(kvm_bench.lab.disk_path("over"), backing=base)
        other = make_disk(kvm_bench.lab.disk_path("other"), backing=base)
        await kvm_bench.add_domain(1, [disk(path)])
        async with held(other, seconds=60):
            assert image_locks.holder(str(base)) is Holder.READER
            await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        async with held(base, seconds=60):
            with pytest.raises(UnsupportedServer, match="backing file of disk vda is being written to"):
                await kvm_bench.hypervisor.layout(1)

    @pytest.mark.parametrize(
        ("at", "form", "value", "text"),
        [
            (72, ">Q", 1 << 2, "it stores its data in an external data file"),
            (60, ">I", 1 << 20, "it has too many snapshots: 1048576"),
            (20, ">I", 63, "its cluster_bits are out of range: 63"),
        ],
    )
    async def test_a_header_that_a_guest_has_forged_while_it_ran_stops_nobody(
        self, kvm_bench: KvmBench, at: int, form: str, value: int, text: str
    ) -> None:
        await kvm_bench.add_server(1, running=True)
        await kvm_bench.add_server(2, running=True)
        path = kvm_bench.path(1, "vda")
        honest = path.read_bytes()[:512]
        patch(path, at, form, value)
        with pytest.raises(UnsupportedServer, match=f"disk vda cannot be read as qcow2: {text}"):
            await kvm_bench.hypervisor.layout(1)
        with pytest.raises(DriverError):
            await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert await kvm_bench.hypervisor.power(1) is Power.ON
        await kvm_bench.hypervisor.layout(2)
        with path.open("r+b") as file:
            file.write(honest)
        await kvm_bench.hypervisor.layout(1)

    async def test_a_disk_that_others_hold_is_refused_while_the_server_is_off(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        vdb = kvm_bench.path(1, "vdb")
        over = make_disk(kvm_bench.lab.disk_path("over"), backing=vdb)
        found = [FileDisk(target="vdb", path=str(vdb))]
        async with held(vdb, seconds=60):
            with pytest.raises(ServerInUse, match="vdb is being written to by another program"):
                await disks.refuse_held(found, patience_seconds=0)
        async with held(over, seconds=60):
            with pytest.raises(ServerInUse, match="vdb is being read by another program"):
                await disks.refuse_held(found, patience_seconds=0)
        await disks.refuse_held(found, patience_seconds=0)
        await kvm_bench.hypervisor.start(1)
        assert image_locks.holder(str(vdb)) is Holder.WRITER
        await kvm_bench.hypervisor.layout(1)  # its own guest may use it

    async def test_a_file_that_was_put_in_the_place_of_the_one_that_the_guest_uses_is_refused(
        self, kvm_bench: KvmBench
    ) -> None:
        await kvm_bench.add_server(1, running=True)
        await kvm_bench.hypervisor.layout(1)
        path = kvm_bench.path(1, "vdb")
        qemu_img("convert", "-U", "-f", "qcow2", "-O", "qcow2", str(path), f"{path}.new")
        path.with_name(f"{path.name}.new").rename(path)
        with pytest.raises(InvalidState, match="disk vdb is not the one that the running server uses"):
            await kvm_bench.hypervisor.layout(1)

    @pytest.mark.parametrize("link", ["symbolic", "hard"])
    async def test_one_file_twice_is_refused(self, kvm_bench: KvmBench, link: str) -> None:
        path, other = make_disk(kvm_bench.lab.disk_path("one")), kvm_bench.lab.disk_path("two")
        (os.symlink if link == "symbolic" else os.link)(path, other)
        await kvm_bench.add_domain(1, [disk(path), disk(other)])
        with pytest.raises(UnsupportedServer, match="disk vdb uses the same file as disk vda"):
            await kvm_bench.hypervisor.layout(1)

    @pytest.mark.parametrize(
        ("listed", "ends", "fits"),
        [
            (None, False, True),
            (("base",), False, True),
            (("base",), True, False),
            (("link to base",), False, True),
            (("base", "root"), True, True),
            (("base", "root"), False, True),
            (("root",), False, False),
            (("other",), False, False),
            (("base", "root", "other"), True, False),
            (("gone",), False, False),
            ((), True, False),
        ],
    )
    async def test_a_definition_that_names_another_chain_than_the_image_is_refused(
        self, tmp_path: Path, listed: tuple[str, ...] | None, ends: bool, fits: bool
    ) -> None:
        root = make_disk(tmp_path / "root")
        base = make_disk(tmp_path / "base", backing=root)
        path = make_disk(tmp_path / "top", backing=base)
        make_disk(tmp_path / "other")
        (tmp_path / "link to base").symlink_to(base)
        chain = (
            listed
            if listed is None
            else [BackingFile(kind="file", path=str(tmp_path / n), format="qcow2") for n in listed]
        )
        found = FileDisk(
            target="vda", path=str(path), backing=None if chain is None else tuple(chain), backing_ends=ends
        )
        refused = None
        try:
            await disks.refuse_unfit(found, await disks.readable(found))
        except UnsupportedServer as error:
            refused = str(error)
        assert refused == (None if fits else "the definition of disk vda names a different backing file than its image")


class TestForeignSnapshots:
    @pytest.mark.parametrize("running", [False, True])
    async def test_an_id_that_equals_a_tag_is_not_taken_for_the_tag(self, kvm_bench: KvmBench, running: bool) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "foreign")
        for target in ("vda", "vdb"):
            kvm_bench.plant_tag(1, target, "foreign123456")
            give_id(kvm_bench.path(1, target), TAG)
        assert [tagged.id for tagged in (await qcow2.image(str(kvm_bench.path(1, "vda")))).snapshots] == [TAG]
        kvm_bench.write(1, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        kvm_bench.write(1, "B")
        await kvm_bench.hypervisor.revert(1, TAG)
        assert kvm_bench.read(1) == {"vda": "A", "vdb": "A"}
        assert await kvm_bench.hypervisor.is_at(1, TAG)
        assert await kvm_bench.hypervisor.size_mb(1, TAG) == 2
        if running:
            await kvm_bench.hypervisor.start(1)
        await kvm_bench.hypervisor.delete_snapshot(1, TAG)
        if running:
            await kvm_bench.hypervisor.cut_power(1)
        (left,) = await kvm_bench.hypervisor.snapshots(1)
        assert (left.tag, left.targets) == ("foreign", frozenset({"vda", "vdb"}))
        assert await kvm_bench.hypervisor.repair(1) == ()

    async def test_a_tag_that_an_image_has_twice_is_not_reverted_to_and_is_deleted_whole(
        self, kvm_bench: KvmBench
    ) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        kvm_bench.write(1, "B")
        kvm_bench.plant_tag(1, "vdb", TAG)
        with pytest.raises(SnapshotNotFound, match="vdb"):
            await kvm_bench.hypervisor.revert(1, TAG)
        with pytest.raises(SnapshotNotFound, match="vdb"):
            await kvm_bench.hypervisor.size_mb(1, TAG)
        assert not await kvm_bench.hypervisor.is_at(1, TAG)
        assert kvm_bench.read(1) == {"vda": "B", "vdb": "B"}
        await kvm_bench.hypervisor.delete_snapshot(1, TAG)
        assert await kvm_bench.hypervisor.snapshots(1) == []


class TestWhetherADiskIsAtATag:
    async def test_until_one_disk_is_written_to(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        assert not await kvm_bench.hypervisor.is_at(1, TAG)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert await kvm_bench.hypervisor.is_at(1, TAG)
        write_text(kvm_bench.path(1, "vdb"), "B")
        assert not await kvm_bench.hypervisor.is_at(1, TAG)
        await kvm_bench.hypervisor.revert(1, TAG, targets=frozenset({"vdb"}))
        assert await kvm_bench.hypervisor.is_at(1, TAG)

    async def test_a_guest_that_has_booted_has_written(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await kvm_bench.hypervisor.start(1)
        with pytest.raises(InvalidState):
            await kvm_bench.hypervisor.is_at(1, TAG)
        await kvm_bench.hypervisor.cut_power(1)


class TestBitmaps:
    async def test_they_go_and_then_the_disks_can_be_reverted(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, disks=3)
        kvm_bench.write(1, "A")
        add_bitmap(kvm_bench.path(1, "vda"), "enabled", "disabled", "-odd, name")
        qemu_img("bitmap", "--disable", "-f", "qcow2", str(kvm_bench.path(1, "vda")), "disabled")
        add_bitmap(kvm_bench.path(1, "vdb"), "in use")
        leave_in_use(kvm_bench.path(1, "vdb"))
        assert [(b.name, b.in_use) for b in (await qcow2.image(str(kvm_bench.path(1, "vdb")))).bitmaps] == [
            ("in use", True)
        ]
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert [len(found.bitmaps) for found in (await kvm_bench.hypervisor.layout(1)).disks] == [3, 1, 0]
        kvm_bench.write(1, "B")
        with pytest.raises(DiskFailed):
            await kvm_bench.hypervisor.revert(1, TAG)
        assert await kvm_bench.hypervisor.clear_bitmaps(1) == ("vda", "vdb")
        assert await kvm_bench.hypervisor.clear_bitmaps(1) == ()
        await kvm_bench.hypervisor.revert(1, TAG)
        assert kvm_bench.read(1) == {"vda": "A", "vdb": "A", "vdc": "A"}
        assert await kvm_bench.hypervisor.repair(1) == ()

    async def test_libvirts_checkpoints_go_with_them(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, running=True)
        for name in ("c1", "c2"):
            kvm_bench.domain(1).checkpointCreateXML(f"<domaincheckpoint><name>{name}</name></domaincheckpoint>")
        with pytest.raises(InvalidState):
            await kvm_bench.hypervisor.clear_bitmaps(1)
        await kvm_bench.hypervisor.cut_power(1)
        assert await kvm_bench.hypervisor.clear_bitmaps(1) == ("vda", "vdb")
        assert kvm_bench.domain(1).listAllCheckpoints() == []
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)


class TestSizes:
    async def test_a_disk_keeps_its_size_and_gets_the_snapshots_data(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        qemu_img("resize", "-q", "-f", "qcow2", str(kvm_bench.path(1, "vdb")), "128M")
        sizes = {found.target: found.virtual_bytes for found in (await kvm_bench.hypervisor.layout(1)).disks}
        assert sizes == {"vda": 64 << 20, "vdb": 128 << 20}
        kvm_bench.write(1, "B")
        await kvm_bench.hypervisor.revert(1, TAG)
        assert (await qcow2.image(str(kvm_bench.path(1, "vdb")))).virtual_bytes == 64 << 20
        for _ in range(2):
            await kvm_bench.hypervisor.resize(1, sizes)
            assert {f.target: f.virtual_bytes for f in (await kvm_bench.hypervisor.layout(1)).disks} == sizes
        await kvm_bench.hypervisor.resize(1, {"vdb": 1 << 20})  # never smaller
        assert (await qcow2.image(str(kvm_bench.path(1, "vdb")))).virtual_bytes == 128 << 20
        assert kvm_bench.read(1) == {"vda": "A", "vdb": "A"}
        assert await kvm_bench.hypervisor.resize(1, {"vdx": 1 << 30, "vdb": 1}) == {"vdb"}

    async def test_an_old_format_disk_with_a_snapshot_is_refused_growth(self, kvm_bench: KvmBench) -> None:
        path = kvm_bench.lab.disk_path("old")
        qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", str(path), "64M")
        assert (await qcow2.image(str(path))).can_grow
        await kvm_bench.add_domain(1, [disk(path)])
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        found = await qcow2.image(str(path))
        assert (found.version, found.can_grow) == (2, False)
        with pytest.raises(DiskFailed, match="vda: it could not be enlarged"):
            await kvm_bench.hypervisor.resize(1, {"vda": 128 << 20})
        await kvm_bench.hypervisor.start(1)
        with pytest.raises(InvalidState):
            await kvm_bench.hypervisor.resize(1, {"vda": 128 << 20})


class TestDamage:
    async def test_a_used_cluster_that_counts_as_free_is_repaired(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        count_as_free(kvm_bench.path(1, "vdb"))
        assert await kvm_bench.hypervisor.repair(1) == ("vdb",)
        assert await kvm_bench.hypervisor.repair(1) == ()
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        for target in ("vda", "vdb"):  # over which it would have been written
            write(kvm_bench.path(1, target), "write -q -P 7 0 8M")
        assert kvm_bench.read(1) == {"vda": "A", "vdb": "A"}

    async def test_leaks_are_repaired_silently(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        path = kvm_bench.path(1, "vdb")
        kvm_bench.plant_tag(1, "vdb", "foreign")
        with path.open("r+b") as file:  # the header loses the snapshot, whose clusters stay counted
            file.seek(60)
            file.write(struct.pack(">I", 0))
        assert (await qcow2.damage(str(path))).leaks
        assert await kvm_bench.hypervisor.repair(1) == ()
        assert not (await qcow2.damage(str(path))).leaks
        assert kvm_bench.read(1) == {"vda": "A", "vdb": "A"}

    async def test_a_repair_beside_valid_bitmaps_keeps_every_snapshot(self, kvm_bench: KvmBench) -> None:
        """qemu-img alone loses them all."""
        await kvm_bench.add_server(1, disks=1)
        kvm_bench.write(1, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        path = kvm_bench.path(1, "vda")
        for name in ("b0", "b1"):
            qemu_img("bitmap", "--add", "-f", "qcow2", str(path), name)
        kvm_bench.tear(1, "vda")
        assert await kvm_bench.hypervisor.repair(1) == ("vda",)
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.complete
        image = await qcow2.image(str(path))
        assert [bitmap.in_use for bitmap in image.bitmaps] == [True, True]
        assert not (await qcow2.damage(str(path))).any
        await kvm_bench.hypervisor.clear_bitmaps(1)
        await kvm_bench.hypervisor.revert(1, SPEC.tag)
        assert kvm_bench.read(1) == {"vda": "A"}

    @pytest.mark.parametrize("features", [0, 1 << 40])
    async def test_a_repair_of_an_image_that_another_program_wrote_keeps_every_snapshot(
        self, kvm_bench: KvmBench, features: int
    ) -> None:
        """A program that does not support bitmaps, or that uses a feature unknown to QEMU."""
        await kvm_bench.add_server(1, disks=1)
        kvm_bench.write(1, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        path = kvm_bench.path(1, "vda")
        qemu_img("bitmap", "--add", "-f", "qcow2", str(path), "b0")
        kvm_bench.tear(1, "vda")
        patch(path, 88, ">Q", features)  # the header's autoclear features
        assert await kvm_bench.hypervisor.repair(1) == ("vda",)
        await kvm_bench.hypervisor.revert(1, SPEC.tag)
        assert kvm_bench.read(1) == {"vda": "A"}

    async def test_lost_space_is_left_alone_while_its_repair_would_cost_valid_bitmaps(
        self, kvm_bench: KvmBench
    ) -> None:
        await kvm_bench.add_server(1, disks=1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        path = kvm_bench.path(1, "vda")
        kvm_bench.plant_tag(1, "vda", "foreign")
        patch(path, 60, ">I", 1)  # the header loses the second snapshot, whose clusters stay counted
        qemu_img("bitmap", "--add", "-f", "qcow2", str(path), "b0")
        assert (await qcow2.damage(str(path))).leaks
        assert await kvm_bench.hypervisor.repair(1) == ()
        image = await qcow2.image(str(path))
        assert (image.tags, [bitmap.in_use for bitmap in image.bitmaps]) == ((SPEC.tag,), [False])
        qemu_img("bitmap", "--remove", "-f", "qcow2", str(path), "b0")  # the backup product has ended its chain
        assert await kvm_bench.hypervisor.repair(1) == ()
        assert not (await qcow2.damage(str(path))).any

    async def test_an_image_that_a_killed_qemu_left_dirty_is_repaired(self, kvm_bench: KvmBench) -> None:
        path = kvm_bench.path(1, "vda")
        path.parent.mkdir(exist_ok=True)
        qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", str(path), "64M")
        write_text(path, "A")
        leave_in_use(path)
        assert (await qcow2.image(str(path))).dirty
        await kvm_bench.add_domain(1, [disk(path)])
        assert await kvm_bench.hypervisor.repair(1) == ()
        assert not (await qcow2.damage(str(path))).any
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert read_text(path) == "A"

    async def test_a_repair_that_costs_snapshots_is_reported(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        path = kvm_bench.path(1, "vdb")
        (at,) = struct.unpack(">Q", path.read_bytes()[64:72])
        patch(path, at + 8, ">I", 1 << 30)  # entries of the snapshot's L1 table
        with pytest.raises(DiskCorrupt, match="vdb"):
            await kvm_bench.hypervisor.repair(1)

    async def test_damage_that_no_check_repairs_is_named_and_the_server_starts(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        break_a_cluster(kvm_bench.path(1, "vdb"))
        for _ in range(2):
            with pytest.raises(DiskCorrupt, match="vdb"):
                await kvm_bench.hypervisor.repair(1)
        await kvm_bench.hypervisor.start(1)
        await kvm_bench.hypervisor.cut_power(1)


class TestDeletingUnderAGuest:
    @pytest.mark.parametrize("odd", ["relative base", "copy_on_read", "symlink", "json base"])
    async def test_it_works_however_qemu_names_the_disks(self, kvm_bench: KvmBench, odd: str) -> None:
        lab = kvm_bench.lab
        base = make_disk(lab.disk_path("base"))
        paths = [lab.disk_path("one"), lab.disk_path("two")]
        for path in paths:
            make_disk(path)
            if odd == "relative base":
                qemu_img("rebase", "-u", "-f", "qcow2", "-b", "base", "-F", "qcow2", str(path))
            if odd == "json base":
                # the form that libvirt 9.0 starts; it does not support {"driver": "qcow2", "file": …}
                name = f'json:{{"file":{{"driver":"file","filename":"{base}"}}}}'
                qemu_img("rebase", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", str(path))
        if odd == "symlink":
            (lab.folder / "disks" / "elsewhere").mkdir()
            for path in paths:
                path.symlink_to(path.rename(path.parent / "elsewhere" / path.name))
        await kvm_bench.add_domain(1, [disk(path) for path in paths])
        if odd == "copy_on_read":
            xml = kvm_bench.domain(1).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            domains.define(kvm_bench.connection, xml.replace("discard='unmap'", "discard='unmap' copy_on_read='on'"))
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await kvm_bench.hypervisor.start(1)
        assert odd != "copy_on_read" or "copy-on-read" in ask(kvm_bench, "query-named-block-nodes")
        await kvm_bench.hypervisor.delete_snapshot(1, TAG)
        await kvm_bench.hypervisor.delete_snapshot(1, TAG)
        assert await kvm_bench.hypervisor.snapshots(1) == []
        assert "vps-delete" not in ask(kvm_bench, "query-jobs")
        await kvm_bench.hypervisor.cut_power(1)
        assert await kvm_bench.hypervisor.repair(1) == ()
        assert [(await qcow2.image(str(path))).tags for path in paths] == [(), ()]

    async def test_disks_that_lack_the_tag_and_disks_that_the_guest_does_not_have_yet_are_fine(
        self, kvm_bench: KvmBench
    ) -> None:
        await kvm_bench.add_server(1, disks=3)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        kvm_bench.drop_tag(1, "vda", TAG)
        domain = kvm_bench.domain(1)
        (vdc,) = [text for text in disk_elements(domain) if "vdc" in text]
        domain.detachDeviceFlags(vdc, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        await kvm_bench.hypervisor.start(1)
        domain.attachDeviceFlags(vdc, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        await kvm_bench.hypervisor.delete_snapshot(1, TAG)
        assert await kvm_bench.hypervisor.snapshots(1) == []
        await kvm_bench.hypervisor.cut_power(1)
        assert await kvm_bench.hypervisor.repair(1) == ()

    async def test_a_guest_that_dies_meanwhile_leaves_the_rest_to_the_next_call(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await kvm_bench.hypervisor.start(1)
        os.kill(qemu_pid(kvm_bench), signal.SIGKILL)
        with suppress(DriverError):  # libvirt may already have noticed
            await kvm_bench.hypervisor.delete_snapshot(1, TAG)
        assert await kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60)
        await kvm_bench.hypervisor.delete_snapshot(1, TAG)
        assert await kvm_bench.hypervisor.snapshots(1) == []


def make_odd(folder: Path, odd: str) -> Path:  # noqa: C901, PLR0912, PLR0915 - a table of images
    path, base = folder / "odd", folder / "base"
    feature = 1 << 40

    def over(name: str | Path, form: str = "qcow2") -> Path:
        make_disk(path)
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", str(name), "-F", form, str(path))
        return path

    match odd:
        case "encrypted base":
            options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=200"
            qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-o", options, str(base), "64M")
            return over(base)
        case "luks base":
            qemu_img("create", "-q", *SECRET, "-f", "luks", "-o", "key-secret=s,iter-time=200", str(base), "64M")
            return over(base, "luks")
        case "base's base missing":
            make_disk(base, backing=make_disk(folder / "root"))
            over(base)
            (folder / "root").unlink()
        case "base's base of no format":
            make_disk(base, backing=make_disk(folder / "root"))
            forget_backing_format(base)
            over(base)
        case "base is a folder":
            base.mkdir()
            over(base, "raw")
        case "base is itself":
            over(path)
        case "bases in a circle":
            make_disk(base)
            over(base)
            qemu_img("rebase", "-u", "-f", "qcow2", "-b", str(path), "-F", "qcow2", str(base))
        case "base of another format":
            over(make_disk(base, format="raw"))
        case "base over the network":
            over("nbd://localhost/x", "raw")
        case "json: over the network":
            over('json:{"driver":"raw","file":{"driver":"nbd","host":"localhost"}}', "raw")
        case "json: relative":
            make_disk(base)
            over('json:{"file":{"driver":"file","filename":"base"}}')
        case "json: odd options":
            make_disk(base)
            over(f'json:{{"driver":"raw","offset":512,"file":{{"driver":"file","filename":"{base}"}}}}', "raw")
        case "json: no JSON":
            over("json:{")
        case "json: two formats":
            make_disk(base)
            over(f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{base}"}}}}')
        case "one bit" | "two bits" | "four bits and full":
            bits = {"one": 1, "two": 2, "four": 4}[odd.split(maxsplit=1)[0]]
            qemu_img("create", "-q", "-f", "qcow2", "-o", f"refcount_bits={bits}", str(path), "64M")
            for number in range(13 if bits == 4 else 0):
                qemu_img("snapshot", "-c", f"foreign-{number}", str(path))
        case "unknown feature":
            patch(make_disk(path), 72, ">Q", feature)
        case "base with an unknown feature":
            over(make_disk(base))
            patch(base, 72, ">Q", feature)
        case "broken bitmaps":
            add_bitmap(make_disk(path), "b0")
            at = path.read_bytes().index(struct.pack(">I", 0x23852875))
            patch(path, at + 24, ">Q", 1 << 62)  # the extension's offset of the bitmap list
        case "data file":
            qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={path}.raw", str(path), "64M")
        case "base of which only QEMU knows":
            base.write_bytes(b"no vdi" * 1000)
            over(base, "vdi")
        case "base that may name other files":
            qemu_img("create", "-q", "-f", "vmdk", str(base), "64M")
            over(base, "vmdk")
        case _:
            raise AssertionError(odd)
    return path


def forget_backing_format(path: Path) -> None:
    # QEMU skips unknown header extensions
    patch(path, path.read_bytes().index(struct.pack(">I", 0xE2792ACA)), ">I", 0x12345678)


def patch(path: Path, at: int, form: str, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, value))


def give_id(path: Path, snapshot_id: str) -> None:
    """Give this ID to the image's only snapshot and shorten its name accordingly."""
    with path.open("r+b") as file:
        file.seek(64)
        (at,) = struct.unpack(">Q", file.read(8))
        file.seek(at)
        entry = file.read(40)
        id_bytes, name_bytes = struct.unpack_from(">HH", entry, 12)
        (extra_bytes,) = struct.unpack_from(">I", entry, 36)
        file.seek(at + 40 + extra_bytes)
        name = file.read(id_bytes + name_bytes)[id_bytes:]
        text = snapshot_id.encode() + name
        file.seek(at + 12)
        file.write(struct.pack(">HH", len(snapshot_id), id_bytes + name_bytes - len(snapshot_id)))
        file.seek(at + 40 + extra_bytes)
        file.write(text[: id_bytes + name_bytes])


def count_as_free(path: Path) -> None:
    """Free a cluster that the disk uses, so that the next new cluster would overwrite it."""
    header = path.read_bytes()[:104]
    (cluster_bits,) = struct.unpack_from(">I", header, 20)
    with path.open("r+b") as file:
        file.seek(struct.unpack_from(">Q", header, 48)[0])
        (block_at,) = struct.unpack(">Q", file.read(8))
        file.seek(block_at)
        counts = struct.unpack(f">{1 << (cluster_bits - 1)}H", file.read(1 << cluster_bits))
        last = max(index for index, count in enumerate(counts) if count)
    patch(path, block_at + 2 * last, ">H", 0)


def add_bitmap(path: Path, *names: str) -> None:
    for name in names:
        qemu_img("bitmap", "--add", "-f", "qcow2", "--", str(path), name)


def leave_in_use(path: Path) -> None:
    """Mark the bitmaps as in use, as a killed QEMU leaves them."""
    subprocess.run(
        ["qemu-io", "--image-opts", image_options(path), "-c", "write -q 0 64k", "-c", "flush", "-c", "abort"],
        check=False,
        capture_output=True,
    )


def write(path: Path, command: str) -> None:
    subprocess.run(["qemu-io", "--image-opts", image_options(path), "-c", command], check=True, capture_output=True)


def ask(bench: KvmBench, command: str) -> str:
    import libvirt_qemu  # noqa: PLC0415 - as the driver does

    answer: str = libvirt_qemu.qemuMonitorCommand(bench.domain(1), f'{{"execute": "{command}"}}', 0)
    return answer


def disk_elements(domain: Any) -> list[str]:
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    return [ET.tostring(element, encoding="unicode") for element in ET.fromstring(xml).iterfind("./devices/disk")]  # noqa: S314 - libvirt's own output


def qemu_pid(bench: KvmBench) -> int:
    return int((bench.lab.folder / "run" / "qemu" / "server-1.pid").read_text())
