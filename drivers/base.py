"""The port: what a hypervisor can do for us, and the errors it may answer with.

Mechanism only. How long to wait, what to try again and what to do after a failure is decided by `worker.procedures`.
Every driver passes the one suite in `tests/contract`.

Words: a *domain* is libvirt's name for a VM; an *adopted* domain carries our server id and account as metadata.
A *tag* is the name of an internal qcow2 snapshot, the same on every disk of the server and in libvirt's metadata.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Protocol

MARK_NAMESPACE = "https://vps-snapshots.dev/libvirt/1"  # of the <server id= account=> in an adopted domain's metadata


class Power(StrEnum):
    """What a domain is doing, as far as its disks care."""

    ON = "on"
    OFF = "off"
    PAUSED = "paused"  # a QEMU process holds the disks but the guest does not run


@dataclass(frozen=True, kw_only=True)
class Domain:
    """An adopted domain: a customer's server as this node has it."""

    server_id: int
    account_id: int
    name: str
    power: Power


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A disk that takes part in every snapshot of its server."""

    target: str  # "vda"
    path: str
    virtual_bytes: int
    bitmaps: tuple[str, ...] = ()  # persistent dirty bitmaps: what the next incremental backup goes by


@dataclass(frozen=True, kw_only=True)
class SkippedDisk:
    """A device that no snapshot of the server holds, and why: a CD-ROM, a read-only disk, one with `snapshot='no'`."""

    target: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a snapshot of the server would hold. Reading it changes nothing, whether the domain runs or not."""

    disks: tuple[Disk, ...]
    skipped: tuple[SkippedDisk, ...]
    nvram: bool  # UEFI variables: saved and restored with the disks
    free_bytes: int  # on the fullest of the file systems that hold the disks
    tpm: bool = False  # the state of an emulated TPM: saved and restored with the disks
    firmware: Firmware = Firmware.BIOS
    checkpoints: tuple[str, ...] = ()  # the hypervisor's own records of incremental backups
    reduced: tuple[
        str, ...
    ] = ()  # what a server that runs will have less of once it was stopped: "2 vCPUs instead of 4"


@dataclass(frozen=True, kw_only=True)
class HeldDisk:
    """A disk as it was when a snapshot was taken."""

    target: str  # "vda", then
    path: str  # then
    virtual_bytes: int  # then: a revert brings this size back
    stamp: str = ""  # of the snapshot's entry in the image: the same wherever the file is moved to; "": not known
    # What lay below the image: a snapshot holds nothing of it, and is worth as much as it stays the same. "": nothing;
    # None: not known.
    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What one snapshot holds, and what it leaves out. Written down beside it when it is taken."""

    disks: tuple[HeldDisk, ...]
    left_out: tuple[SkippedDisk, ...] = ()
    firmware: Firmware = Firmware.BIOS
    nvram: bool = False
    tpm: bool = False


@dataclass(frozen=True, kw_only=True)
class GrownDisk:
    """A disk that was enlarged since the snapshot: a revert makes it small, `resize` as large as it is now."""

    target: str
    snapshot_bytes: int
    virtual_bytes: int  # now


@dataclass(frozen=True, kw_only=True)
class RestorePlan:
    """What a revert to a snapshot would do to the server as it is now."""

    targets: tuple[str, ...]  # the disks that go back
    not_restored: tuple[SkippedDisk, ...]  # with `present_only`: what does not go back, and why
    grown: tuple[GrownDisk, ...]
    bitmaps: tuple[str, ...]  # disks with dirty bitmaps, which a revert makes worthless
    checkpoints: tuple[str, ...]  # likewise
    generation_id: bool  # the guest is told by a new one that it has gone back in time
    reduced: tuple[str, ...] = ()  # as of the layout


@dataclass(frozen=True, kw_only=True)
class SnapshotSpec:
    """What is written down beside a snapshot, so that it can be read back from the node alone."""

    tag: str
    name: str
    description: str
    created_at: datetime  # UTC


@dataclass(frozen=True, kw_only=True)
class FoundSnapshot:
    """A tag as found on a server: on which disks, and whether the hypervisor lists it."""

    tag: str
    targets: frozenset[str]
    complete: bool  # all that it holds is there, and it holds every disk that the server has today
    spec: SnapshotSpec | None  # None: on a disk only; nothing is written down about it
    current: bool = False  # someone went back to it (or took it) with the hypervisor's own tools
    contents: Contents | None = None  # None: nothing is written down about it
    missing: tuple[str, ...] = ()  # why it is not complete, a sentence for each thing, for the customer's eyes
    # It is written down where it stays and keeps the server from nothing. If not, `list_snapshot` writes it there.
    settled: bool = True


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A file system that holds disks of adopted domains."""

    path: str  # where it is mounted
    free_bytes: int  # for us
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class About:
    """What the node runs on: its parts by name and version, its storage."""

    hypervisor: str  # "libvirt 9.0.0"
    emulator: str  # "QEMU 7.2.0"
    pools: tuple[Pool, ...]


