"""The hypervisor port: the interface of every driver, and the errors it raises.

Drivers provide mechanism only. `worker.procedures` decides how long to wait, what to retry and what to do after a
failure. Every driver passes the suite in `tests/contract`.

Terms: a *domain* is libvirt's name for a VM; an *adopted* domain carries our server ID and account in its metadata.
A *tag* is the name of an internal qcow2 snapshot, the same on every disk of the server and in libvirt's metadata.
"""

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Protocol

# namespace of <server id= account=> in an adopted domain's metadata
MARK_NAMESPACE = "https://vps-snapshots.dev/libvirt/1"

_NUMBER = re.compile(r"[1-9][0-9]{0,14}")  # an ID that every program represents exactly, in canonical form


def is_ours(tag: str) -> bool:
    """Whether a tag has this service's form; false for `vps-0001`."""
    name = tag.removeprefix("vps-")
    return name != tag and (not name.isdecimal() or _NUMBER.fullmatch(name) is not None)


class Power(StrEnum):
    """A domain's power state, as far as it matters for its disks."""

    ON = "on"
    OFF = "off"
    PAUSED = "paused"  # a QEMU process holds the disks, but the guest does not run


@dataclass(frozen=True, kw_only=True)
class Domain:
    """An adopted domain: a customer's server on this node."""

    server_id: int
    account_id: int
    name: str
    power: Power


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A disk that every snapshot of its server holds."""

    target: str  # "vda"
    path: str
    virtual_bytes: int
    bitmaps: tuple[str, ...] = ()  # persistent dirty bitmaps, which the next incremental backup relies on


@dataclass(frozen=True, kw_only=True)
class SkippedDisk:
    """A device that is left out of the server's snapshots, and why: a CD-ROM, a read-only disk, one with
    `snapshot='no'`."""

    target: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a snapshot of the server would hold."""

    disks: tuple[Disk, ...]
    skipped: tuple[SkippedDisk, ...]
    nvram: bool  # UEFI variables, saved and restored with the disks
    free_bytes: int  # on the file system of the disks with the least free space
    tpm: bool = False  # the state of an emulated TPM, saved and restored with the disks
    firmware: Firmware = Firmware.BIOS
    checkpoints: tuple[str, ...] = ()  # libvirt's records of incremental backups
    # resources that a running server will have less of after a stop: "2 vCPUs instead of 4"
    reduced: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HeldDisk:
    """A disk at the time a snapshot was taken."""

    target: str  # "vda"
    path: str
    virtual_bytes: int  # a revert restores this size
    stamp: str = ""  # identifies the snapshot's entry in the image, even if the file is moved; "": unknown
    # Fingerprint of the backing files. A snapshot does not hold their data and is only valid while they are unchanged.
    # "": no backing file; None: unknown.
    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What one snapshot holds and what it leaves out. Recorded when it is taken."""

    disks: tuple[HeldDisk, ...]
    left_out: tuple[SkippedDisk, ...] = ()
    firmware: Firmware = Firmware.BIOS
    nvram: bool = False
    tpm: bool = False
    consistency: str | None = None  # consistency of the guest's data, in the caller's terms; None: unknown


@dataclass(frozen=True, kw_only=True)
class GrownDisk:
    """A disk that was enlarged after the snapshot. A revert shrinks it; `resize` enlarges it again."""

    target: str
    snapshot_bytes: int
    virtual_bytes: int  # current size


@dataclass(frozen=True, kw_only=True)
class RestorePlan:
    """What a revert to a snapshot would do to the server now."""

    targets: tuple[str, ...]  # the disks to revert
    not_restored: tuple[SkippedDisk, ...]  # with `present_only`: disks that are not reverted, with the reasons
    grown: tuple[GrownDisk, ...]
    bitmaps: tuple[str, ...]  # disks with dirty bitmaps, which a revert invalidates
    checkpoints: tuple[str, ...]  # libvirt's checkpoints, which a revert also invalidates
    generation_id: bool  # whether the server has a VM generation id, which a restore must renew
    reduced: tuple[str, ...] = ()  # as in Layout


@dataclass(frozen=True, kw_only=True)
class SnapshotSpec:
    """A snapshot's tag and the customer's data, recorded on the node so that they can be read without the store."""

    tag: str
    name: str
    description: str
    created_at: datetime  # UTC


@dataclass(frozen=True, kw_only=True)
class FoundSnapshot:
    """A tag found on a server, with its disks and its record."""

    tag: str
    targets: frozenset[str]  # the disks that have it
    complete: bool  # all its parts exist, and it holds every disk that the server has now
    spec: SnapshotSpec | None  # None: only on the disks, without a record
    current: bool = False  # someone reverted to it (or took it) with the hypervisor's own tools
    contents: Contents | None = None  # None: without a record
    missing: tuple[str, ...] = ()  # reasons why it is not complete; may be shown to the customer
    # Whether it is recorded in the domain's metadata only. If not, it may block migration: call `list_snapshot`.
    settled: bool = True


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A file system that holds disks of adopted domains."""

    path: str  # its mount point
    free_bytes: int  # available to the worker
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class About:
    """The node's software versions and storage."""

    hypervisor: str  # "libvirt 9.0.0"
    emulator: str  # "QEMU 7.2.0"
    pools: tuple[Pool, ...]


