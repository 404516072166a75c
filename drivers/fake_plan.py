"""Restore plans of the fake hypervisor: the disks that a snapshot holds and those that the server has now."""

from collections.abc import Iterator

from drivers.base import (
    Contents,
    DisksDiffer,
    Firmware,
    GrownDisk,
    HeldDisk,
    RestorePlan,
    SkippedDisk,
    SnapshotNotFound,
    UnsupportedServer,
)
from drivers.fake_state import FakeDisk, FakeServer


def path(server: FakeServer, target: str) -> str:
    return f"/simulated/{server.name}/{target}.qcow2"


def contents_now(server: FakeServer, tag: str, consistency: str | None) -> Contents:
    """The contents of a snapshot that has just been taken."""
    return Contents(
        disks=tuple(
            HeldDisk(
                target=target,
                path=path(server, target),
                virtual_bytes=disk.tag_bytes.get(tag, disk.virtual_bytes),
                stamp=disk.image,
            )
            for target, disk in server.disks.items()
        ),
        left_out=tuple(SkippedDisk(target=target, reason=reason) for target, reason in server.skipped.items()),
        firmware=Firmware.BIOS if server.nvram is None else Firmware.UEFI,
        nvram=server.nvram is not None,
        consistency=consistency,
    )


def missing(server: FakeServer, tag: str) -> tuple[str, ...]:
    nvram = () if server.nvram is None or tag in server.nvram_copies else ("the snapshot has no UEFI variables",)
    return (*(disk.reason for disk in _differing(server, tag)), *nvram)


def is_complete(server: FakeServer, tag: str) -> bool:
    return any(tag in disk.tags for disk in server.disks.values()) and not missing(server, tag)


def restore_plan(server: FakeServer, tag: str, *, present_only: bool) -> RestorePlan:
    """Raises SnapshotNotFound, DisksDiffer or UnsupportedServer."""
    disks = {target: disk for target, disk in server.disks.items() if tag in disk.tags}
    if not disks:
        raise SnapshotNotFound("no disk of the server has the snapshot")
    lacks = missing(server, tag)
    if lacks and not present_only:
        raise DisksDiffer("; ".join(lacks))
    grown = tuple(
        GrownDisk(target=target, snapshot_bytes=disk.tag_bytes[tag], virtual_bytes=disk.virtual_bytes)
        for target, disk in disks.items()
        if disk.tag_bytes.get(tag, disk.virtual_bytes) < disk.virtual_bytes
    )
    for target, disk in disks.items():
        if disk.tag_bytes.get(tag, disk.virtual_bytes) > disk.virtual_bytes:
            raise UnsupportedServer(f"disk {target} is smaller now than in the snapshot")
    for disk_grown in grown:
        if not server.disks[disk_grown.target].can_grow:
            raise UnsupportedServer(f"disk {disk_grown.target} cannot be enlarged while it has snapshots")
    return RestorePlan(
        targets=tuple(disks),
        not_restored=tuple(_differing(server, tag)),
        grown=grown,
        bitmaps=tuple(target for target, disk in disks.items() if disk.bitmaps),
        checkpoints=tuple(server.checkpoints),
        generation_id=server.generation is not None,
        reduced=server.reduced_by_a_stop(),
    )


def _differing(server: FakeServer, tag: str) -> Iterator[SkippedDisk]:
    """The disks that the snapshot holds and the server lacks, and vice versa."""
    images: dict[str, FakeDisk] = {disk.image: disk for disk in server.disks.values()}
    held = server.contents[tag].disks if tag in server.contents else ()
    for disk in held:
        if disk.stamp not in images:
            reason = f"disk {disk.target} is in the snapshot, but is no longer attached to the server"
            yield SkippedDisk(target=disk.target, reason=reason)
    for target, now in server.disks.items():
        if tag not in now.tags:
            yield SkippedDisk(target=target, reason=f"disk {target} is not in the snapshot")
