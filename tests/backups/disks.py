"""What the disks of a server hold, and how that is changed: as by its guest, through QEMU, or on the files of one that
is off."""

import hashlib
import json
import random
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from tests.chaos.model import DATA_BYTES, Expected, unlocked

DISK_MIB = 16
_PIECES = 3  # written beside the content that the model knows
_READ_BYTES = 1 << 20


def digest(path: Path, *, in_use: bool = False) -> str:
    """Of all that the disk holds, its size included. `in_use`: by a QEMU that writes nothing at the moment; else
    whoever still writes to it is waited for."""
    raw = path.with_name(f"{path.name}.{uuid.uuid4()}.raw")
    shared = ["-U"] if in_use else []
    unlocked("qemu-img", "convert", *shared, "-f", "qcow2", "-O", "raw", str(path), str(raw)).check_returncode()
    found = hashlib.sha256()
    with raw.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            found.update(piece)
    raw.unlink()
    return found.hexdigest()


def truth(expected: Expected) -> dict[str, str]:
    """By the disks' file names."""
    return {disk.name: digest(disk, in_use=True) for disk in expected.server.disks}


def change(connection: Any, expected: Expected, chance: random.Random) -> None:
    """The content that the model knows, and some pieces anywhere behind it."""
    expected.content = chance.randrange(1, 256)
    for number, disk in enumerate(expected.server.disks):
        places = [chance.randrange(1, DISK_MIB * 16) << 16 for _ in range(_PIECES)]
        commands = [f"write -P {expected.content} 0 {DATA_BYTES}"]
        commands += [f"write -P {chance.randrange(256)} {place} {DATA_BYTES}" for place in places]
        if expected.running:
            _through_qemu(connection.lookupByName(expected.server.name), number, [*commands, "flush"])
        else:
            words = [word for command in commands for word in ("-c", command)]
            unlocked("qemu-io", "-f", "qcow2", *words, str(disk)).check_returncode()


def bitmaps(disk: Path) -> list[str]:
    """Those that are in the file: a running QEMU writes the ones that it was given only when it ends."""
    command = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(disk)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [bitmap["name"] for bitmap in found["format-specific"]["data"].get("bitmaps", [])]


def forget_checkpoints(domain: Any) -> None:
    """As an operator does whom the tool has told that it can't: the records whose bitmaps are not there any more."""
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
    for checkpoint in reversed(domain.listAllCheckpoints(flags)):
        try:
            checkpoint.delete()
        except libvirt.libvirtError:
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _through_qemu(domain: Any, number: int, commands: Sequence[str]) -> None:
    """As the guest's own writes go: through the device. QEMU says nothing of how it went; the next look does."""
    for command in commands:
        line = f'qemu-io -d /machine/peripheral/virtio-disk{number}/virtio-backend "{command}"'
        trouble = libvirt_qemu.qemuMonitorCommand(domain, line, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
        assert not trouble.strip(), trouble
