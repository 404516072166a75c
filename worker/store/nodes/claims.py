"""What nodes tell the store, and what it answers.

Apart from the store's own code, so that a node loads none of that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from worker.store.model import AccountId, Contents, JobId, JobKind, ServerId, SnapshotId, SnapshotStatus


class LeaseLost(Exception):
    """Another worker holds the node's lease. Nothing was changed."""


class CredentialEnded(Exception):
    """The node's credential has been revoked, has expired, or is unknown to the store. Nothing was changed."""


class ClaimRefused(Exception):
    """The claim contradicts the service's records. Nothing was changed. `reason`: the script's code, such as
    `other_node`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BeginRefused(Exception):
    """The job must not run: it is over, unknown, may not start any more, or its server is on another node. In the last
    two cases it has been ended."""


@dataclass(frozen=True, kw_only=True)
class LeaseHeld:
    """The other holder of the node's lease, as text for people, and the remaining seconds."""

    who: str
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class ReportedServer:
    id: ServerId
    account_id: AccountId
    name: str
    power: str  # "on", "off" or "paused"


@dataclass(frozen=True, kw_only=True)
class Reported:
    """The store's answer to a node's report."""

    conflicts: frozenset[ServerId] = frozenset()  # servers that another node has
    fresh: frozenset[ServerId] = frozenset()  # servers whose snapshots must be published
    gone: frozenset[ServerId] = frozenset()  # servers that were in the node's previous report
    reconcile_asked: str  # when an operator last requested a reconciliation; "": never
    # the accounts of servers that were reported with a different one
    accounts: Mapping[ServerId, AccountId] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PublishedSnapshot:
    """A snapshot as it is on the node's disks."""

    id: SnapshotId
    name: str
    description: str
    created_at: datetime
    size_mb: int | None
    status: SnapshotStatus
    contents: Contents | None = None  # None: not recorded


@dataclass(frozen=True, kw_only=True)
class BegunJob:
    """A job that is unfinished according to the node's journal."""

    id: JobId
    kind: JobKind
    snapshot_id: SnapshotId
    snapshot_name: str
    snapshot_description: str
    snapshot_created_at: datetime
    request_id: str
    undoes: JobId | None
    present_only: bool = False
    live: bool = False


@dataclass(frozen=True, kw_only=True)
class KnownSnapshot:
    """The store's record of a server's snapshot."""

    status: SnapshotStatus
    lost: bool  # it was completed and later missing on the disks
    name: str
    description: str
    created_at: datetime
    contents: Contents | None = None  # None: a record of an earlier version
    failed_deletes: int = 0  # failed attempts to delete it


@dataclass(frozen=True, kw_only=True)
class Known:
    """The store's records of one server's snapshots. `elsewhere`: requested snapshots that belong to another server."""

    busy: bool  # a job holds the server, and may be the reason for a difference
    on_disk: Mapping[
        SnapshotId, KnownSnapshot | None
    ]  # the requested snapshots that are readable; None: unknown to the store
    listed: Mapping[SnapshotId, SnapshotStatus]  # as the customer sees them, without unreadable ones
    undoable: JobId | None = None  # the latest restore that left a safety snapshot
    elsewhere: frozenset[SnapshotId] = frozenset()
