"""Servers on the real driver in random states, as other tools, owners and time leave them."""

import asyncio
import hashlib
import json
import random
import signal
import subprocess
import xml.etree.ElementTree as ET
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import libvirt

from deploy.lab import domains
from deploy.lab.domain import UEFI_VARIABLES, Device, disk
from drivers.base import Power
from tests.contract.harness import ACCOUNT_ID
from tests.contract.kvm_bench import (
    KvmBench,
    break_a_cluster,
    held,
    image_options,
    qemu_img,
    read_text,
    share_a_cluster_less,
    write_text,
)
from tests.walking import SERVER, SPEC

THEN, NOW, INSTALLED = "then", "now", "as installed"
MIB = 1 << 20
HAPPENINGS = ("nothing",) * 28 + ("grown",) * 8 + ("shrunk", "detached", "replaced", "moved", "untagged", "damaged") * 4
SPOILED = ("ruined", "rotten", "raw", "missing") * 2 + ("written to", "read")  # the last two are waited for, for 10 s
NOT_FOR_OLD = {"grown", "shrunk", "damaged"}
HOLD_SECONDS = 60.0  # another program holds a disk, for longer than any job here takes
_DEVICE = (
    "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/>"
    "<target dev='{target}' bus='virtio'/></disk>"
)


