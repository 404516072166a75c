"""Why a request was refused: what is true now, under a stable code. `api.http.problems` gives each its HTTP status."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Self


@dataclass(frozen=True, kw_only=True)
class InTheWay:
    """What another request of the same account has made, for which this one is refused."""

    job_id: str | None = None
    job_kind: str | None = None
    snapshot_id: int | None = None
    requested_at: datetime


class Refused(Exception):
    """Base of every refusal: the request changed nothing, except after OutcomeUnknown. `detail` is shown to the caller.

    `text` is the format of the detail: {0} is what the script reports about the conflict, {id} what was requested.
    """

    code: ClassVar[str]
    text: ClassVar[str]
    in_the_way: InTheWay | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @classmethod
    def of(cls, *found: str, **facts: object) -> Self:
        """A refusal with its usual text."""
        return cls(cls.text.format(*found, **facts))


class AccountNotFound(Refused):
    """The text is not the ID of an account."""

    code = "account_not_found"
    text = "There is no account {id}."


class ServerNotFound(Refused):
    code = "server_not_found"
    text = "There is no server {id}."


class SnapshotNotFound(Refused):
    code = "snapshot_not_found"
    text = "There is no snapshot {id}."


class ScheduleNotFound(Refused):
    code = "schedule_not_found"
    text = "There is no schedule {id}."


class ScheduleLimitReached(Refused):
    code = "schedule_limit_reached"
    text = "The {of} has reached the limit of {limit} {kind}. Delete one first."


class WebhookNotFound(Refused):
    code = "webhook_not_found"
    text = "There is no such webhook."


class WebhookLimitReached(Refused):
    code = "webhook_limit_reached"
    text = "The account has reached the limit of {limit} webhooks. Delete one first."


class WebhookNotReady(Refused):
    """A test of a webhook that is disabled, or has too much to deliver already."""

    code = "webhook_not_ready"
    texts: ClassVar[Mapping[str, str]] = {
        "disabled": "The webhook is disabled. Enable it first.",
        "pending": "The webhook already has {limit} pending deliveries.",
    }

    @classmethod
    def of(cls, *found: str, **facts: object) -> Self:
        return cls(cls.texts[found[0]].format(**facts))


class WebhookDisabled(Refused):
    """Nothing is sent to a webhook that is disabled."""

    code = "webhook_disabled"
    text = "The webhook is disabled. Enable it first."


class DeliveryNotFound(Refused):
    code = "delivery_not_found"
    text = "There is no delivery {id}."


class DeliveryNotRedeliverable(Refused):
    """The delivery has arrived, or there is nothing left to send."""

    code = "delivery_not_redeliverable"
    texts: ClassVar[Mapping[str, str]] = {
        "delivered": "The delivery has arrived. Only a failed one can be sent again.",
        "gone": "The message of the delivery is no longer kept. Read its job instead.",
    }

    @classmethod
    def of(cls, *found: str, **_: object) -> Self:
        return cls(cls.texts[found[0]])


class RedeliveredRecently(Refused):
    """All failed deliveries of a webhook are sent again at most once a minute."""

    code = "redelivered_recently"
    text = "The failed deliveries of the webhook were sent again less than a minute ago."


class RecordUnreadable(Refused):
    """The record was written by a newer version, or is damaged."""

    code = "record_unreadable"
    text = "The service cannot read the {kind}: it is damaged, or a newer version wrote it. The operators were told."


class JobNotFound(Refused):
    code = "job_not_found"
    text = "There is no job {id}."


class ServerBusy(Refused):
    """The server already has a job; the detail names it. `of` takes its ID and, if it is the same account's, its kind,
    the Unix time in milliseconds at which it was requested, and its snapshot."""

    code = "server_busy"
    text = "The server is in use by job {0}. Try again when that job has ended."
    full_text = "The server is in use by job {0}, a {1} requested at {2}. Try again when that job has ended."

    @classmethod
    def of(cls, *found: str, **facts: object) -> Self:
        job_id, kind, queued_ms, snapshot_id = (*found, "", "", "")[:4]
        if not queued_ms:
            return super().of(job_id, **facts)
        since = _moment(queued_ms)
        busy = cls(cls.full_text.format(job_id, kind, _shown(since), **facts))
        busy.in_the_way = InTheWay(
            job_id=job_id, job_kind=kind, snapshot_id=int(snapshot_id or 0) or None, requested_at=since
        )
        return busy


class SnapshotLimitReached(Refused):
    code = "snapshot_limit_reached"
    text = "The server has reached the limit of {0} snapshots. Delete one first."


class NameTaken(Refused):
    """`of` takes the snapshot that has the name, and the Unix time in milliseconds at which it was requested."""

    code = "name_taken"
    text = "Snapshot {0} of the server, requested at {1}, already has this name."

    @classmethod
    def of(cls, *found: str, **facts: object) -> Self:
        snapshot_id, created_ms = found
        since = _moment(created_ms)
        taken = super().of(snapshot_id, _shown(since), **facts)
        taken.in_the_way = InTheWay(snapshot_id=int(snapshot_id), requested_at=since)
        return taken


class SnapshotNotReady(Refused):
    """The snapshot to restore is not completed."""

    code = "snapshot_not_ready"
    text = "Snapshot {id} is {0}. Only a completed snapshot can be restored."


class SnapshotProtected(Refused):
    """The customer has protected the snapshot against deletes."""

    code = "snapshot_protected"
    text = "Snapshot {id} is protected. Set `protected` to false first."


class JobNotCancellable(Refused):
    """The job has started, or it is a delete."""

    code = "job_not_cancellable"
    text = "The job is {0}. Only a queued create, restore or undo can be cancelled."


class JobNotRetryable(Refused):
    """The job has not failed, was retried, is a dry run, or its server is stranded."""

    code = "job_not_retryable"
    text = "The job is {0}. Only a failed job can be retried."
    texts: ClassVar[Mapping[str, str]] = {
        "dry_run": "A dry run cannot be retried. Request it again.",
        "retried": "The job was already retried as job {1}.",
        "stranded": "Job {1} stranded the server. Repair the server and mark that job as resolved first.",
        "cancelled": "The job was cancelled. A bulk retry skips cancelled jobs; retry this job individually.",
        "later": "The server has had a later job, {1}. A bulk retry skips such jobs; retry this job individually.",
    }

    @classmethod
    def of(cls, *found: str, **facts: object) -> Self:
        return cls(cls.texts.get(found[0], cls.text).format(*found, **facts))


class RetryNeedsForce(Refused):
    """Since the job failed, something has happened that a retry would run over."""

    code = "retry_needs_force"
    texts: ClassVar[Mapping[str, str]] = {
        "later": "The server has had a later job, {0}.",
        "old": "The job failed at {0}, too long ago to be retried without a check.",
        "used": "The server has been running since the job failed: the {0} would overwrite what it has written.",
    }

    @classmethod
    def of(cls, *found: str, **_: object) -> Self:
        """`found`: each reason, and what it is about."""
        told = zip(found[::2], found[1::2], strict=True)
        reasons = [cls.texts[why].format(_shown(_moment(about)) if why == "old" else about) for why, about in told]
        return cls(f"{' '.join(reasons)} If the job is still wanted, force the retry.")


class JobNotStranded(Refused):
    """The job did not strand a server, or it was already resolved."""

    code = "job_not_stranded"
    text = "The job did not strand a server, or it was already resolved."


class NodeBootUnknown(Refused):
    """The service cannot notice that the node's host has been started again."""

    code = "node_boot_unknown"
    text = (
        "The node's worker does not report the starts of its host. Give the pause a time, or resume the node yourself."
    )


