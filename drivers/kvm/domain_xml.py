"""Domain XML: the parts of a server that a snapshot holds, leaves out or cannot hold."""

import os.path
from dataclasses import dataclass

from drivers.base import Firmware, SkippedDisk
from drivers.kvm import devices_xml
from drivers.kvm.disks_xml import (
    FileDisk,
    NoVolumeFile,
    VolumeAway,
    VolumePath,
    file_disk,
    left_out,
    refusal,
    target_of,
)
from drivers.kvm.firmware_xml import Kind, StatePart, state
from drivers.kvm.libvirt_xml import read
from drivers.kvm.places import SYSTEM, Places

__all__ = ["FileDisk", "Hardware", "Kind", "NoVolumeFile", "StatePart", "hardware"]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The stateful parts of a server, as its domain's XML describes them."""

    disks: tuple[FileDisk, ...]
    skipped: tuple[SkippedDisk, ...]
    unsupported: tuple[str, ...]  # why it cannot be snapshotted: texts for the customer, each naming the part
    firmware: Firmware
    parts: tuple[StatePart, ...]  # UEFI variables, TPM: saved and restored with the disks if they exist
    away: tuple[str, ...]  # the texts in `unsupported` about disks whose files are currently unknown
    generation_id: bool  # whether the server has a VM generation id, which a restore must renew
    places: Places  # the folders of its libvirt

    @property
    def troubles(self) -> tuple[str, ...]:
        """All reasons in the XML why the server cannot be snapshotted."""
        none = () if self.disks or self.unsupported else ("the server has no disk that can be snapshotted",)
        return (*self.unsupported, *none)


def unknown_volume(_pool: str, _volume: str) -> str:
    raise VolumeAway("is in a storage pool, which only the libvirt of its node can read")


def hardware(xml: str, *, places: Places = SYSTEM, volume_path: VolumePath = unknown_volume) -> Hardware:
    """Parse a domain's XML as written by libvirt. `places`: the folders of that libvirt."""
    domain = read(xml)
    disks: list[FileDisk] = []
    skipped: list[SkippedDisk] = []
    away: list[str] = []
    beside = state(domain, places)
    unsupported = [*beside.unsupported, *devices_xml.refusals(domain)]
    for element in domain.iterfind("./devices/disk"):
        target = target_of(element)
        if reason := left_out(element):
            skipped.append(SkippedDisk(target=target, reason=reason))
        elif trouble := refusal(element):
            unsupported.append(f"disk {target} {trouble}")
        else:
            try:
                disks.append(file_disk(element, volume_path))
            except NoVolumeFile as error:
                unsupported.append(f"disk {target} {error}")
                away += unsupported[-1:] if isinstance(error, VolumeAway) else []
    paths = [os.path.normpath(disk.path) for disk in disks]
    unsupported += [
        f"disk {disk.target} uses the same file as another disk"
        for disk, path in zip(disks, paths, strict=True)
        if paths.count(path) > 1
    ]
    return Hardware(
        disks=tuple(disks),
        skipped=(*skipped, *devices_xml.left_out(domain)),
        unsupported=tuple(dict.fromkeys(unsupported)),
        firmware=beside.firmware,
        parts=beside.parts,
        away=tuple(away),
        generation_id=domain.find("./genid") is not None,
        places=places,
    )