@dataclass(kw_only=True)
class Image:
    """The image behind one disk; `held`: the snapshot holds it."""

    path: Path
    held: bool = False
    old: bool = False  # qcow2 version 2
    text: str = NOW
    rotten: bool = False  # damage that only a check finds and nothing repairs

    @property
    def virtual_bytes(self) -> int:
        return int(self._info["virtual-size"])

    @property
    def bitmaps(self) -> set[str]:
        return {bitmap["name"] for bitmap in self._info["format-specific"]["data"].get("bitmaps", [])}

    @property
    def tags(self) -> set[str]:
        return {snapshot["name"] for snapshot in self._info.get("snapshots", [])}

    @property
    def is_readable(self) -> bool:
        command = ["qemu-img", "info", "-U", "-f", "qcow2", str(self.path)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    @property
    def is_sound(self) -> bool:
        command = ["qemu-img", "check", "-q", "-f", "qcow2", str(self.path)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    @property
    def _info(self) -> Any:
        return json.loads(qemu_img("info", "-U", "-f", "qcow2", "--output=json", str(self.path)))


@dataclass(kw_only=True)
class State:
    """`words` describe what happened to the server. Its disks are `images`, by target."""

    bench: KvmBench
    chance: random.Random
    images: dict[str, Image] = field(default_factory=dict)
    uefi: bool = False
    guest: bool = False  # a real guest boots: its own writes change the files
    words: list[str] = field(default_factory=list)
    holders: AsyncExitStack = field(default_factory=AsyncExitStack)

    @classmethod
    async def make(cls, bench: KvmBench, chance: random.Random, *, guest: bool = False) -> Self:
        """Make a server with one snapshot, SPEC, of THEN; the disks have NOW, and something has happened."""
        state = cls(bench=bench, chance=chance, guest=guest)
        await state._define()
        await bench.hypervisor.adopt(state.name, server_id=SERVER, account_id=ACCOUNT_ID)
        await bench.hypervisor.take_snapshot(SERVER, SPEC)
        for image in state.images.values():
            image.held = True
            write_text(image.path, NOW)
        if state.uefi:
            bench.write_nvram(SERVER, NOW)
        for target in list(state.images):
            await state._befall(target)
        await state._befall_all()
        return state

    async def end(self) -> None:
        await self.holders.aclose()
        await self.bench.close()

    @property
    def name(self) -> str:
        return f"server-{SERVER}"

    @property
    def domain(self) -> Any:
        return self.bench.domain(SERVER)

    @property
    def checkpoints(self) -> set[str]:
        return {checkpoint.getName() for checkpoint in self.domain.listAllCheckpoints()}

    @property
    def generation_id(self) -> str | None:
        return ET.fromstring(self._definition).findtext("genid")  # noqa: S314 - libvirt's own output

    @property
    def nvram(self) -> bytes:
        return self.bench.lab.nvram_path(self.name).read_bytes().rstrip(b"\0") if self.uefi else b""

    @property
    def power(self) -> Power:
        return Power(domains.power(self.bench.connection, self.name))

    def fingerprint(self) -> dict[str, str]:
        """A fingerprint of all files and of the definition."""
        files = {} if self.guest else {path.name: _digest(path) for path in sorted(self._folder.iterdir())}
        return {"definition": self._definition, "checkpoints": f"{sorted(self.checkpoints)}", **files}

    def texts(self) -> dict[str, str]:
        """The content of the disks; the server is off."""
        return {target: read_text(image.path) for target, image in self.images.items() if not image.rotten}

    @property
    def spoiled(self) -> bool:
        """Whether nothing can be read from one of the disks."""
        return len(self.readable()) < len(self.images)

    def readable(self) -> dict[str, Image]:
        return {target: image for target, image in self.images.items() if image.is_readable}

    def add(self, target: str) -> None:
        """Attach another disk, from the next start on, as its owner would."""
        path = self._path(f"{target}-added")
        qemu_img("create", "-q", "-f", "qcow2", str(path), "64M")
        self.images[target] = Image(path=path)
        write_text(path, NOW)
        self._attach(target, path)

    def detach(self, target: str) -> None:
        del self.images[target]
        xml = next(
            ET.tostring(found, encoding="unicode")
            for found in ET.fromstring(self._definition).iterfind("./devices/disk")  # noqa: S314
            if (place := found.find("target")) is not None and place.get("dev") == target
        )
        self.domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    # --- how ---

    @property
    def _definition(self) -> str:
        return str(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))

    @property
    def _folder(self) -> Path:
        return self.bench.lab.disk_path("x").parent

    def _path(self, name: str) -> Path:
        return self.bench.lab.disk_path(f"{SERVER}-{name}.qcow2")

    async def _define(self) -> None:
        chance, lab = self.chance, self.bench.lab
        for target in ("vda", "vdb", "vdc")[: 2 if self.guest else chance.choice([1, 2, 2, 3])]:
            image = self.images[target] = Image(path=self._path(target), old=not self.guest and chance.random() < 0.08)
            options = "compat=0.10" if image.old else f"cluster_size={chance.choice(['64k', '1M'])}"
            below = []
            if chance.random() < 0.15:
                base = self._path(f"{target}-base")
                qemu_img("create", "-q", "-f", "qcow2", str(base), "64M")
                # the name alone, as in most tutorials, or the whole path
                below = ["-b", base.name if chance.random() < 0.5 else str(base), "-F", "qcow2"]
                self.words.append(f"{target} over a base")
            qemu_img("create", "-q", "-f", "qcow2", "-o", options, *below, str(image.path), "64M")
            _keep(image.path)
            write_text(image.path, THEN)
        self.uefi = not self.guest and chance.random() < 0.15
        if self.uefi:
            variables = lab.nvram_path(self.name)
            variables.write_bytes(UEFI_VARIABLES.read_bytes())
            self.bench.write_nvram(SERVER, THEN)
        devices = [disk(image.path) for image in self.images.values()]
        if chance.random() < 0.1:
            devices.append(Device(path=None, cdrom=True))
        xml = lab.domain_xml(self.name, devices, uefi=self.uefi, guest=self.guest)
        if chance.random() < 0.3:
            xml = xml.replace("</name>", "</name><genid/>", 1)
        domains.define(self.bench.connection, xml)

    async def _befall(self, target: str) -> None:
        happened = self.chance.choice(HAPPENINGS if self.guest else [*HAPPENINGS, *SPOILED])
        image = self.images[target]
        if (image.old and happened in NOT_FOR_OLD) or (happened == "detached" and len(self.images) == 1):
            happened = "nothing"
        if happened in SPOILED:
            await self._spoil(happened, target)
        elif happened in {"detached", "replaced", "moved"}:
            self._rebuild(happened, target)
        elif happened == "untagged":
            qemu_img("snapshot", "-d", SPEC.tag, str(image.path))
            image.held = False
        elif happened == "damaged":
            share_a_cluster_less(image.path)
        elif happened != "nothing":
            size = f"+{self.chance.choice([1, 32])}M" if happened == "grown" else "48M"
            qemu_img("resize", "-q", "-f", "qcow2", "--shrink", str(image.path), size)
        if happened != "nothing":
            self.words.append(f"{target} {happened}")
        if happened not in {"detached", *SPOILED} and not image.old and self.chance.random() < 0.2:
            self.add_bitmap(self.images[target], self.chance.choice(["enabled", "disabled", "inconsistent"]))

    def _rebuild(self, how: str, target: str) -> None:
        image = self.images[target]
        self.detach(target)
        if how == "moved":
            image.path = image.path.rename(image.path.with_name(f"moved-{image.path.name}"))
            self.images[target] = image
            self._attach(target, image.path)
        elif how == "replaced":
            self.add(target)

    async def _spoil(self, how: str, target: str) -> None:
        image = self.images[target]
        if how == "ruined":
            with image.path.open("r+b") as file:
                file.write(b"NONE")
        elif how == "rotten":
            break_a_cluster(image.path)
            image.rotten = True
        elif how == "missing":
            image.path.unlink()
        elif how == "raw":
            self.detach(target)
            self._attach(target, image.path, format="raw")
            self.images[target] = image
        elif how == "written to":
            await self.holders.enter_async_context(held(image.path, seconds=HOLD_SECONDS))
        else:
            await self.holders.enter_async_context(reading(image.path))

    async def _befall_all(self) -> None:
        chance = self.chance
        spoiled = any(word.split()[-1] in {"ruined", "raw", "missing", "to", "read"} for word in self.words)
        if not self.guest and chance.random() < 0.1:
            self.add("vdz")
            self.words.append("vdz added")
        if chance.random() < 0.2:
            self.add_checkpoint()
        if self.uefi and chance.random() < 0.2:
            for copy in self._folder.glob(f"*.{SPEC.tag}.nvram"):
                copy.unlink()
            self.words.append("the copy of the variables gone")
        # no firmware boots with variables that contain "now"
        if self.guest or (not spoiled and not self.uefi and chance.random() < 0.3):
            domains.start(self.bench.connection, self.name)
            self.words.append("running")
            if not self.guest and chance.random() < 0.15:
                self.domain.suspend()
                self.words.append("paused")

    def add_bitmap(self, image: Image, kind: str) -> None:
        off = ["--disable"] if kind == "disabled" else []
        qemu_img("bitmap", "--add", *off, "-f", "qcow2", str(image.path), f"b{self.chance.randrange(1 << 30)}")
        if kind == "inconsistent":
            _kill_a_writer(image.path)
        self.words.append(f"a bitmap, {kind}")

    def add_checkpoint(self) -> None:
        root = ET.Element("domaincheckpoint")
        ET.SubElement(root, "name").text = "c0"
        ET.SubElement(root, "creationTime").text = "1764230400"
        disks = ET.SubElement(root, "disks")
        definition = ET.fromstring(self._definition)  # noqa: S314
        for target in [found.get("dev", "") for found in definition.iterfind("./devices/disk/target")]:
            if target.startswith("vd"):
                ET.SubElement(disks, "disk", name=target, checkpoint="bitmap", bitmap="c0")
            else:
                ET.SubElement(disks, "disk", name=target, checkpoint="no")
        root.append(definition)
        self.domain.checkpointCreateXML(
            ET.tostring(root, encoding="unicode"), libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        )
        self.words.append("a checkpoint")

    def _attach(self, target: str, path: Path, *, format: str = "qcow2") -> None:  # noqa: A002 - libvirt's word
        xml = _DEVICE.format(format=format, path=path, target=target)
        self.domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


class reading:  # noqa: N801 - used as a function
    """Another program reads the image and locks it against writes, as a backup of a server that is off does."""

    def __init__(self, path: Path) -> None:
        self._socket = path.with_suffix(".nbd")
        self._command = ["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", str(self._socket), str(path)]
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - as any other tool
        while not self._socket.exists():
            assert self._process.poll() is None, "qemu-nbd has exited"
            await asyncio.sleep(0.01)

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)


def _keep(path: Path) -> None:
    """Add data that is never written again: the snapshot and the disk share it."""
    _qemu_io(path, "write -q -P 7 8M 2M")


def _qemu_io(path: Path, command: str) -> None:
    subprocess.run(["qemu-io", "--image-opts", image_options(path), "-c", command], check=True, capture_output=True)


def _kill_a_writer(path: Path) -> None:
    """Kill a QEMU, which leaves its bitmaps marked as in use, so that no program trusts them again."""
    command = ["stdbuf", "-oL", "qemu-io", "--image-opts", image_options(path), "-c", "write 0 4k", "-c", "sleep 60000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert b"wrote" in writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
