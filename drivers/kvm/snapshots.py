"""A server's snapshots: their records combined with what its disks hold."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drivers import image_chain, qcow2_tables
from drivers.base import (
    Contents,
    FoundSnapshot,
    HeldDisk,
    SkippedDisk,
    SnapshotSpec,
    UnsupportedServer,
    is_ours,
)
from drivers.kvm.disks import refused_as
from drivers.kvm.domain_xml import FileDisk, Hardware, Kind
from drivers.kvm.judgment import not_yet
from drivers.kvm.listing import Written
from drivers.kvm.plan import Comparison, DiskNow, StateBeside, compare, differing_state, with_stamps
from drivers.kvm.records import Record
from drivers.kvm.state_copies import Copies
from drivers.qcow2_header import TablesUnreadable


@dataclass(frozen=True, kw_only=True)
class View:
    """A read-only view of all of a server's snapshots."""

    hardware: Hardware
    disks: tuple[DiskNow, ...]
    written: Written
    present: frozenset[Kind]  # state files (UEFI variables, TPM) that exist now
    copies: Mapping[str, frozenset[Kind]]  # copies of state files, by tag

    @property
    def tags(self) -> frozenset[str]:
        on_disks = {entry.name for disk in self.disks for entry in disk.tables.snapshots}
        return frozenset({*on_disks, *self.written.records, *self.written.listed, *self.copies})

    def contents(self, tag: str) -> Contents | None:
        """The snapshot's recorded contents; None without a record."""
        if tag in self.written.records:
            return self.written.records[tag].contents
        listed = self.written.listed.get(tag)
        if listed is None or listed.hardware is None:
            return None
        contents = contents_of(listed.hardware)
        return with_stamps(contents, compare(tag, contents, self.disks, self.hardware.skipped))

    def compare(self, tag: str) -> Comparison:
        return compare(tag, self.contents(tag), self.disks, self.hardware.skipped)

    def holders(self, tag: str) -> frozenset[str]:
        """The targets of the server's disks that have a snapshot of this name."""
        return frozenset(disk.disk.target for disk in self.disks if disk.tables.named(tag))

    def missing(self, tag: str, *, for_certain: bool = False) -> tuple[str, ...]:
        """The reasons why a restore to the tag would be incomplete, one per part.

        `for_certain`: without disks that are merely doubtful (see `Comparison`).
        """
        comparison = self.compare(tag)
        if not self.holders(tag) and not comparison.differing:
            return ("no disk has the snapshot",)
        differing = comparison.left_alone() if for_certain else comparison.differing
        return tuple(skipped.reason for skipped in (*differing, *self.differing_state(tag)))

    def differing_state(self, tag: str) -> tuple[SkippedDisk, ...]:
        firmware = self.hardware.firmware
        now = StateBeside.of(frozenset(part.kind for part in self.hardware.parts), firmware)
        return differing_state(self.contents(tag), now, StateBeside.of(self.present, firmware), self._copied(tag))

    def _copied(self, tag: str) -> StateBeside:
        return StateBeside.of(self.copies.get(tag, frozenset()), self.hardware.firmware)

    def found(self) -> list[FoundSnapshot]:
        return [self._found(tag) for tag in sorted(self.tags)]

    def _found(self, tag: str) -> FoundSnapshot:
        missing = self.missing(tag)
        written = self.written
        return FoundSnapshot(
            tag=tag,
            targets=self.holders(tag),
            complete=not missing,
            spec=written.spec(tag),
            current=tag == written.current,
            contents=self.contents(tag),
            missing=missing,
            settled=not (is_ours(tag) and (tag in written.listed or tag in written.unsettled)),
        )

    def record(self, spec: SnapshotSpec, contents: Contents | None, *, consistency: str | None = None) -> Record | None:
        """The record to write for a snapshot; None if its contents are unknown and a disk lacks it. `consistency`: for
        contents that are unknown."""
        known = contents or self.contents(spec.tag)
        if known is not None:
            comparison = compare(spec.tag, known, self.disks, self.hardware.skipped)
            return Record(spec=spec, contents=with_stamps(known, comparison))
        comparison = self.compare(spec.tag)
        if not comparison.is_whole:
            return None
        held = tuple(match.held for match in comparison.matches)
        copies = self._copied(spec.tag)
        now = contents_of(self.hardware)
        left_out = (*now.left_out, *not_yet(self.hardware.parts, self.copies.get(spec.tag, frozenset())))
        contents = replace(
            now, disks=held, nvram=copies.nvram, tpm=copies.tpm, left_out=left_out, consistency=consistency
        )
        return Record(spec=spec, contents=contents)


