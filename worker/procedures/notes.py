"""The notes of a job: facts for the customer besides the outcome."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from pydantic import TypeAdapter

from drivers import base
from worker.store.model import Contents, HeldDisk, LeftOut, Note, NoteCode

_CONTENTS, _BASE_CONTENTS = TypeAdapter(Contents), TypeAdapter(base.Contents)  # they have the same fields


def contents_of(layout: base.Layout) -> Contents:
    """What a snapshot of a server with this layout would hold."""
    return Contents(
        disks=tuple(
            HeldDisk(target=disk.target, path=disk.path, virtual_bytes=disk.virtual_bytes) for disk in layout.disks
        ),
        left_out=tuple(LeftOut(target=disk.target, reason=disk.reason) for disk in layout.skipped),
        firmware=layout.firmware,
        nvram=layout.nvram,
        tpm=layout.tpm,
    )


def contents_held(held: base.Contents) -> Contents:
    """Convert the driver's record of a snapshot's contents to the store's."""
    return _CONTENTS.validate_python(asdict(held))


def contents_to_write(held: Contents | None) -> base.Contents | None:
    """Convert the store's record of a snapshot's contents to the driver's. The inverse of `contents_held`."""
    return None if held is None else _BASE_CONTENTS.validate_python(asdict(held))


def left_out(contents: Contents) -> tuple[Note, ...]:
    each = ", ".join(f"{one.target} ({one.reason})" for one in contents.left_out)
    return _about_disks(NoteCode.LEFT_OUT, f"The snapshot does not hold {each}.", contents.left_out)


def not_restored(disks: Sequence[base.SkippedDisk]) -> tuple[Note, ...]:
    """`disks`: the reason of each disk names it."""
    return _about_disks(NoteCode.NOT_RESTORED, f"Not restored: {'; '.join(disk.reason for disk in disks)}.", disks)


def kept_sizes(disks: Iterable[base.GrownDisk]) -> tuple[Note, ...]:
    return tuple(
        Note(
            code=NoteCode.DISK_KEPT_SIZE,
            detail=f"Disk {disk.target} was enlarged after the snapshot, from {disk.snapshot_bytes >> 20} MiB to "
            f"{disk.virtual_bytes >> 20} MiB. It keeps its current size.",
            disks=(disk.target,),
        )
        for disk in disks
    )


def backup_chain_ended(targets: tuple[str, ...]) -> Note:
    return Note(
        code=NoteCode.BACKUP_CHAIN_ENDED,
        detail="The restore ends the server's chain of incremental backups: it removes their dirty bitmaps and"
        " checkpoints. The next backup must be a full backup.",
        disks=targets,
    )


def repaired(targets: tuple[str, ...]) -> Note:
    return Note(
        code=NoteCode.DISK_REPAIRED,
        detail=f"Disk damage was found and repaired before the first change: {', '.join(targets)}. If these disks are"
        " backed up incrementally, the next backup must be a full backup.",
        disks=targets,
    )


def resources_reduced(less: Sequence[str]) -> tuple[Note, ...]:
    """`less`: texts such as "2 vCPUs instead of 4"."""
    detail = f"The server starts again from its saved definition, which has {' and '.join(less)}."
    return (Note(code=NoteCode.RESOURCES_REDUCED, detail=detail),) if less else ()


STATE_CHANGED = Note(
    code=NoteCode.STATE_CHANGED,
    detail="The server's UEFI variables or its TPM changed while the snapshot was taken. The snapshot holds a slightly"
    " older state of them than of the disks.",
)
GENERATION_ID_CHANGED = Note(
    code=NoteCode.GENERATION_ID_CHANGED, detail="The server got a new VM generation ID, as with every restore."
)


def _about_disks(
    code: NoteCode, detail: str, disks: Sequence[base.SkippedDisk] | Sequence[LeftOut]
) -> tuple[Note, ...]:
    return (Note(code=code, detail=detail, disks=tuple(disk.target for disk in disks)),) if disks else ()
