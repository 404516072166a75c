"""The contract suite's bench with real QEMU: a libvirt embedded in this process, with its root in a temporary folder.

All tests share it, because a process can embed only one root, and libvirt 9.0 cannot open it more than about 15 times
("Too many drivers").
"""

import asyncio
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import libvirt

from deploy.lab import domains
from deploy.lab.domain import UEFI_VARIABLES, Device, disk
from deploy.lab.guest import GuestImage
from deploy.lab.lab import Lab, make_disk
from drivers.kvm import KvmHypervisor, listing
from drivers.kvm.places import SYSTEM
from tests.contract.harness import ACCOUNT_ID, TARGETS

# The tests write here: the test guest's ext4 has neither tables nor files at this place.
TEXT_AT, TEXT_BYTES = 36 << 20, 4096


class KvmBench:
    def __init__(self, lab: Lab, hypervisor: KvmHypervisor) -> None:
        self.lab = lab
        self.hypervisor = hypervisor
        self.connection = libvirt.open(lab.uri)

    @classmethod
    @asynccontextmanager
    async def running(cls, image: GuestImage) -> AsyncIterator[Self]:
        folder = Path(tempfile.mkdtemp(prefix="vps-contract-"))  # a short path: sockets are below it
        lab = Lab(folder, image=image)
        # the driver first: it starts the event loop, which an embedded libvirt needs
        bench = cls(lab, await KvmHypervisor.open(lab.uri))
        try:
            yield bench
        finally:
            await bench.close()
            await bench.hypervisor.close()
            bench.connection.close()
            shutil.rmtree(folder)

    async def reopen(self) -> None:
        await self.hypervisor.close()
        self.hypervisor = await KvmHypervisor.open(self.lab.uri)

    async def add_server(
        self,
        server_id: int,
        *,
        disks: int = 2,
        running: bool = False,
        deaf: bool = False,
        uefi: bool = False,
        adopted: bool = True,
    ) -> None:
        devices = [disk(make_disk(self.path(server_id, target))) for target in TARGETS[:disks]]
        await self.add_domain(server_id, devices, deaf=deaf, uefi=uefi, adopted=adopted)
        if running:
            await self.hypervisor.start(server_id)

    async def add_domain(
        self,
        server_id: int,
        devices: Sequence[Device],
        *,
        deaf: bool = False,
        uefi: bool = False,
        tpm: bool = False,
        adopted: bool = True,
    ) -> None:
        """Add a domain with these devices."""
        name = f"server-{server_id}"
        if uefi:
            shutil.copyfile(UEFI_VARIABLES, self.lab.nvram_path(name))  # as libvirt does at the first start
        domains.define(self.connection, self.lab.domain_xml(name, devices, deaf=deaf, uefi=uefi, tpm=tpm))
        if adopted:
            await self.hypervisor.adopt(name, server_id=server_id, account_id=ACCOUNT_ID)

    def path(self, server_id: int, target: str) -> Path:
        return self.lab.disk_path(f"{server_id}-{target}.qcow2")

    def domain(self, server_id: int) -> Any:
        return self.connection.lookupByName(f"server-{server_id}")

    def write(self, server_id: int, text: str) -> None:
        for path in self._paths(server_id):
            write_text(path, text)

    def read(self, server_id: int) -> dict[str, str]:
        return {target: read_text(path) for target, path in zip(TARGETS, self._paths(server_id), strict=False)}

    def write_nvram(self, server_id: int, text: str) -> None:
        self.lab.nvram_path(f"server-{server_id}").write_text(text)

    def read_nvram(self, server_id: int) -> str:
        return self.lab.nvram_path(f"server-{server_id}").read_text()

    def plant_tag(self, server_id: int, target: str, tag: str) -> None:
        qemu_img("snapshot", "-c", tag, str(self.path(server_id, target)))

    def drop_tag(self, server_id: int, target: str, tag: str) -> None:
        qemu_img("snapshot", "-d", tag, str(self.path(server_id, target)))

    def unlist(self, server_id: int, tag: str) -> None:
        listing.delete_record(self.domain(server_id), tag)

    def revert_outside(self, server_id: int, tag: str) -> None:
        domain = self.domain(server_id)
        spec = listing.written_down(domain, SYSTEM).spec(tag)
        assert spec is not None
        listing.list_for_people(domain, spec, SYSTEM)
        domain.revertToSnapshot(domain.snapshotLookupByName(tag))

    def tear(self, server_id: int, target: str) -> None:
        share_a_cluster_less(self.path(server_id, target))

    def ruin(self, server_id: int, target: str) -> None:
        with self.path(server_id, target).open("r+b") as file:
            file.write(b"NONE")  # over the magic number of the qcow2 image

    def suspend(self, server_id: int) -> None:
        self.domain(server_id).suspend()

    async def events_have_passed(self) -> None:
        loop, passed = asyncio.get_running_loop(), asyncio.Event()

        def note(_connection: Any, domain: Any, event: int, _detail: int, _opaque: Any) -> None:
            if (domain.name(), event) == ("last", libvirt.VIR_DOMAIN_EVENT_UNDEFINED):
                loop.call_soon_threadsafe(passed.set)

        # libvirt reports the changes in their order, and each first to those who have listened longer
        listening = self.connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, note, None)
        try:
            self.connection.defineXML(self.lab.domain_xml("last", [], guest=False)).undefine()
            async with asyncio.timeout(60):
                await passed.wait()
        finally:
            self.connection.domainEventDeregisterAny(listening)

    async def close(self) -> None:
        domains.remove_all(self.connection)
        with suppress(FileNotFoundError):
            shutil.rmtree(self.lab.folder / "disks")

    def _paths(self, server_id: int) -> list[Path]:
        return [path for target in TARGETS if (path := self.path(server_id, target)).exists()]


