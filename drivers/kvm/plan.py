"""Compares a snapshot with the server's current disks to determine what a restore would revert.

A disk is identified by the stamp of the snapshot's entry in its image, which stays the same when the file is moved or
attached as another target. Targets and paths are only used in texts and for snapshots of older versions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from drivers import image_chain
from drivers.base import (
    Contents,
    DisksDiffer,
    Firmware,
    GrownDisk,
    HeldDisk,
    SkippedDisk,
    SnapshotNotFound,
    UnsupportedServer,
)
from drivers.kvm.domain_xml import FileDisk, Kind
from drivers.qcow2_image import VERSION_OF_FIXED_SIZE
from drivers.qcow2_tables import Entry, Tables


@dataclass(frozen=True, kw_only=True)
class DiskNow:
    """A current disk of the server."""

    disk: FileDisk
    tables: Tables
    base: str  # fingerprint of the backing files, as in `HeldDisk.base`

    def entry(self, tag: str) -> Entry | None:
        """The snapshot of this name; None if there is none or more than one."""
        named = self.tables.named(tag)
        return named[0] if len(named) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Match:
    """A current disk that the snapshot holds."""

    now: DiskNow
    entry: Entry

    @property
    def target(self) -> str:
        return self.now.disk.target

    @property
    def virtual_bytes(self) -> int:
        """The disk's size in the snapshot, which a revert restores."""
        return self.now.tables.virtual_bytes if self.entry.virtual_bytes is None else self.entry.virtual_bytes

    @property
    def grown(self) -> GrownDisk | None:
        now = self.now.tables.virtual_bytes
        if now <= self.virtual_bytes:
            return None
        return GrownDisk(target=self.target, snapshot_bytes=self.virtual_bytes, virtual_bytes=now)

    @property
    def held(self) -> HeldDisk:
        disk = self.now.disk
        return HeldDisk(
            target=disk.target,
            path=disk.path,
            virtual_bytes=self.virtual_bytes,
            stamp=self.entry.stamp,
            base=self.now.base,
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A snapshot compared with the server's disks."""

    matches: tuple[Match, ...]
    differing: tuple[SkippedDisk, ...]  # in the snapshot but not attached, or vice versa; each reason names its disk
    doubtful: tuple[Match, ...] = ()  # disks in `differing` whose base image has only another time; reverted on request
    on_other_bases: bool = False  # some of `differing` have the snapshot, but another base image

    def going_back(self, *, present_only: bool) -> tuple[Match, ...]:
        return (*self.matches, *self.doubtful) if present_only else self.matches

    def left_alone(self) -> tuple[SkippedDisk, ...]:
        """What a restore with `present_only` does not revert."""
        going = {match.target for match in self.doubtful}
        return tuple(skipped for skipped in self.differing if skipped.target not in going)

    @property
    def is_whole(self) -> bool:
        return bool(self.matches) and not self.differing


def compare(
    tag: str, contents: Contents | None, now: Sequence[DiskNow], left_out_now: Iterable[SkippedDisk]
) -> Comparison:
    """`contents`: the snapshot's recorded contents; None: without a record."""
    if contents is None:
        return _compare_unwritten(tag, now)
    matches: list[Match] = []
    doubtful: list[Match] = []
    differing: list[SkippedDisk] = []
    on_other_bases = False
    free = list(now)
    for held in contents.disks:
        match = _find(tag, held, free)
        if match is not None and held.base is not None and not image_chain.is_same(held.base, match.now.base):
            is_touched = image_chain.is_same_but_for_times(held.base, match.now.base)
            doubtful += [match] if is_touched else []
            reason = _why_doubtful(match) if is_touched else _why_worthless(match)
            differing.append(SkippedDisk(target=match.target, reason=reason))
            free.remove(match.now)
            on_other_bases = True
        elif match is None:
            differing.append(SkippedDisk(target=held.target, reason=_why_gone(tag, held, now, left_out_now)))
        else:
            matches.append(match)
            free.remove(match.now)
    named = {skipped.target for skipped in differing}
    differing += [
        SkippedDisk(target=one.disk.target, reason=f"disk {one.disk.target} was added after the snapshot was taken")
        for one in free
        if one.disk.target not in named
    ]
    return Comparison(
        matches=tuple(matches), differing=tuple(differing), doubtful=tuple(doubtful), on_other_bases=on_other_bases
    )


def _compare_unwritten(tag: str, now: Sequence[DiskNow]) -> Comparison:
    entries = [(one, one.entry(tag)) for one in now]
    return Comparison(
        matches=tuple(Match(now=one, entry=entry) for one, entry in entries if entry is not None),
        differing=tuple(
            SkippedDisk(target=one.disk.target, reason=f"disk {one.disk.target} does not have the snapshot")
            for one, entry in entries
            if entry is None
        ),
    )


def _find(tag: str, held: HeldDisk, free: Iterable[DiskNow]) -> Match | None:
    def likeness(one: DiskNow) -> tuple[bool, bool]:  # decides between copies of the file, which have the same stamp
        return one.disk.path == held.path, one.disk.target == held.target

    for one in sorted(free, key=likeness, reverse=True):
        entry = one.entry(tag)
        if entry is None:
            continue
        if entry.stamp == held.stamp or (not held.stamp and any(likeness(one))):
            return Match(now=one, entry=entry)
    return None


def _why_worthless(match: Match) -> str:
    """Why the snapshot's data on the disk is lost. An image has one base for the disk and all its snapshots, so another
    base destroys them."""
    if not match.now.base:
        return f"disk {match.target} no longer has the base image that the snapshot depends on"
    return f"the base image of disk {match.target} was replaced or changed after the snapshot was taken"


def _why_doubtful(match: Match) -> str:
    return (
        f"the base image of disk {match.target} has another modification time than when the snapshot was taken:"
        " it may have been changed"
    )


def _why_gone(tag: str, held: HeldDisk, now: Sequence[DiskNow], left_out_now: Iterable[SkippedDisk]) -> str:
    target = held.target
    for skipped in left_out_now:
        if skipped.target == target:
            return f"disk {target} is in the snapshot, but is left out of snapshots now: {skipped.reason}"
    for one in now:
        if one.disk.path == held.path:
            found = len(one.tables.named(tag))
            if found > 1:
                return f"disk {one.disk.target} has more than one snapshot of this name"
            if found:
                return f"disk {one.disk.target} has a different snapshot of this name"
            return f"disk {one.disk.target} no longer has the snapshot"
    if any(one.disk.target == target for one in now):
        return f"disk {target} was replaced: the snapshot holds the previous disk"
    return f"disk {target} is in the snapshot, but is no longer attached to the server"


@dataclass(frozen=True, kw_only=True)
class StateBeside:
    """The state other than disks that a server has, or that a snapshot holds."""

    nvram: bool
    tpm: bool
    firmware: Firmware

    @classmethod
    def of(cls, kinds: frozenset[Kind], firmware: Firmware) -> Self:
        return cls(nvram=bool(kinds - {Kind.TPM}), tpm=Kind.TPM in kinds, firmware=firmware)


def differing_state(
    contents: Contents | None, now: StateBeside, present: StateBeside, copies: StateBeside
) -> tuple[SkippedDisk, ...]:
    """Differences in UEFI variables, TPM and firmware, each with a reason.

    `now`: in the server's definition. `present`: those of `now` whose files exist. `copies`: the snapshot's copies that
    exist.
    """
    held = contents or Contents(disks=(), nvram=copies.nvram, tpm=copies.tpm, firmware=now.firmware)
    none_then = {"nvram" if skipped.target == Kind.PFLASH else skipped.target for skipped in held.left_out}
    differing = []
    for target, name, has, is_used, holds, is_there in (
        ("nvram", "UEFI variables", now.nvram, present.nvram, held.nvram, copies.nvram),
        ("tpm", "TPM state", now.tpm, present.tpm, held.tpm, copies.tpm),
    ):
        if holds and not has:
            reason = f"the snapshot holds {name}, but the server has none now"
        elif holds and not is_there:
            reason = f"the snapshot's copy of the {name} is missing"
        elif is_used and not is_there and target not in none_then:
            reason = f"the server has {name}, but the snapshot holds none"
        else:
            continue
        differing.append(SkippedDisk(target=target, reason=reason))
    if held.firmware != now.firmware:
        before, after = held.firmware.upper(), now.firmware.upper()
        reason = f"the server boots with {after} now, but booted with {before} when the snapshot was taken"
        differing.append(SkippedDisk(target="firmware", reason=reason))
    return tuple(differing)


def refuse(found: Comparison, state: Sequence[SkippedDisk], *, present_only: bool) -> None:
    """Raises SnapshotNotFound, DisksDiffer or UnsupportedServer, all before any change."""
    reasons = [skipped.reason for skipped in (*found.differing, *state)]
    going = found.going_back(present_only=present_only)
    if not found.matches and not found.on_other_bases:
        raise SnapshotNotFound("no disk of the server has the snapshot")
    if reasons and not (present_only and going):
        raise DisksDiffer("; ".join(reasons))
    for match in going:
        now = match.now.tables
        if now.virtual_bytes < match.virtual_bytes:
            raise UnsupportedServer(f"disk {match.target} is smaller now than it was when the snapshot was taken")
        if match.grown and now.version == VERSION_OF_FIXED_SIZE:
            raise UnsupportedServer(
                f"disk {match.target} was enlarged after the snapshot, and a restore could not enlarge it again:"
                " its image has the old format version 2 (compat=0.10)"
            )


def with_stamps(contents: Contents, found: Comparison) -> Contents:
    """Contents recorded by an older version, completed with stamps and sizes from the current disks."""
    stamps = {match.now.disk.path: match.held for match in found.matches}
    return replace(
        contents,
        disks=tuple(
            disk
            if disk.stamp or disk.path not in stamps
            else replace(disk, stamp=stamps[disk.path].stamp, virtual_bytes=stamps[disk.path].virtual_bytes)
            for disk in contents.disks
        ),
    )
