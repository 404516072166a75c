"""What a snapshot of a server would hold and what keeps it from being taken: for the layout, and for the survey."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivers.base import DriverError, SkippedDisk, UnsupportedServer
from drivers.kvm import disks
from drivers.kvm.domain_xml import FileDisk, Hardware, Kind, StatePart
from drivers.kvm.firmware_xml import WORDS
from drivers.kvm.state_copies import Copies
from drivers.qcow2_image import Image

NOT_YET = {
    Kind.NVRAM: "the server has no UEFI variables yet",
    Kind.PFLASH: "the server has no firmware file",
    Kind.TPM: "the server's TPM has no state yet",
}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    images: Mapping[FileDisk, Image]  # of the disks that can be read
    parts: tuple[StatePart, ...]  # that are there, and are saved with the disks
    skipped: tuple[SkippedDisk, ...]
    refusals: tuple[DriverError, ...]

    def holds(self, *kinds: Kind) -> bool:
        return any(part.kind in kinds for part in self.parts)

    def refuse(self) -> None:
        """Raises the first kind of refusal, with the texts of all of that kind."""
        if self.refusals:
            kind = type(self.refusals[0])
            raise kind("; ".join(str(each) for each in self.refusals if type(each) is kind)) from self.refusals[0]


async def judge(found: Hardware) -> Judgement:
    """Changes nothing, whether the domain runs or not."""
    refusals: list[DriverError] = [UnsupportedServer(text) for text in found.troubles]
    images: dict[FileDisk, Image] = {}
    for disk in found.disks:
        try:
            images[disk] = await disks.readable(disk)
            await disks.refuse_unfit(disk, images[disk])
        except DriverError as error:
            refusals.append(error)
    refusals += await asyncio.to_thread(_same_files, [*images])
    parts, unheld = await asyncio.to_thread(_parts, found, refusals)
    return Judgement(images=images, parts=parts, skipped=(*found.skipped, *unheld), refusals=tuple(refusals))


def _same_files(of: list[FileDisk]) -> list[DriverError]:
    """A file that two disks have under two names, by a link: the XML does not tell."""
    first: dict[tuple[int, int], FileDisk] = {}
    refusals: list[DriverError] = []
    for disk in of:
        with disks.refused_as(UnsupportedServer, f"disk {disk.target} can't be looked at"):
            status = os.stat(disk.path)
        other = first.setdefault((status.st_dev, status.st_ino), disk)
        if other is not disk and os.path.normpath(other.path) != os.path.normpath(disk.path):
            refusals.append(UnsupportedServer(f"disk {disk.target} shares its file with disk {other.target}"))
    return refusals


def _parts(found: Hardware, refusals: list[DriverError]) -> tuple[tuple[StatePart, ...], tuple[SkippedDisk, ...]]:
    held, unheld = [], []
    for part in found.parts:
        copies = Copies(images=[Path(disk.path) for disk in found.disks], parts=[part])
        try:
            with disks.refused_as(UnsupportedServer, f"{WORDS[part.kind]} can't be copied"):
                if copies.present():
                    held.append(part)
                else:
                    unheld.append(SkippedDisk(target=part.kind, reason=NOT_YET[part.kind]))
                if found.disks:
                    copies.refuse_unwritable()
        except DriverError as error:
            refusals.append(error)
    return tuple(held), tuple(unheld)