@dataclass(frozen=True, kw_only=True)
class SurveyedDisk:
    target: str
    path: str
    virtual_bytes: int | None = None  # None: its image can't be read, or is not here
    snapshots: int = 0  # that its image holds today, whoever took them
    bitmaps: int = 0


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What a snapshot of one server would hold, for those who run the service: with paths, and adopted or not."""

    name: str
    server_id: int | None = None  # None: not adopted
    disks: tuple[SurveyedDisk, ...] = ()
    state: tuple[str, ...] = ()  # what is saved beside the disks: nvram, pflash, tpm
    left_out: tuple[SkippedDisk, ...] = ()
    refused: tuple[str, ...] = ()  # why no snapshot can be taken
    not_judged: tuple[str, ...] = ()  # what was not here to be looked at; if `refused` too is empty: one can be taken
    noticed: tuple[str, ...] = ()  # what a person should know beside


class DriverError(Exception):
    """Base of all that a driver raises. The text says what is true now and may be shown to the customer."""

    code: ClassVar[str]  # of the failure of a job that it ends
    retryable: ClassVar[bool] = False
    lasting: ClassVar[bool] = False  # the cause may last for minutes, and go by itself


class DomainNotFound(DriverError):
    """No adopted domain has this server id. Nothing was changed."""

    code = "server_not_on_node"


class InvalidState(DriverError):
    """The domain is in a state (paused, saved to disk) in which the call cannot be done. Nothing was changed."""

    code = "server_not_ready"


class UnsupportedServer(DriverError):
    """The server has a part that no snapshot can hold; the text names it. Nothing was changed."""

    code = "unsupported_server"


class ServerInUse(DriverError):
    """Another tool is at work on the server: a migration, a backup, a copy of a disk. Nothing was changed."""

    code = "server_busy"


class DisksDiffer(DriverError):
    """The server's disks are not those that the snapshot holds; the text names the first. Nothing was changed."""

    code = "disks_differ"


def refuse_missing(targets: Set[str] | None, present: Set[str]) -> None:
    """Raises DisksDiffer where the server no longer has one of the disks that a revert was planned for. Without this, a
    disk that someone detaches during a restore would be left out of it, and the restore would be called complete."""
    if targets is not None and (missing := targets - present):
        raise DisksDiffer(f"disk {min(missing)} was detached from the server while the job ran")


class SnapshotNotFound(DriverError):
    """A disk of the server does not have the tag. Nothing was changed."""

    code = "snapshot_not_on_disk"


class SnapshotExists(DriverError):
    """A disk of the server already has the tag. Nothing was changed."""

    code = "snapshot_exists_on_disk"


class DiskFailed(DriverError):
    """A disk refused a change. Some disks may have it, some not: `repair`, then go on or back."""

    code = "disk_failed"


class DiskCorrupt(DriverError):
    """An image is damaged beyond what `repair` can mend; the text names it."""

    code = "disk_corrupt"