def write_text(path: Path, text: str) -> None:
    """Write to a qcow2 disk that no QEMU uses."""
    data = path.with_name(f"data-{uuid.uuid4()}")
    data.write_bytes(text.encode().ljust(TEXT_BYTES, b"\0"))
    command = f"write -q -s {data} {TEXT_AT} {TEXT_BYTES}"
    subprocess.run(["qemu-io", "--image-opts", image_options(path), "-c", command], check=True, capture_output=True)
    data.unlink()


def read_text(path: Path) -> str:
    data = path.with_name(f"data-{uuid.uuid4()}")
    skip, blocks = f"skip={TEXT_AT // TEXT_BYTES}", f"count={TEXT_AT // TEXT_BYTES + 1}"
    qemu_img(
        "dd", "--image-opts", "-O", "raw", f"bs={TEXT_BYTES}", skip, blocks, f"if={image_options(path)}", f"of={data}"
    )
    text = data.read_bytes().rstrip(b"\0").decode()
    data.unlink()
    return text


def image_options(path: Path) -> str:
    return f"driver=qcow2,file.driver=file,file.filename={str(path).replace(',', ',,')}"


def qemu_img(*arguments: str) -> str:
    while True:
        run = subprocess.run(["qemu-img", *arguments], check=False, capture_output=True, text=True)
        # To encrypt an image, QEMU 7.2 measures its own CPU time, and fails if the clock is too coarse: on a busy
        # virtual machine one time in four.
        if "Unable to get accurate CPU usage" not in run.stderr:
            break
    try:
        run.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note(run.stderr)
        raise
    return run.stdout


def share_a_cluster_less(path: Path) -> None:
    """Decrease the reference count of a cluster that a snapshot shares with the disk, as a killed `snapshot -c` or
    `-a` leaves it. The guest's next write to it would change the snapshot."""
    with path.open("r+b") as file:
        header = file.read(104)
        (cluster_bits,) = struct.unpack_from(">I", header, 20)
        (table_at,) = struct.unpack_from(">Q", header, 48)
        (refcount_order,) = struct.unpack_from(">I", header, 96)
        assert refcount_order == 4, "refcounts of 16 bits"
        file.seek(table_at)
        (block_at,) = struct.unpack(">Q", file.read(8))
        file.seek(block_at)
        counts = struct.unpack(f">{1 << (cluster_bits - 1)}H", file.read(1 << cluster_bits))
        cluster = counts.index(2)
        file.seek(block_at + 2 * cluster)
        file.write(struct.pack(">H", 1))
        file.flush()
        os.fsync(file.fileno())


def cut_off_start(folder: Path, name: str) -> None:
    """Leave a running domain as a libvirt leaves it that was killed during the start. `folder`: of its status."""
    os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGKILL)
    status = folder / f"{name}.xml"
    text = re.sub(r"<domstatus [^>]*>", "<domstatus state='paused' reason='starting up' pid='0'>", status.read_text())
    status.write_text(re.sub(r"<job [^>]*>", "<job type='none' async='start' flags='0x0' asyncStarted='1'/>", text))


@asynccontextmanager
async def held(path: Path, *, seconds: float) -> AsyncIterator[None]:
    """Another process holds the disk's lock for that long."""
    hold = ("-c", "write 0 4k", "-c", f"sleep {int(seconds * 1000)}")
    command = ["stdbuf", "-oL", "qemu-io", "--image-opts", image_options(path), *hold]
    holder = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert b"wrote" in await holder.stdout.readline()
        yield
    finally:
        with suppress(ProcessLookupError):
            holder.kill()
        await holder.communicate()


def break_a_cluster(path: Path) -> None:
    """Move the disk's last written cluster far behind the end of the file. QEMU ignores this and reads zeros there;
    no check repairs it."""
    with path.open("r+b") as file:
        file.seek(40)
        (l1_at,) = struct.unpack(">Q", file.read(8))
        file.seek(l1_at)
        l2_at = next(entry for (entry,) in struct.iter_unpack(">Q", file.read(512)) if entry) & ((1 << 56) - 512)
        file.seek(l2_at)
        entries = struct.unpack(">512Q", file.read(4096))
        last = max(index for index, entry in enumerate(entries) if entry)
        file.seek(l2_at + 8 * last)
        file.write(struct.pack(">Q", (1 << 63) | (1 << 40)))