@dataclass(frozen=True, kw_only=True)
class SurveyedDisk:
    target: str
    path: str
    virtual_bytes: int | None = None  # None: its image is missing or cannot be read
    snapshots: int = 0  # internal snapshots in its image, whoever took them
    bitmaps: int = 0


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """What a snapshot of one server, adopted or not, would hold. For operators: it names host paths."""

    name: str
    server_id: int | None = None  # None: not adopted
    disks: tuple[SurveyedDisk, ...] = ()
    state: tuple[str, ...] = ()  # saved with the disks: nvram, pflash, tpm
    left_out: tuple[SkippedDisk, ...] = ()
    refused: tuple[str, ...] = ()  # reasons why no snapshot can be taken
    not_judged: tuple[str, ...] = ()  # what could not be checked here
    noticed: tuple[str, ...] = ()  # further remarks


class DriverError(Exception):
    """Base of a driver's errors. The text describes the current state and may be shown to the customer."""

    code: ClassVar[str]  # the `code` of a job that fails with this error
    retryable: ClassVar[bool] = False
    lasting: ClassVar[bool] = False  # the cause may last for minutes and then disappear

    @property
    def detail(self) -> str:
        """The text as a sentence, for the `error.detail` of a job."""
        text = str(self)
        return f"{text[:1].upper()}{text[1:]}."

    @property
    def cause(self) -> str:
        """The message of libvirt, QEMU or qemu-img in one line, "" if there is none. For operators: it contains
        host paths."""
        said, error = list[str](), self.__cause__
        while error is not None:
            said.append(" ".join(str(error).split()) or type(error).__name__)
            error = error.__cause__
        return ": ".join(said)


class DomainNotFound(DriverError):
    """No adopted domain has this server ID. Nothing was changed."""

    code = "server_not_on_node"


class InvalidState(DriverError):
    """The domain's state (paused, saved to disk) does not allow the call. Nothing was changed."""

    code = "server_not_ready"


class UnsupportedServer(DriverError):
    """The server has a part that cannot be snapshotted; the text names it. Nothing was changed."""

    code = "unsupported_server"


class ServerInUse(DriverError):
    """Another tool is working on the server: a migration, a backup, a disk copy. Nothing was changed."""

    code = "server_busy"


class DisksDiffer(DriverError):
    """The server's disks differ from those that the snapshot holds; the text names them. Nothing was changed."""

    code = "disks_differ"


