"""Other tools on the servers of a campaign: backups, resizes, removed disks, `virsh` at the wrong moment.

Their changes between two jobs are known and must be found unchanged afterward. Changes during a job may come before or
after the job's own change: they are marked (`Expected.disturbed`) and read afterward.
"""

import asyncio
import random
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path

from deploy.lab.lab import LabFailed
from drivers import qcow2
from tests.acceptance.cell import AcceptanceCell
from tests.chaos import model
from tests.chaos.model import Expected
from tests.contract.kvm_bench import share_a_cluster_less

MIB = 1 << 20
QEMU_IMG = shutil.which("qemu-img") or "qemu-img"  # not the campaign's own script


class Others:
    """`by_libvirt`: whether there is a libvirtd, which several processes can use."""

    def __init__(self, cell: AcceptanceCell, chance: random.Random, *, by_libvirt: bool) -> None:
        self._cell = cell
        self._chance = chance
        self._by_libvirt = by_libvirt
        self._named = 0

    def befall(self, expected: Expected, operation: str) -> None:
        """Change a server that is off and has no running job."""
        happened = self._chance.choice(["nothing"] * 4 + ["bitmap", "grown", "damage"])
        if happened == "bitmap":
            self.add_bitmap(expected)
        elif happened == "grown":
            self.enlarge(expected)
        elif happened == "damage" and operation in {"create", "restore"} and not expected.damaged:
            with suppress(ValueError):  # no cluster is shared with a snapshot
                share_a_cluster_less(self._chance.choice(expected.server.disks))
                expected.damaged = True

    def add_bitmap(self, expected: Expected) -> None:
        """Start a backup chain on every disk, as a backup tool does."""
        name = self._name()
        for disk in expected.server.disks:
            _qemu_img("bitmap", "--add", "-f", "qcow2", str(disk), name)
            expected.bitmaps[disk] = model.look(disk).bitmaps

    def enlarge(self, expected: Expected) -> None:
        disk = self._chance.choice(expected.server.disks)
        size = model.look(disk).virtual_bytes + MIB
        _qemu_img("resize", "-q", "-f", "qcow2", str(disk), str(size))
        expected.sizes[disk] = size

    async def meanwhile(self, expected: Expected) -> str:
        """Run one tool at some moment of a job. Returns its description. Refusals are ignored."""
        await asyncio.sleep(self._chance.random() * (2.5 if expected.running else 0.7))
        tools = ["look", "bitmap", "grown", *(["start", "stop", "virsh"] if self._by_libvirt else [])]
        tool, disk, name = self._chance.choice(tools), self._chance.choice(expected.server.disks), expected.server.name
        expected.disturbed |= tool not in {"look", "virsh"}
        with suppress(subprocess.CalledProcessError, LabFailed):
            if tool == "look":
                await asyncio.to_thread(_qemu_img, "snapshot", "-U", "-l", str(disk))
            elif tool == "bitmap":
                await asyncio.to_thread(_qemu_img, "bitmap", "--add", "-f", "qcow2", str(disk), self._name())
            elif tool == "grown":
                await asyncio.to_thread(_qemu_img, "resize", "-q", "-f", "qcow2", str(disk), f"+{MIB}")
            elif tool == "virsh":
                await asyncio.to_thread(_run, "virsh", "-q", "-c", self._cell.lab.uri, "snapshot-list", name)
            elif tool == "start":
                await self._cell.lab.start(name)
            else:
                await self._cell.lab.cut_power(name)
        return tool

    async def rebuild(self, expected: Expected) -> None:
        """Remove, add or move a disk, while no worker uses the libvirt."""
        server = expected.server
        if expected.detached:
            server.disks = [*server.disks, expected.detached.pop()]
        elif len(server.disks) > 1 and self._chance.random() < 0.5:
            expected.detached.append(server.disks[-1])
            server.disks = server.disks[:-1]
        else:
            self._move(expected, server.disks[0])
        await self._define(expected)
        # one disk may be older than the others by now
        await asyncio.to_thread(model.write, expected, self._chance.randrange(1, 256))

    def _move(self, expected: Expected, disk: Path) -> None:
        """Move a disk to another storage, with what the model knows about it."""
        moved = disk.rename(disk.with_name(f"m{self._name()}.qcow2"))
        expected.held = {
            tag: frozenset(moved if one == disk else one for one in disks) for tag, disks in expected.held.items()
        }
        expected.server.disks = [moved if one == disk else one for one in expected.server.disks]
        if disk in expected.sizes:
            expected.sizes[moved] = expected.sizes.pop(disk)
        if disk in expected.bitmaps:
            expected.bitmaps[moved] = expected.bitmaps.pop(disk)

    async def _define(self, expected: Expected) -> None:
        """Update the definition to the current disks."""
        file = self._cell.lab.folder / "etc" / "qemu" / f"{expected.server.name}.xml"
        domain = ET.parse(file).getroot()  # noqa: S314 - libvirt's own
        devices = domain.find("devices")
        assert devices is not None
        for disk in devices.findall("disk"):
            devices.remove(disk)
        for number, path in enumerate(expected.server.disks):
            disk = ET.SubElement(devices, "disk", type="file", device="disk")
            ET.SubElement(disk, "driver", name="qemu", type="qcow2")
            ET.SubElement(disk, "source", file=str(path))
            ET.SubElement(disk, "target", dev=f"vd{'abcdef'[number]}", bus="virtio")
        await self._cell.lab.define(ET.tostring(domain, encoding="unicode"))

    def _name(self) -> str:
        self._named += 1
        return f"o{self._named}"


