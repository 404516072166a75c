"""What a snapshot of a server would hold, and why it would be refused: for `layout` and for the survey."""

import asyncio
import os.path
from collections.abc import Container, Iterable, Mapping, Sequence
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
class Judgment:
    images: Mapping[FileDisk, Image]  # the readable disks
    parts: tuple[StatePart, ...]  # the state files that exist
    skipped: tuple[SkippedDisk, ...]
    refusals: tuple[DriverError, ...]

    def holds(self, *kinds: Kind) -> bool:
        return any(part.kind in kinds for part in self.parts)

    def refuse(self) -> None:
        """Raises an error of the first refusal's class, with the texts of all refusals of that class."""
        if self.refusals:
            kind = type(self.refusals[0])
            raise kind("; ".join(str(each) for each in self.refusals if type(each) is kind)) from self.refusals[0]


async def judge(found: Hardware) -> Judgment:
    """Check the disks and state files. Read-only; works whether the domain runs or not."""
    images, refusals = await judge_disks(found.disks)
    parts, unheld, unfit = await asyncio.to_thread(_parts, found)
    return Judgment(
        images=images,
        parts=tuple(parts),
        skipped=(*found.skipped, *unheld),
        refusals=(*(UnsupportedServer(text) for text in found.troubles), *refusals, *unfit),
    )


async def judge_disks(of: Sequence[FileDisk]) -> tuple[dict[FileDisk, Image], list[DriverError]]:
    """The readable images, and the problems of any."""
    judged = await asyncio.gather(*map(_judge_disk, of))
    images = {disk: image for disk, (image, _) in zip(of, judged, strict=True) if image is not None}
    refusals = [error for _, error in judged if error is not None]
    # disks with the same path are refused by `hardware`
    return images, refusals + await asyncio.to_thread(_same_files, [*images])


async def _judge_disk(disk: FileDisk) -> tuple[Image | None, DriverError | None]:
    # concurrently, because a server that is off waits for both programs
    image, opened = await asyncio.gather(disks.readable(disk), disks.refuse_unopenable(disk), return_exceptions=True)
    if isinstance(image, BaseException):
        return None, _expected(image)
    try:
        await disks.refuse_unfit(disk, image)
    except DriverError as error:
        return image, error
    return image, _expected(opened) if opened is not None else None


def _expected(error: BaseException) -> DriverError:
    """Return errors about the disk; raise any other error."""
    if not isinstance(error, DriverError):
        raise error
    return error


def _same_files(of: Sequence[FileDisk]) -> list[DriverError]:
    """Refuse two disks with different paths to the same file, through a symbolic or hard link."""
    first: dict[tuple[int, int], FileDisk] = {}
    refusals: list[DriverError] = []
    for path, disk in {os.path.normpath(disk.path): disk for disk in of}.items():
        try:
            status = os.stat(path)
        except OSError:
            refusals.append(UnsupportedServer(f"disk {disk.target} cannot be accessed"))
            continue
        other = first.setdefault((status.st_dev, status.st_ino), disk)
        if other is not disk:
            refusals.append(UnsupportedServer(f"disk {disk.target} uses the same file as disk {other.target}"))
    return refusals


def _parts(found: Hardware) -> tuple[list[StatePart], list[SkippedDisk], list[DriverError]]:
    """The state files that exist, those that do not, and why some cannot be copied."""
    held: list[StatePart] = []
    unheld: list[SkippedDisk] = []
    refusals: list[DriverError] = []
    for part in found.parts:
        copies = Copies(images=[Path(disk.path) for disk in found.disks], parts=[part], places=found.places)
        try:
            with disks.refused_as(UnsupportedServer, f"{WORDS[part.kind]} cannot be copied"):
                if copies.present():
                    held.append(part)
                else:
                    unheld += not_yet([part], ())
                if found.disks:
                    copies.refuse_unwritable()
        except DriverError as error:
            refusals.append(error)
    return held, unheld, refusals


def not_yet(parts: Iterable[StatePart], there: Container[Kind]) -> tuple[SkippedDisk, ...]:
    """The parts that had no file when a snapshot was taken. `there`: the kinds that the snapshot has copies of."""
    return tuple(SkippedDisk(target=part.kind, reason=NOT_YET[part.kind]) for part in parts if part.kind not in there)