class ServerNotStranded(Refused):
    """Nobody needs to repair the server."""

    code = "server_not_stranded"
    text = "The server is not stranded, or was already marked as resolved."


class NodeNotFound(Refused):
    code = "node_not_found"
    text = "There is no node {id}."


class ServerOnLiveNode(Refused):
    """A server is placed on another node, but its own is alive and has it."""

    code = "server_on_live_node"
    text = (
        "Node {0} is alive and has the server. A server moves when its node no longer reports it, as after a migration;"
        " it can be placed on another node once its own has not responded for a minute."
    )


class TokenNotFound(Refused):
    code = "token_not_found"
    text = "There is no token {id}."


class CredentialExists(Refused):
    """A node's first credential was to be created, and it has one."""

    code = "credential_exists"
    text = "Node {id} has a credential already. Rotate it instead."


class CredentialNotFound(Refused):
    code = "credential_not_found"
    text = "Node {id} has no valid credential: create one."


class IdempotencyKeyReused(Refused):
    """The key was used with a different request before."""

    code = "idempotency_key_reused"
    text = "This Idempotency-Key was used with a different request within the last 24 hours."


class UndoUnavailable(Refused):
    """The data that the restore overwrote is no longer kept, or the server was restored again since."""

    code = "undo_unavailable"
    text = "The data that the job overwrote is no longer kept, or the server has been restored again since."