def refuse_missing(targets: Set[str] | None, present: Set[str]) -> None:
    """Raises DisksDiffer if the server no longer has one of the disks of the plan. Otherwise a disk that is detached
    during a restore would be left out, and the restore would be reported as complete."""
    if targets is not None and (missing := targets - present):
        raise DisksDiffer(f"disk {min(missing)} was detached from the server while the job ran")


class SnapshotNotFound(DriverError):
    """A disk of the server does not have the tag. Nothing was changed."""

    code = "snapshot_not_on_disk"


class SnapshotExists(DriverError):
    """A disk of the server already has the tag. Nothing was changed."""

    code = "snapshot_exists_on_disk"


class DiskFailed(DriverError):
    """A change failed on a disk. Some disks may have changed, some not: call `repair`, then retry or roll back."""

    code = "disk_failed"


class DiskCorrupt(DriverError):
    """An image is damaged and `repair` cannot fix it; the text names the disk."""

    code = "disk_corrupt"


class DiskBusy(DriverError):
    """A disk cannot be checked because another program holds it. It may be inconsistent: do not touch it until then."""

    code = "disk_busy"
    retryable = True
    lasting = True


class StartFailed(DriverError):
    """The domain did not start. It is off."""

    code = "start_failed"
    retryable = True


class HypervisorUnavailable(DriverError):
    """The hypervisor did not respond. The outcome of the call is unknown: check the state before acting."""

    code = "hypervisor_unavailable"
    retryable = True
    lasting = True


class AgentFailed(DriverError):
    """The guest's agent did not answer in time: its file systems may be frozen. Call `thaw` until it succeeds."""

    code = "guest_agent_failed"
    retryable = True
    lasting = True


