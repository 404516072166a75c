"""A server's snapshots: what is written down of them beside what its disks hold."""

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
)
from drivers.kvm.disks import refused_as
from drivers.kvm.domain_xml import FileDisk, Hardware, Kind
from drivers.kvm.judgement import not_yet
from drivers.kvm.listing import OURS, Written
from drivers.kvm.plan import Comparison, DiskNow, StateBeside, compare, differing_state, with_stamps
from drivers.kvm.records import Record
from drivers.kvm.state_copies import Copies
from drivers.qcow2_tables import TablesUnreadable


@dataclass(frozen=True, kw_only=True)
class View:
    """All that can be known of a server's snapshots without changing anything."""

    hardware: Hardware
    disks: tuple[DiskNow, ...]
    written: Written
    present: frozenset[Kind]  # UEFI variables, TPM: what the server has now beside its disks
    copies: Mapping[str, frozenset[Kind]]  # of them, by tag

    @property
    def tags(self) -> frozenset[str]:
        on_disks = {entry.name for disk in self.disks for entry in disk.tables.snapshots}
        return frozenset({*on_disks, *self.written.records, *self.written.listed, *self.copies})

    def contents(self, tag: str) -> Contents | None:
        """What the snapshot is written down to hold."""
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
        """The disks of the server that have a snapshot of this name."""
        return frozenset(disk.disk.target for disk in self.disks if disk.tables.named(tag))

    def missing(self, tag: str, *, for_certain: bool = False) -> tuple[str, ...]:
        """Why a restore to it would not bring back all, a sentence for each thing.

        `for_certain`: without what may be as it was.
        """
        comparison = self.compare(tag)
        if not self.holders(tag) and not comparison.differing:
            return ("no disk holds the snapshot",)
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
            settled=not (tag.startswith(OURS) and (tag in written.listed or tag in written.unsettled)),
        )

    def record(self, spec: SnapshotSpec, contents: Contents | None) -> Record | None:
        """What to write down of a snapshot; None where nothing says what it holds and a disk lacks it."""
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
        contents = replace(now, disks=held, nvram=copies.nvram, tpm=copies.tpm, left_out=left_out)
        return Record(spec=spec, contents=contents)


def contents_of(hardware: Hardware) -> Contents:
    """What a snapshot of such a server holds, as far as its XML says."""
    return Contents(
        disks=tuple(HeldDisk(target=disk.target, path=disk.path, virtual_bytes=0) for disk in hardware.disks),
        left_out=hardware.skipped,
        firmware=hardware.firmware,
        nvram=any(part.kind is not Kind.TPM for part in hardware.parts),
        tpm=any(part.kind is Kind.TPM for part in hardware.parts),
    )


def copies_of(found: Hardware, *held: Contents | None, former: Sequence[Path] = ()) -> Copies:
    """`held`: what snapshots hold whose copies are looked for; they lie beside the disk that was the first one then.
    `former`: see Copies."""
    then = (disk.path for contents in held if contents for disk in contents.disks)
    images = dict.fromkeys([*(disk.path for disk in found.disks), *then])
    return Copies(images=[Path(path) for path in images], parts=found.parts, former=former)


async def look(found: Hardware, written: Written) -> View:
    """Raises UnsupportedServer where a disk or a copy can't be looked at."""
    copies = copies_of(found, *(record.contents for record in written.records.values()))
    with refused_as(UnsupportedServer, "the copies of the UEFI variables or the TPM can't be looked at"):
        by_tag = await asyncio.to_thread(copies.tags)
        present = frozenset(part.kind for part in await asyncio.to_thread(copies.present))
    return View(hardware=found, disks=await read_disks(found.disks), written=written, present=present, copies=by_tag)


async def read_disks(disks: Sequence[FileDisk]) -> tuple[DiskNow, ...]:
    """Raises UnsupportedServer for a file that is not there or no qcow2 image."""
    return tuple([await _read(disk) for disk in disks])


async def _read(disk: FileDisk) -> DiskNow:
    try:
        if not await asyncio.to_thread(Path(disk.path).is_file):
            raise UnsupportedServer(f"disk {disk.target} has no file")
        tables = await asyncio.to_thread(qcow2_tables.read, disk.path)
        return DiskNow(disk=disk, tables=tables, base=await asyncio.to_thread(image_chain.base, disk.path))
    except (TablesUnreadable, OSError) as error:
        raise UnsupportedServer(f"disk {disk.target} can't be read as qcow2") from error


def left_behind(tag: str, contents: Contents, disks: Sequence[FileDisk]) -> tuple[FileDisk, ...]:
    """The files that hold the snapshot, as it is written down, and are no disk of the server any more. Blocks."""
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
        return False  # the file is gone, or is another's by now
    return any(entry.stamp == held.stamp or not held.stamp for entry in tables.named(tag))


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one == other