class ServerNotReady(Refused):
    """The server is in a state (suspended) in which it can be neither snapshotted nor restored."""

    code = "server_not_ready"
    text = "The server is suspended, or its node no longer reports it. It cannot be snapshotted or restored."


class TooManyStreams(Refused):
    """The account, or this front end, has the maximum number of open event streams."""

    code = "too_many_streams"
    text = "Too many event streams are open. Close one first."


class TooManyDryRuns(Refused):
    """The account has as many dry runs that have not ended as it may have."""

    code = "too_many_dry_runs"
    text = "The account has reached the limit of {0} dry runs at a time. Wait until one has ended."


class TokenLimitReached(Refused):
    code = "token_limit_reached"
    text = "The account has reached the limit of {0} tokens. Revoke one first."


class StoreNearlyFull(Refused):
    """Redis is short of memory: what can wait is refused, so that deletes and the ends of jobs still have room."""

    code = "store_nearly_full"
    text = "The service's data store is nearly full, so it accepts no request of this kind now. Nothing was changed."


class NodeUnavailable(Refused):
    """The server's node has been silent for too long."""

    code = "node_unavailable"
    text = "The server's hypervisor node is not responding. Nothing was queued."


class StoreUnavailable(Refused):
    """Redis did not answer. A read may be repeated; what was to change something was not sent."""

    code = "store_unavailable"
    text = "The service's data store is not responding."


class StoreReadOnly(StoreUnavailable):
    """Redis answers, and refuses writes: it is full, a replica, or can't keep what it is told."""

    code = "store_read_only"
    text = "The service's data store currently accepts no changes. Nothing was changed. Reads still work."


class OutcomeUnknown(StoreUnavailable):
    """Redis was asked to change something and did not answer: the only refusal after which it may be changed."""

    code = "outcome_unknown"
    text = (
        "The service's data store did not confirm the request, which may have taken effect. Repeat it with its"
        " Idempotency-Key. If it had none, check whether it took effect before you repeat it."
    )


def too_slow(*, changing: bool) -> StoreUnavailable:
    """The refusal of a request that took too long. `changing`: it was to change something."""
    return OutcomeUnknown.of() if changing else StoreUnavailable("The service's data store is too slow.")


def _moment(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) // 1000, UTC)


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


_BY_CODE = {refused.code: refused for refused in Refused.__subclasses__()}


def refusal(code: str, *found: str, **facts: object) -> Refused:
    """The refusal of a script, from its code and what it reports about the conflict."""
    return _BY_CODE[code].of(*found, **facts)
