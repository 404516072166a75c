"""The content of a server's disks, and changes to it: through QEMU, as its guest would make, or directly in the
files of a server that is off."""

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
_PIECES = 3  # written in addition to the content that the model tracks
_READ_BYTES = 1 << 20


def digest(path: Path, *, in_use: bool = False) -> str:
    """Digest of the disk's whole content and size. `in_use`: a QEMU that is not writing has it open; otherwise waits
    for any process that is still writing."""
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
    """Digests by file name of the disk."""
    return {disk.name: digest(disk, in_use=True) for disk in expected.server.disks}


def change(connection: Any, expected: Expected, chance: random.Random) -> None:
    """Write the content that the model tracks, and some pieces at random places behind it."""
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
    """The bitmaps in the file. A running QEMU writes new ones only when it exits."""
    command = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(disk)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [bitmap["name"] for bitmap in found["format-specific"]["data"].get("bitmaps", [])]


def forget_checkpoints(domain: Any) -> None:
    """Remove the checkpoints whose bitmaps no longer exist, as an operator does after the tool has refused."""
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
    for checkpoint in reversed(domain.listAllCheckpoints(flags)):
        try:
            checkpoint.delete()
        except libvirt.libvirtError:
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _through_qemu(domain: Any, number: int, commands: Sequence[str]) -> None:
    """Write through the device, as the guest does. QEMU does not report the result; the next check does."""
    for command in commands:
        line = f'qemu-io -d /machine/peripheral/virtio-disk{number}/virtio-backend "{command}"'
        trouble = libvirt_qemu.qemuMonitorCommand(domain, line, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
        assert not trouble.strip(), trouble