class Hypervisor(Protocol):
    """The hypervisor of one node. Calls may run concurrently in one event loop if they are for different servers.

    Any call may raise `HypervisorUnavailable`; any call that names a server may raise `DomainNotFound`. If a call is
    cancelled, it finishes the operation that it has started before it raises CancelledError.
    """

    async def domains(self, *, marks_seconds: float = 0) -> list[Domain]:
        """All adopted domains of the node.

        `marks_seconds`: the greatest age of their IDs and accounts if the hypervisor did not say that one has changed;
        0: read them again. Everything else is as of now.
        """
        ...

    async def about(self) -> About:
        """The node's software versions and storage."""
        ...

    async def adopt(self, name: str, *, server_id: int, account_id: int) -> None:
        """Mark the domain with this libvirt name as a customer's server. Idempotent.

        Raises `DomainNotFound`, or `InvalidState` if another domain of the node has this server ID.
        """
        ...

    async def identity(self, server_id: int) -> str:
        """The domain's identity in the hypervisor (its UUID), which it keeps when someone redefines it."""
        ...

    def recall(self, server_id: int, identity: str) -> None:
        """While the server is held, find it also by its domain's identity, because a tool that redefined the domain may
        have dropped its mark. A domain that is adopted as the server takes precedence."""
        ...

    async def power(self, server_id: int) -> Power: ...

    async def press_power_button(self, server_id: int) -> None:
        """Ask the guest to shut down (ACPI). Returns at once; the guest may ignore it. No effect if it is off."""
        ...

    async def wait_for_off(self, server_id: int, *, timeout_seconds: float) -> bool:
        """Wait until the domain is off and its disks are released; False if that takes longer than the timeout."""
        ...

    async def was_shut_down(self, server_id: int) -> bool | None:
        """How a domain that is off was stopped: whether its guest shut down. If not, someone cut its power, or the
        hypervisor failed. None: unknown, for example after a reboot of the host."""
        ...

    async def cut_power(self, server_id: int, *, in_a_hurry: bool = False) -> None:
        """Power the domain off at once; returns when its disks are released. No effect if it is off.

        `in_a_hurry`: a few tenths of a second faster, but in a later process, `was_shut_down` may say that the guest
        shut down.
        """
        ...

    async def start(self, server_id: int) -> None:
        """Start the domain; no effect if it runs. Raises `StartFailed`, or `DiskBusy` while another program holds a
        disk."""
        ...

    async def layout(self, server_id: int) -> Layout:
        """What a snapshot would hold. Read-only; works whether the domain runs or not.

        Raises `UnsupportedServer` naming the parts that cannot be snapshotted (a raw, block or missing disk, ...),
        `InvalidState` for a domain that is paused or has saved memory, `ServerInUse` for one that is being migrated,
        backed up or copied, `DiskCorrupt` for an image marked corrupt.
        """
        ...

    async def restore_plan(self, server_id: int, tag: str, *, present_only: bool = False) -> RestorePlan:
        """What a revert to the tag would do. Read-only; works whether the domain runs or not.

        `present_only`: revert the disks that are present, even if the snapshot holds or the server has others.
        Raises what `layout` raises, `SnapshotNotFound` if no disk has the tag, `DisksDiffer` if the server's disks
        differ from those in the snapshot, `UnsupportedServer` if a disk could not get its current size again.
        """
        ...

    async def shared_disks(self) -> Mapping[int, tuple[SkippedDisk, ...]]:
        """The disks that adopted domains share with other domains of the node, by server ID, each with the reason.

        `layout` refuses these servers. Raises `HypervisorUnavailable` also if some storage does not respond.
        """
        ...

    async def refuse_if_in_use(self, server_id: int) -> None:
        """Raises `ServerInUse` if another tool is working on the server (see `layout`)."""
        ...

    async def hold(self, server_id: int) -> None:
        """Prevent migration of the server until `let_go`, even if this process dies. Idempotent.

        No effect if the hypervisor cannot hold this server. Raises `ServerInUse` if another tool is working on the
        server; call `refuse_if_in_use` afterward to find one that started at the same moment.
        """
        ...

    async def let_go(self, server_id: int) -> None:
        """Undo `hold`; no effect if not held."""
        ...

    async def free_space(self, server_id: int) -> int:
        """Free bytes on the file system of the server's disks with the least space, whether the server runs or not."""
        ...

    async def snapshots(self, server_id: int) -> list[FoundSnapshot]:
        """Every tag on the server's disks or in its records, ours (`vps-`) and others'."""
        ...

    async def refuse_live(self, server_id: int) -> bool:
        """Raises an error if something prevents a snapshot of the running domain: `UnsupportedServer`, `ServerInUse`
        (also if another tool has frozen the guest's file systems) or `InvalidState` (not running). Read-only, on top of
        `layout`.

        Returns whether the guest's agent answers, that is, whether `freeze` is likely to work.
        """
        ...

    async def freeze(self, server_id: int, *, timeout_seconds: float) -> bool:
        """Make the agent of a running guest flush its data and freeze its file systems until `thaw`.

        Record the call durably first: a guest whose file systems stay frozen hangs. Returns False if the agent refuses;
        then nothing is frozen. Raises `ServerInUse` if another tool has frozen them, even at the same moment,
        `InvalidState` (not running), or `AgentFailed`: they may be frozen or become so, call `thaw` until it succeeds.
        """
        ...

    async def thaw(self, server_id: int) -> bool:
        """End `freeze`; no effect if the domain is off or not frozen. Returns whether the file systems were frozen
        until now. Raises `AgentFailed`: call again until it succeeds."""
        ...

    async def take_live_snapshot(self, server_id: int, spec: SnapshotSpec) -> None:
        """Snapshot all disks of a running domain at one instant. The guest is not stopped.

        Does not record the snapshot: call `list_snapshot`, after `thaw`. Raises `SnapshotExists`, `InvalidState` (not
        running), `UnsupportedServer`, `ServerInUse`, or `DiskFailed`, after which some disks may have the tag.
        """
        ...

    async def save_state(self, server_id: int, tag: str) -> None:
        """Copy NVRAM and TPM of a running domain, shortly before `take_live_snapshot`. Idempotent.

        Raises `DiskFailed`.
        """
        ...

    async def state_is_at(self, server_id: int, tag: str) -> bool:
        """Whether NVRAM and TPM still equal the copies of the tag; works whether the domain runs or not."""
        ...

    async def take_snapshot(self, server_id: int, spec: SnapshotSpec, *, consistency: str | None = None) -> None:
        """Snapshot all disks (and NVRAM and TPM) of a domain that is off, and record its contents.

        `consistency`: recorded with them. Raises `SnapshotExists`, `InvalidState` (not off), or `DiskFailed`, after
        which some disks may have the tag.
        """
        ...

    async def list_snapshot(
        self,
        server_id: int,
        spec: SnapshotSpec,
        contents: Contents | None = None,
        *,
        consistency: str | None = None,
    ) -> None:
        """Record a snapshot that every disk has, in the domain's metadata; works whether the domain runs or not.

        `contents`: its known contents; None: read them from the disks, with this `consistency`. Raises
        `SnapshotNotFound` if a disk lacks the tag.
        """
        ...

    async def list_for_people(self, server_id: int) -> tuple[str, ...]:
        """Add our complete snapshots to the hypervisor's own list, for its tools; returns their tags.

        While they are listed there, the server cannot be migrated. Raises `ServerInUse`.
        """
        ...

    async def is_at(self, server_id: int, tag: str) -> bool:
        """Whether every disk (and NVRAM and TPM) of a domain that is off is identical to the tag: nothing was written
        since it was taken or reverted to. False if a disk lacks the tag."""
        ...

    async def clear_bitmaps(self, server_id: int) -> tuple[str, ...]:
        """Remove every dirty bitmap from the disks of a domain that is off, and the hypervisor's checkpoints.

        Returns the targets of the disks that had bitmaps. Raises `InvalidState` or `DiskFailed`.
        """
        ...

    async def revert(self, server_id: int, tag: str, *, targets: frozenset[str] | None = None) -> None:
        """Revert these disks (None: all), NVRAM and TPM of a domain that is off to the tag. Later snapshots stay.

        Each disk gets the size that it had in the snapshot. Raises, before any change, `SnapshotNotFound` if one of
        the disks lacks the tag, `DisksDiffer` if one was detached, `InvalidState` (not off); or `DiskFailed`, after
        which some disks may be reverted.
        """
        ...

    async def resize(self, server_id: int, virtual_bytes: Mapping[str, int]) -> frozenset[str]:
        """Enlarge the disks (by target) of a domain that is off to these sizes in bytes; never shrinks a disk.

        Returns the targets that the server still has, because a disk can be detached at any time.

        Raises `InvalidState` (not off) or `DiskFailed`.
        """
        ...

    async def renew_generation_id(self, server_id: int) -> None:
        """Give a domain that is off a new VM generation ID, if it has one. Raises `InvalidState` or `DiskFailed`."""
        ...

    async def delete_snapshot(self, server_id: int, tag: str) -> None:
        """Delete the tag from every disk, state copy and record that has it, whether the domain runs or not.

        Includes disks that the snapshot holds and that are no longer attached to the server. No effect if the tag does
        not exist. Raises `DiskFailed`: call again until it succeeds.
        """
        ...

    async def repair(self, server_id: int) -> tuple[str, ...]:
        """Check and repair every disk of a domain that is off; returns the targets of those that were damaged.

        Raises `DiskCorrupt`, `DiskBusy` or `InvalidState`.
        """
        ...

    async def size_mb(self, server_id: int, tag: str) -> int:
        """MiB of guest data in the snapshot over all disks, rounded up. Works while the domain runs.

        Raises `SnapshotNotFound` if a disk lacks the tag, or `DiskFailed`.
        """
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` on the event loop soon after a domain was started, stopped, defined or undefined, or its IDs
        were changed."""
        ...

    async def close(self) -> None: ...