def contents_of(hardware: Hardware) -> Contents:
    """The contents of a snapshot of this hardware as far as the XML shows them, without sizes and stamps."""
    return Contents(
        disks=tuple(HeldDisk(target=disk.target, path=disk.path, virtual_bytes=0) for disk in hardware.disks),
        left_out=hardware.skipped,
        firmware=hardware.firmware,
        nvram=any(part.kind is not Kind.TPM for part in hardware.parts),
        tpm=any(part.kind is Kind.TPM for part in hardware.parts),
    )


def copies_of(found: Hardware, *held: Contents | None, former: Sequence[Path] = ()) -> Copies:
    """The copies of state files of a server.

    `held`: contents of the snapshots whose copies are needed; they lie next to the disk that was the first at that
    time. `former`: see Copies.
    """
    then = (disk.path for contents in held if contents for disk in contents.disks)
    images = dict.fromkeys([*(disk.path for disk in found.disks), *then])
    return Copies(images=[Path(path) for path in images], parts=found.parts, former=former, places=found.places)


async def look(found: Hardware, written: Written) -> View:
    """Read the disks and copies. Raises UnsupportedServer if one cannot be read."""
    copies = copies_of(found, *(record.contents for record in written.records.values()))
    with refused_as(UnsupportedServer, "the copies of the UEFI variables or the TPM cannot be read"):
        by_tag = await asyncio.to_thread(copies.tags)
        present = frozenset(part.kind for part in await asyncio.to_thread(copies.present))
    return View(hardware=found, disks=await read_disks(found.disks), written=written, present=present, copies=by_tag)


async def read_disks(disks: Sequence[FileDisk]) -> tuple[DiskNow, ...]:
    """Read the disks' tables. Raises UnsupportedServer if a file is missing or not a qcow2 image."""
    return tuple([await _read(disk) for disk in disks])


async def _read(disk: FileDisk) -> DiskNow:
    try:
        if not await asyncio.to_thread(Path(disk.path).is_file):
            raise UnsupportedServer(f"the file of disk {disk.target} is missing")
        tables = await asyncio.to_thread(qcow2_tables.read, disk.path)
        return DiskNow(disk=disk, tables=tables, base=await asyncio.to_thread(image_chain.base, disk.path))
    except (TablesUnreadable, OSError) as error:
        raise UnsupportedServer(f"disk {disk.target} cannot be read as qcow2") from error


def left_behind(tag: str, contents: Contents, disks: Sequence[FileDisk]) -> tuple[FileDisk, ...]:
    """The recorded disks that still have the snapshot, but are no longer attached to the server. Blocks."""
    paths = [disk.path for disk in disks]
    return tuple(
        FileDisk(target=held.target, path=held.path) for held in contents.disks if _is_left_behind(tag, held, paths)
    )


def _is_left_behind(tag: str, held: HeldDisk, paths: Sequence[str]) -> bool:
    if any(_is_same_file(held.path, path) for path in paths):
        return False
    try:
        tables = qcow2_tables.read(held.path)
    except TablesUnreadable:
        return False  # the file is gone or was replaced
    return any(entry.stamp == held.stamp or not held.stamp for entry in tables.named(tag))


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one == other
