"""Domain XML: what of a server a snapshot holds, what it leaves out, what it can't hold."""

import os.path
from dataclasses import dataclass

from drivers.base import Firmware, SkippedDisk, UnsupportedServer
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

__all__ = ["FileDisk", "Hardware", "Kind", "NoVolumeFile", "StatePart", "hardware", "refuse_unsupported"]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a domain's XML says of the things that hold state."""

    disks: tuple[FileDisk, ...]
    skipped: tuple[SkippedDisk, ...]
    unsupported: tuple[str, ...]  # texts for a customer, each naming the thing
    firmware: Firmware
    parts: tuple[StatePart, ...]  # UEFI variables, TPM: saved and restored with the disks where they are there
    away: tuple[str, ...]  # of `unsupported`: disks that may be held by snapshots, and whose files can't be told now
    generation_id: bool  # the guest is told by a new one that it has gone back in time

    @property
    def troubles(self) -> tuple[str, ...]:
        """All that keeps every snapshot from holding the server, as far as the XML tells."""
        none = () if self.disks or self.unsupported else ("the server has no disk that can be snapshotted",)
        return (*self.unsupported, *none)


def unknown_volume(_pool: str, _volume: str) -> str:
    raise VolumeAway("is in a storage pool, which only the libvirt of its node can look into")


def hardware(xml: str, *, places: Places = SYSTEM, volume_path: VolumePath = unknown_volume) -> Hardware:
    """Read a domain's XML. libvirt has written it: it is trusted to be well-formed. `places`: of that libvirt."""
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
        f"disk {disk.target} shares its file" for disk, path in zip(disks, paths, strict=True) if paths.count(path) > 1
    ]
    return Hardware(
        disks=tuple(disks),
        skipped=(*skipped, *devices_xml.left_out(domain)),
        unsupported=tuple(dict.fromkeys(unsupported)),
        firmware=beside.firmware,
        parts=beside.parts,
        away=tuple(away),
        generation_id=domain.find("./genid") is not None,
    )


def refuse_unsupported(found: Hardware) -> None:
    """Raises UnsupportedServer, naming all that no snapshot can hold."""
    if found.troubles:
        raise UnsupportedServer("; ".join(found.troubles))