class DiskBusy(DriverError):
    """A disk can't be looked at because something else holds it. It may be torn: nothing may touch it before."""

    code = "disk_busy"
    retryable = True
    lasting = True


class StartFailed(DriverError):
    """The domain did not start. It is off."""

    code = "start_failed"
    retryable = True


class HypervisorUnavailable(DriverError):
    """The hypervisor did not answer, or its answer was lost: the outcome is unknown, look before acting."""

    code = "hypervisor_unavailable"
    retryable = True
    lasting = True


class Hypervisor(Protocol):
    """The hypervisor of one node. All calls are safe to make from one event loop, concurrently for different servers.

    Any call may raise `HypervisorUnavailable`; any call that names a server may raise `DomainNotFound`. A call that is
    cancelled finishes what it has begun before the cancellation goes on.
    """

    async def domains(self) -> list[Domain]:
        """Every adopted domain of the node."""
        ...

    async def about(self) -> About:
        """What the node runs on now."""
        ...

    async def adopt(self, name: str, *, server_id: int, account_id: int) -> None:
        """Mark the domain of that libvirt name as a customer's server; may be run again.

        Raises `DomainNotFound`, or `InvalidState` where another domain of the node has this server id.
        """
        ...

    async def identity(self, server_id: int) -> str:
        """The hypervisor's own identity of the domain, which it keeps when someone defines it anew."""
        ...

    def recall(self, server_id: int, identity: str) -> None:
        """Find the server by the identity of its domain too, while it is held: whoever has defined it anew may have
        left out that it is adopted. Another domain that is adopted as the server goes before it."""
        ...

    async def power(self, server_id: int) -> Power: ...

    async def press_power_button(self, server_id: int) -> None:
        """Ask the guest to shut down (ACPI). Returns at once; a guest may be deaf. One that is off is left alone."""
        ...

    async def wait_for_off(self, server_id: int, *, timeout_seconds: float) -> bool:
        """Whether the domain was off, its disks released, before the time was over."""
        ...

    async def cut_power(self, server_id: int) -> None:
        """Turn the domain off as if its plug were pulled, and return when its disks are released. Off is fine."""
        ...

    async def start(self, server_id: int) -> None:
        """Turn the domain on; on already is fine. Raises `StartFailed`, or `DiskBusy` while another program holds a
        disk."""
        ...

    async def layout(self, server_id: int) -> Layout:
        """What a snapshot would hold. Raises `UnsupportedServer` naming the first part that can't be snapshotted
        (raw, block or missing disk, ...), `InvalidState` for a domain that is paused or has saved memory, `ServerInUse`
        for one that is being migrated, backed up or copied, `DiskCorrupt` for an image already marked corrupt."""
        ...

    async def restore_plan(self, server_id: int, tag: str, *, present_only: bool = False) -> RestorePlan:
        """What a revert to the tag would do. Reading it changes nothing, whether the domain runs or not.

        `present_only`: the disks that are there go back, whatever else the snapshot holds or the server has.
        Raises what `layout` does, `SnapshotNotFound` where no disk has the tag, `DisksDiffer` where the server's disks
        are not those of the snapshot, `UnsupportedServer` where a disk could not be made as large again as it is.
        """
        ...

    async def shared_disks(self) -> Mapping[int, tuple[SkippedDisk, ...]]:
        """The disks that adopted domains share with other domains of the node, by server id, each with the reason.
        `layout` refuses such a server. Raises `HypervisorUnavailable` also where some storage does not answer."""
        ...

    async def refuse_if_in_use(self, server_id: int) -> None:
        """Raises `ServerInUse` where another tool is at work on the server (see `layout`): it is not to be stopped."""
        ...

    async def hold(self, server_id: int) -> None:
        """Keep others from moving the server to another node until `let_go`, also over the death of this process.

        Held already is fine. Where the hypervisor has no means to hold a server, it is not held.

        Raises `ServerInUse` where another tool is already at work on the server. What begins in the same moment is for
        `refuse_if_in_use` to find.
        """
        ...

    async def let_go(self, server_id: int) -> None:
        """Undo `hold`; not held is fine."""
        ...

    async def free_space(self, server_id: int) -> int:
        """Bytes that are free on the fullest of the file systems that hold the server's disks, whatever it is doing."""
        ...

    async def snapshots(self, server_id: int) -> list[FoundSnapshot]:
        """Every tag found on the server's disks or in the hypervisor's list, ours (`vps-`) and others'."""
        ...

    async def take_snapshot(self, server_id: int, spec: SnapshotSpec) -> None:
        """Snapshot all disks (and NVRAM and TPM) of a domain that is off, and write down what it holds.

        Raises `SnapshotExists`, `InvalidState` (not off), or `DiskFailed`: some disks may hold the tag.
        """
        ...

    async def list_snapshot(self, server_id: int, spec: SnapshotSpec, contents: Contents | None = None) -> None:
        """Write down a snapshot that every disk holds, whether the domain runs or not. `contents`: what it is known to
        hold; None: what the disks say.

        Raises `SnapshotNotFound` where one disk lacks the tag.
        """
        ...

    async def list_for_people(self, server_id: int) -> tuple[str, ...]:
        """List our whole snapshots where the hypervisor's own tools show them; the tags. Until they are settled again,
        the server can't be moved to another node. Raises `ServerInUse`."""
        ...

    async def is_at(self, server_id: int, tag: str) -> bool:
        """Whether every disk (and NVRAM and TPM) of a domain that is off holds just what the tag holds: nothing was
        written since it was taken or reverted to. Tags that a disk lacks: no."""
        ...

    async def clear_bitmaps(self, server_id: int) -> tuple[str, ...]:
        """Remove every dirty bitmap from the disks of a domain that is off, and the hypervisor's checkpoints.

        Returns the targets of the disks that had bitmaps; none is fine. Raises `InvalidState` or `DiskFailed`.
        """
        ...

    async def revert(self, server_id: int, tag: str, *, targets: frozenset[str] | None = None) -> None:
        """Bring these disks (None: all), NVRAM and TPM of a domain that is off back to the tag. Snapshots taken later
        stay. A disk has the size that it had then.

        Raises, before any change, `SnapshotNotFound` where one of the disks lacks the tag, `DisksDiffer` where the
        server no longer has one, `InvalidState` (not off); or `DiskFailed`: some disks may be reverted.
        """
        ...

    async def resize(self, server_id: int, virtual_bytes: Mapping[str, int]) -> frozenset[str]:
        """Enlarge the disks (by target) of a domain that is off to these sizes in bytes; one that is as large stays
        as it is. Returns the targets that the server has: a disk may be detached at any time.

        Raises `InvalidState` (not off) or `DiskFailed`."""
        ...

    async def renew_generation_id(self, server_id: int) -> None:
        """Give a domain that is off a new VM generation id where it has one."""
        ...

    async def delete_snapshot(self, server_id: int, tag: str) -> None:
        """Remove the tag from every disk, state copy and list that has it, whether the domain runs or not.

        Also from the files of disks that the snapshot is written down to hold and that are not the server's any more.
        A tag that is nowhere is fine. Raises `DiskFailed`: call again until it succeeds.
        """
        ...

    async def repair(self, server_id: int) -> tuple[str, ...]:
        """Check and mend every disk of a domain that is off; the targets that needed it.

        Raises `DiskCorrupt` or `InvalidState`.
        """
        ...

    async def size_mb(self, server_id: int, tag: str) -> int:
        """MiB of guest data that the snapshot holds over all disks, rounded up. Works while the domain runs.

        Raises `SnapshotNotFound` where one disk lacks the tag.
        """
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` (on the event loop) soon after any domain was started, stopped, defined or undefined."""
        ...

    async def close(self) -> None: ...
