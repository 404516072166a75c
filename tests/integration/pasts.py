"""What other tools, its owner and time have done to a server since a snapshot of it was taken."""

import copy
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from drivers.fake_state import FakeDisk, FakeServer
from worker.store.model import Job, JobKind, JobState, NoteCode

GIB = 1 << 30
OVERWRITING = {JobKind.RESTORE, JobKind.UNDO}


class Past(StrEnum):
    QUIET = "quiet"  # the guest wrote, and nothing else happened
    WORN = "worn"  # backed up with bitmaps and checkpoints, one disk enlarged, one damaged repairably
    REBUILT = "rebuilt"  # one disk detached and another one attached; backed up


def befall(server: FakeServer, past: Past, *, text: str) -> None:
    """Apply this past, possibly again. `text`: the content of the guest's disks."""
    if past is Past.QUIET:
        return
    first = next(iter(server.disks.values()))
    first.bitmaps, server.checkpoints = ["b0", "b1"], ["c0"]
    if past is Past.WORN:
        first.virtual_bytes += 20 * GIB
        list(server.disks.values())[-1].damaged = True
    elif not server.detached:
        server.detached["vdb"] = server.disks.pop("vdb")
        server.disks["vdc"] = FakeDisk(content=text, bitmaps=["b0"])


@dataclass(frozen=True, kw_only=True)
class Held:
    """The data that a snapshot holds of each image, regardless of the server to which it is attached."""

    text: str
    virtual_bytes: dict[str, int]  # by image

    @classmethod
    def now(cls, server: FakeServer, text: str) -> Self:
        return cls(text=text, virtual_bytes={disk.image: disk.virtual_bytes for disk in server.disks.values()})

    def check(self, server: FakeServer, tag: str) -> None:
        """Check that it is whole, also on disks that no longer belong to the server, and recorded."""
        images = [*server.disks.values(), *server.detached.values()]
        holders = {disk.image: disk for disk in images if tag in disk.tags}
        assert {image: disk.tag_bytes[tag] for image, disk in holders.items()} == self.virtual_bytes
        assert {disk.tags[tag] for disk in holders.values()} == {self.text}
        assert server.nvram_copies[tag] == self.text
        assert tag in server.listed
        assert {disk.stamp: disk.virtual_bytes for disk in server.contents[tag].disks} == self.virtual_bytes


@dataclass(kw_only=True)
class Found:
    """The state of a server at the start of a job, to be compared with its end."""

    before: FakeServer
    goes_back_to: Held | None = field(default=None)  # None: the job overwrites nothing

    @classmethod
    def now(cls, server: FakeServer, *, goes_back_to: Held | None) -> Self:
        return cls(before=copy.deepcopy(server), goes_back_to=goes_back_to)

    def check(self, server: FakeServer, job: Job) -> None:
        """Check that contents, sizes, bitmaps, generation ID and damage are as that job must leave them."""
        before, target = self.before, self.goes_back_to if job.state is JobState.COMPLETED else None
        for name, disk in server.disks.items():
            went_back = target is not None and disk.image in target.virtual_bytes
            assert disk.content == (target.text if target and went_back else before.disks[name].content), name
            assert disk.virtual_bytes == before.disks[name].virtual_bytes, name
            if job.state is JobState.COMPLETED and job.kind is not JobKind.DELETE and not job.live:
                assert not disk.damaged, name
        assert server.nvram == (before.nvram if target is None else target.text)
        self._check_chain(server, job)
        self._check_generation(server, job)
        if target is not None and any(
            target.virtual_bytes.get(disk.image, disk.virtual_bytes) != disk.virtual_bytes
            for disk in server.disks.values()
        ):
            assert NoteCode.DISK_KEPT_SIZE in _told(job)

    def _check_chain(self, server: FakeServer, job: Job) -> None:
        """Check that only a restore ends a backup chain, without a wrong bitmap, and that it reports this."""
        is_as_before = _chain(server) == _chain(self.before)
        assert is_as_before or (job.kind in OVERWRITING and NoteCode.BACKUP_CHAIN_ENDED in _told(job)), job
        if job.kind in OVERWRITING and job.state is JobState.COMPLETED:
            assert not any(_chain(server).values())

    def _check_generation(self, server: FakeServer, job: Job) -> None:
        if job.kind in OVERWRITING and job.state is JobState.COMPLETED and self.before.generation is not None:
            assert server.generation != self.before.generation
            assert NoteCode.GENERATION_ID_CHANGED in _told(job)
        elif job.kind not in OVERWRITING:
            assert server.generation == self.before.generation


def _chain(server: FakeServer) -> dict[str, list[str]]:
    """The data that the next incremental backup needs."""
    return {"checkpoints": server.checkpoints} | {target: disk.bitmaps for target, disk in server.disks.items()}


def _told(job: Job) -> set[NoteCode]:
    return {note.code for note in job.notes}