_ARRIVE = """
import asyncio
import sys
from datetime import UTC, datetime

from drivers.base import SnapshotSpec
from drivers.kvm import KvmHypervisor

async def main(uri, server_id, tag):
    hypervisor = await KvmHypervisor.open(uri)
    spec = SnapshotSpec(tag=tag, name="from elsewhere", description="", created_at=datetime.now(UTC))
    await hypervisor.take_snapshot(server_id, spec)
    await hypervisor.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""


async def arrive(cell: AcceptanceCell, expected: Expected, snapshot_id: int) -> None:
    """Let the server arrive from another node with a snapshot, before the worker's first start."""
    tag = f"vps-{snapshot_id}"
    command = [sys.executable, "-c", _ARRIVE, cell.lab.uri, str(expected.server.id), tag]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    _, trouble = await process.communicate()
    assert process.returncode == 0, trouble.decode()
    expected.snapshots[snapshot_id] = expected.content
    expected.held[tag] = frozenset(expected.server.disks)


def look_up(expected: Expected) -> list[str]:
    """Take over what tools did during a job; no disk may have become smaller."""
    found = []
    for disk in expected.server.disks:
        now = model.look(disk)
        if now.virtual_bytes < (size := expected.sizes.get(disk, 0)):
            found.append(f"{disk.name}: has {now.virtual_bytes} bytes, and had {size}")
        expected.sizes[disk] = now.virtual_bytes
        expected.bitmaps[disk] = now.bitmaps
    expected.disturbed = False
    return found


def take_over_dropped(expected: Expected) -> None:
    """Take over bitmaps that QEMU dropped because one of its programs was killed while it opened a disk.

    Programs of QEMU remove the header's bit for bitmaps while they mark the bitmaps as in use, and put it back. An
    image without the bit counts as changed by a program that does not know bitmaps, so the next one drops all of them.
    """
    for disk, names in expected.bitmaps.items():
        if disk.exists() and (now := model.look(disk).bitmaps) < names:
            expected.bitmaps[disk] = now
            expected.dropped.add(disk)
    expected.may_drop_bitmaps = False


def mend(expected: Expected) -> None:
    """Repair what no job has repaired."""
    for disk in expected.server.disks:
        asyncio.run(qcow2.repair(str(disk)))  # qemu-img's own repair loses the snapshots if there are bitmaps
    expected.damaged = False


def _qemu_img(*arguments: str) -> None:
    _run(QEMU_IMG, *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
