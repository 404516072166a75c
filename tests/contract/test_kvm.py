"""Cases that only libvirt and QEMU have: unusual disks and paths, firmware, killed processes, libvirt's own list."""

import asyncio
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.lab.domain import Device, disk
from deploy.lab.lab import Lab, make_disk
from drivers import qcow2
from drivers.base import (
    DiskCorrupt,
    DiskFailed,
    DomainNotFound,
    Firmware,
    InvalidState,
    Power,
    SnapshotSpec,
    UnsupportedServer,
)
from tests.contract.harness import ACCOUNT_ID
from tests.contract.killed_writes import KilledWrites
from tests.contract.kvm_bench import (
    KvmBench,
    break_a_cluster,
    cut_off_start,
    held,
    image_options,
    qemu_img,
    read_text,
    write_text,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

SPEC = SnapshotSpec(
    tag="vps-801",
    name="before-update",
    description="as written\non two lines",
    created_at=datetime(2025, 1, 15, 18, 30, tzinfo=UTC),
)


@pytest.fixture
def killed_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KilledWrites:
    found = KilledWrites(tmp_path)
    monkeypatch.setenv("PATH", str(found.programs), prepend=os.pathsep)
    return found


class TestDisks:
    @pytest.mark.parametrize(
        "name",
        [
            "with  blanks ",
            "commas,readonly=on,,file.filename=other",
            "json:{}:nbd:",
            "quo'tes\"and<&>",
            "-o -f raw",
            "$(touch pwned);`id`|*?[a]",
            "ümläut-диск-🎉",
            "per%20cent%s\\n",
        ],
    )
    async def test_a_path_is_a_path_and_nothing_else(self, kvm_bench: KvmBench, name: str) -> None:
        path = make_disk(kvm_bench.lab.disk_path(name))
        await kvm_bench.add_domain(1, [disk(path)])
        write_text(path, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        write_text(path, "B")
        assert await kvm_bench.hypervisor.size_mb(1, "vps-801") == 1
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert read_text(path) == "A"
        await kvm_bench.hypervisor.start(1)
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        await kvm_bench.hypervisor.cut_power(1)
        assert await kvm_bench.hypervisor.repair(1) == ()
        assert await kvm_bench.hypervisor.snapshots(1) == []
        assert [found.name for found in path.parent.iterdir()] == [name]

    async def test_a_disk_over_a_backing_file_is_snapshotted_and_its_base_never_touched(
        self, kvm_bench: KvmBench
    ) -> None:
        base = make_disk(kvm_bench.lab.disk_path("base.qcow2"))
        write_text(base, "of the base")
        before = base.read_bytes()
        path = make_disk(kvm_bench.lab.disk_path("over.qcow2"), backing=base)
        await kvm_bench.add_domain(1, [disk(path)])
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        write_text(path, "own")
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert read_text(path) == "of the base"
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        assert base.read_bytes() == before

    async def test_disks_that_no_snapshot_holds_are_skipped_and_reported(self, kvm_bench: KvmBench) -> None:
        lab = kvm_bench.lab
        own, read_only, shared = (make_disk(lab.disk_path(name)) for name in ("own", "read-only", "shared"))
        inserted = make_disk(lab.disk_path("cd.iso"), format="raw")
        devices = [
            disk(own),
            Device(path=read_only, readonly=True),
            Device(path=shared, format="raw", shareable=True, left_out=True),
            Device(path=inserted, format="raw", cdrom=True, readonly=True),
            Device(path=None, format="raw", cdrom=True, readonly=True),
        ]
        qemu_img("convert", "-f", "qcow2", "-O", "raw", str(own), str(shared))
        before = {path: path.read_bytes() for path in (read_only, shared, inserted)}
        await kvm_bench.add_domain(1, devices)
        layout = await kvm_bench.hypervisor.layout(1)
        assert [found.target for found in layout.disks] == ["vda"]
        assert {skipped.target: skipped.reason for skipped in layout.skipped} == {
            "vdb": "it is read-only",
            "vdc": "its definition excludes it from snapshots",
            "sda": "it is a cdrom",
            "sdb": "it is a cdrom",
        }
        write_text(own, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        write_text(own, "B")
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert read_text(own) == "A"
        await kvm_bench.hypervisor.start(1)
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        assert await kvm_bench.hypervisor.snapshots(1) == []
        await kvm_bench.hypervisor.cut_power(1)
        assert {path: path.read_bytes() for path in before} == before

    @pytest.mark.parametrize(
        "odd", ["raw", "missing", "not qcow2", "data file", "lost backing file", "forged backing", "name"]
    )
    async def test_a_disk_that_cannot_be_snapshotted_is_refused_by_name(self, kvm_bench: KvmBench, odd: str) -> None:
        plain = make_disk(kvm_bench.lab.disk_path("plain.qcow2"))
        await kvm_bench.add_domain(1, [disk(plain), _odd_disk(kvm_bench.lab, odd)])
        with pytest.raises(UnsupportedServer, match="vdb"):
            await kvm_bench.hypervisor.layout(1)
        with pytest.raises(UnsupportedServer, match="vdb"):
            await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert (await qcow2.image(str(plain))).tags == ()

    async def test_an_image_that_qemu_marked_corrupt_is_refused_until_repaired(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        with kvm_bench.path(1, "vdb").open("r+b") as file:
            file.seek(72)
            file.write(struct.pack(">Q", 1 << 1))  # the header's bit "corrupt"
        with pytest.raises(DiskCorrupt, match="vdb"):
            await kvm_bench.hypervisor.layout(1)
        assert await kvm_bench.hypervisor.repair(1) == ("vdb",)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert kvm_bench.read(1) == {"vda": "A", "vdb": "A"}

    async def test_the_size_is_what_the_guest_has_written(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, disks=3)
        for target, mebibytes in {"vda": 5, "vdb": 2}.items():
            _fill(kvm_bench.path(1, target), mebibytes)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        _fill(kvm_bench.path(1, "vdc"), 20)
        assert await kvm_bench.hypervisor.size_mb(1, "vps-801") == 7

    async def test_a_lock_that_is_about_to_be_released_is_waited_for(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        async with held(kvm_bench.path(1, "vdb"), seconds=1):
            await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.complete

    async def test_a_disk_that_refuses_is_named_and_the_rest_can_be_cleaned(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        break_a_cluster(kvm_bench.path(1, "vdb"))
        with pytest.raises(DiskFailed, match="vdb") as refused:
            await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert "qemu-img" in refused.value.cause
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.targets == {"vda"}
        assert not found.complete
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        assert await kvm_bench.hypervisor.snapshots(1) == []


class TestKilledMidway:
    @pytest.mark.parametrize("change", ["take", "revert", "delete"])
    async def test_a_change_killed_at_any_write_is_repaired_and_no_snapshot_is_lost(
        self, kvm_bench: KvmBench, killed_writes: KilledWrites, change: str
    ) -> None:
        hypervisor = kvm_bench.hypervisor
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        await hypervisor.take_snapshot(1, SPEC)
        other = SnapshotSpec(tag="vps-802", name="x", description="", created_at=SPEC.created_at)
        changes: dict[str, Callable[[], Awaitable[None]]] = {
            "take": lambda: hypervisor.take_snapshot(1, other),
            "revert": lambda: hypervisor.revert(1, "vps-801"),
            "delete": lambda: hypervisor.delete_snapshot(1, "vps-802"),
        }
        killed_at, damaged = set(), False
        for disks_done in (0, 1):
            for write in itertools.count(1):
                if change == "delete":
                    await hypervisor.take_snapshot(1, other)
                kvm_bench.write(1, "B")  # a revert skips a disk that equals the snapshot
                with killed_writes.kill(after_runs=disks_done, at_write=write), suppress(DiskFailed):
                    await changes[change]()
                damaged |= any([(await qcow2.damage(str(kvm_bench.path(1, vd)))).any for vd in ("vda", "vdb")])
                await hypervisor.repair(1)
                await hypervisor.delete_snapshot(1, "vps-802")
                assert "vps-801" in [found.tag for found in await hypervisor.snapshots(1) if found.complete]
                if not killed_writes.have_happened:
                    break
                killed_at.add((disks_done, write))
        assert killed_at >= {(0, 1), (0, 2), (1, 1), (1, 2)}
        assert damaged
        await hypervisor.revert(1, "vps-801")
        assert kvm_bench.read(1) == {"vda": "A", "vdb": "A"}
        assert await hypervisor.repair(1) == ()


class TestLibvirt:
    async def test_its_own_list_shows_the_snapshots_on_demand(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert kvm_bench.domain(1).listAllSnapshots(0) == []
        assert await kvm_bench.hypervisor.list_for_people(1) == ("vps-801",)
        (listed,) = kvm_bench.domain(1).listAllSnapshots(0)
        assert listed.getName() == "vps-801"
        xml = listed.getXMLDesc(0)
        assert "<description>before-update\nas written\non two lines</description>" in xml
        assert "<state>shutoff</state>" in xml
        assert f"<creationTime>{int(SPEC.created_at.timestamp())}</creationTime>" in xml
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert (found.spec, found.settled) == (SPEC, False)
        await kvm_bench.hypervisor.list_snapshot(1, SPEC, found.contents)
        assert kvm_bench.domain(1).listAllSnapshots(0) == []

    async def test_a_snapshot_that_libvirt_took_itself_can_be_reverted_to_and_deleted(
        self, kvm_bench: KvmBench
    ) -> None:
        await kvm_bench.add_server(1)
        kvm_bench.write(1, "A")
        xml = "<domainsnapshot><name>theirs</name><description>by virsh</description></domainsnapshot>"
        kvm_bench.domain(1).snapshotCreateXML(xml, 0)
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.complete
        assert found.spec is not None
        assert (found.spec.tag, found.spec.name) == ("theirs", "by virsh")
        kvm_bench.write(1, "B")
        await kvm_bench.hypervisor.revert(1, "theirs")
        assert kvm_bench.read(1) == {"vda": "A", "vdb": "A"}
        await kvm_bench.hypervisor.delete_snapshot(1, "theirs")
        assert kvm_bench.domain(1).listAllSnapshots(0) == []

    async def test_a_server_without_disks_is_refused(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_domain(1, [])
        with pytest.raises(UnsupportedServer, match="no disk"):
            await kvm_bench.hypervisor.layout(1)

    async def test_a_server_with_saved_memory_is_not_touched(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, running=True)
        await asyncio.to_thread(kvm_bench.domain(1).managedSave, 0)
        assert await kvm_bench.hypervisor.power(1) is Power.OFF
        for refused in (kvm_bench.hypervisor.layout(1), kvm_bench.hypervisor.take_snapshot(1, SPEC)):
            with pytest.raises(InvalidState, match="saved memory"):
                await refused

    async def test_a_transient_domain_is_not_adopted(self, kvm_bench: KvmBench) -> None:
        xml = kvm_bench.lab.domain_xml("server-1", [disk(make_disk(kvm_bench.path(1, "vda")))])
        transient = kvm_bench.connection.createXML(xml, 0)
        try:
            with pytest.raises(InvalidState, match="transient"):
                await kvm_bench.hypervisor.adopt("server-1", server_id=1, account_id=ACCOUNT_ID)
        finally:
            transient.destroy()

    async def test_a_domain_that_was_undefined_is_not_found(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        assert await kvm_bench.hypervisor.power(1) is Power.OFF
        kvm_bench.domain(1).undefine()
        with pytest.raises(DomainNotFound):
            await kvm_bench.hypervisor.power(1)
        assert await kvm_bench.hypervisor.domains() == []

    async def test_uefi_variables_go_back_byte_for_byte_and_the_server_starts_with_them(
        self, kvm_bench: KvmBench
    ) -> None:
        await kvm_bench.add_server(1, uefi=True)
        nvram = kvm_bench.lab.nvram_path("server-1")
        nvram.chmod(0o640)
        before = nvram.read_bytes()
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        copy = kvm_bench.path(1, "vda").with_name("1-vda.qcow2.vps-801.nvram")
        assert copy.read_bytes() == before
        assert copy.stat().st_mode & 0o777 == 0o600
        nvram.write_bytes(b"\xff" * len(before))
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert nvram.read_bytes() == before
        assert nvram.stat().st_mode & 0o777 == 0o640
        await kvm_bench.hypervisor.start(1)
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        assert [path.name for path in nvram.parent.glob("*.nvram*")] == ["server-1.nvram"]

    async def test_uefi_variables_without_a_file_are_left_out_and_named(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, uefi=True)
        kvm_bench.lab.nvram_path("server-1").unlink()
        layout = await kvm_bench.hypervisor.layout(1)
        assert not layout.nvram
        assert layout.firmware is Firmware.UEFI
        assert [skipped.target for skipped in layout.skipped] == ["nvram"]
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        await kvm_bench.hypervisor.revert(1, "vps-801")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_guest_whose_qemu_was_ended_did_not_shut_down(kvm_bench: KvmBench, number: signal.Signals) -> None:
    await kvm_bench.add_server(1, running=True)
    os.kill(int((kvm_bench.lab.folder / "run" / "qemu" / "server-1.pid").read_text()), number)
    assert await kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60)
    assert await kvm_bench.hypervisor.was_shut_down(1) is False


async def test_a_guest_outlives_a_driver_that_is_killed_and_is_found_by_the_next(kvm_bench: KvmBench) -> None:
    folder = Path(tempfile.mkdtemp(prefix="vps-killed-"))
    lab = Lab(folder, image=kvm_bench.lab.image)
    try:
        await lab.define(lab.domain_xml("server-1", [disk(make_disk(lab.disk_path("vda")))]))
        first = await _driver(
            lab, "await hypervisor.adopt('server-1', server_id=1, account_id=77)", "await hypervisor.start(1)"
        )
        first.send_signal(signal.SIGKILL)
        await first.wait()
        assert lab.is_on("server-1")
        second = await _driver(
            lab,
            "assert [domain.power for domain in await hypervisor.domains()] == ['on']",
            "await hypervisor.cut_power(1)",
            "assert await hypervisor.power(1) == 'off'",
        )
        second.kill()
        await second.wait()
        assert not lab.is_on("server-1")
    finally:
        await lab.remove_all()
        shutil.rmtree(folder)


async def test_a_start_in_which_the_driver_was_killed_is_repeated(kvm_bench: KvmBench) -> None:
    folder = Path(tempfile.mkdtemp(prefix="vps-killed-"))
    lab = Lab(folder, image=kvm_bench.lab.image)
    try:
        await lab.define(lab.domain_xml("server-1", [disk(make_disk(lab.disk_path("vda")))]))
        first = await _driver(
            lab, "await hypervisor.adopt('server-1', server_id=1, account_id=77)", "await hypervisor.start(1)"
        )
        first.send_signal(signal.SIGKILL)
        await first.wait()
        cut_off_start(folder / "run" / "qemu", "server-1")
        second = await _driver(lab, "assert await hypervisor.power(1) == 'off'", "await hypervisor.start(1)")
        assert lab.is_on("server-1")
        second.kill()
        await second.wait()
    finally:
        await lab.remove_all()
        shutil.rmtree(folder)


async def _driver(lab: Lab, *calls: str) -> asyncio.subprocess.Process:
    """A process that has made these calls with its own driver and keeps it open."""
    body = textwrap.indent("\n".join(calls), "    ")
    program = f"""\
import asyncio
import itertools
import os

os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})  # as drivers.kvm.opening does

from drivers.kvm import KvmHypervisor

async def main():
    hypervisor = await KvmHypervisor.open({lab.uri!r})
{body}
    print("done", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"done\n"
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return process


def _odd_disk(lab: Lab, odd: str) -> Device:
    path = lab.disk_path("odd")
    match odd:
        case "raw":
            return Device(path=make_disk(path, format="raw"), format="raw")
        case "missing":
            return disk(path)
        case "name":  # like storage that does not answer, it makes the kernel return an error
            return disk(lab.disk_path("n" * 300))
        case "not qcow2":
            return disk(make_disk(path, format="raw"))
        case "data file":
            qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={path}.raw", str(path), "64M")
        case "lost backing file":
            base = make_disk(lab.disk_path("base.qcow2"))
            make_disk(path, backing=base)
            base.unlink()
        case "forged backing":  # a guest that writes this header to its raw disk could otherwise read the host's files
            make_disk(path, backing=make_disk(lab.disk_path("base.qcow2")))
            qemu_img("rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", str(path))
            _forget_backing_format(path)
        case _:
            raise AssertionError(odd)
    return disk(path)


def _forget_backing_format(path: Path) -> None:
    content = path.read_bytes()
    extension = content.index(struct.pack(">I", 0xE2792ACA))  # qcow2's header extension for the backing format
    with path.open("r+b") as file:
        file.seek(extension)
        file.write(struct.pack(">I", 0x12345678))  # QEMU skips unknown extensions


def _fill(path: Path, mebibytes: int) -> None:
    command = ["qemu-io", "--image-opts", image_options(path), "-c", f"write -q 0 {mebibytes}M"]
    subprocess.run(command, check=True, capture_output=True)
