"""Why a request was refused: each with a stable code, its HTTP status, its text, and an example for the API's
document."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Self


@dataclass(frozen=True, kw_only=True)
class InTheWay:
    """The object of an earlier request of the same account that this request conflicts with."""

    job_id: str | None = None
    job_kind: str | None = None
    snapshot_id: int | None = None
    requested_at: datetime


class Example:
    """The arguments with which `Refused.of` creates an example."""

    def __init__(self, *found: str, **facts: object) -> None:
        self.found, self.facts = found, facts


_JOB_ID = "0b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b"
_REQUESTED_MS = "1737044100000"


class Refused(Exception):
    """Base of every refusal: the request changed nothing, except after OutcomeUnknown. `detail` is shown to the caller.

    `text` is the format of the detail: {0} is the conflict that the script reports, {id} the requested ID.
    """

    code: ClassVar[str]
    status: ClassVar[int]
    text: ClassVar[str]
    example: ClassVar[Example] = Example()
    retry_after_seconds: ClassVar[int | None] = None
    is_of_limit: ClassVar[bool] = False  # a limit is reached, which is the script's first text or the fact `limit`
    in_the_way: InTheWay | None = None
    limit: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @classmethod
    def of(cls, *found: str, **facts: object) -> Self:
        """Create the refusal with its text."""
        refusal = cls(cls.text.format(*found, **facts))
        if cls.is_of_limit:
            refusal.limit = int(str(facts.get("limit") or found[0]))
        return refusal


class AccountNotFound(Refused):
    """The text is not the ID of an account."""

    code = "account_not_found"
    status = 404
    text = "There is no account {id}."
    example = Example(id=77)


class ServerNotFound(Refused):
    code = "server_not_found"
    status = 404
    text = "There is no server {id}."
    example = Example(id=12345)


class SnapshotNotFound(Refused):
    code = "snapshot_not_found"
    status = 404
    text = "There is no snapshot {id}."
    example = Example(id=801)


class JobNotFound(Refused):
    code = "job_not_found"
    status = 404
    text = "There is no job {id}."
    example = Example(id=_JOB_ID)


class ScheduleNotFound(Refused):
    code = "schedule_not_found"
    status = 404
    text = "There is no schedule {id}."
    example = Example(id="5c1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e")


class ScheduleLimitReached(Refused):
    code = "schedule_limit_reached"
    status = 400
    is_of_limit = True
    text = "The {of} has reached the limit of {limit} {kind}. Delete one first."
    example = Example(of="server", limit=5, kind="schedules")


class WebhookNotFound(Refused):
    code = "webhook_not_found"
    status = 404
    text = "There is no such webhook."


class WebhookLimitReached(Refused):
    code = "webhook_limit_reached"
    status = 400
    is_of_limit = True
    text = "The account has reached the limit of {limit} webhooks. Delete one first."
    example = Example(limit=10)


class WebhookNotReady(Refused):
    """The webhook is disabled, or has too many pending deliveries to be tested."""

    code = "webhook_not_ready"
    status = 409
    texts: ClassVar[Mapping[str, str]] = {
        "disabled": "The webhook is disabled. Enable it first.",
        "pending": "The webhook already has {limit} pending deliveries.",
    }
    example = Example("disabled")

    @classmethod
    def of(cls, *found: str, **facts: object) -> Self:
        return cls(cls.texts[found[0]].format(**facts))


class WebhookDisabled(Refused):
    """The webhook is disabled, so nothing is sent to it."""

    code = "webhook_disabled"
    status = 409
    text = "The webhook is disabled. Enable it first."


class DeliveryNotFound(Refused):
    code = "delivery_not_found"
    status = 404
    text = "There is no delivery {id}."
    example = Example(id="9d6b1a0f8e7d6c5b0b5e5c1d8f3a4c2e")


class DeliveryNotRedeliverable(Refused):
    """The delivery succeeded, or its message is no longer kept."""

    code = "delivery_not_redeliverable"
    status = 409
    texts: ClassVar[Mapping[str, str]] = {
        "delivered": "The delivery succeeded. Only a failed delivery can be sent again.",
        "gone": "The message of the delivery is no longer kept. Read its job instead.",
    }
    example = Example("delivered")

    @classmethod
    def of(cls, *found: str, **_: object) -> Self:
        return cls(cls.texts[found[0]])


class RedeliveredRecently(Refused):
    """All failed deliveries of a webhook are sent again at most once a minute."""

    code = "redelivered_recently"
    status = 429
    retry_after_seconds = 60
    text = "The failed deliveries of the webhook were sent again less than a minute ago."


class RecordUnreadable(Refused):
    """The record was written by a newer version, or is damaged."""

    code = "record_unreadable"
    status = 409
    text = (
        "The service cannot read the {kind}: it is damaged, or a newer version wrote it. The operators "
        "have been notified."
    )
    example = Example(kind="schedule")


class ServerBusy(Refused):
    """The server already has a job; the detail names it. `of` takes its ID and, if it is the same account's, its kind,
    the Unix time in milliseconds at which it was requested, and its snapshot."""

    code = "server_busy"
    status = 400  # the contract's code on create and restore
    text = "The server is in use by job {0}. Try again when that job has ended."
    full_text = "The server is in use by job {0}, a {1} requested at {2}. Try again when that job has ended."
    example = Example(_JOB_ID, "create", _REQUESTED_MS, "802")

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
    status = 400
    is_of_limit = True
    text = "The server has reached the limit of {0} snapshots. Delete one first."
    example = Example("5")


class KeepAboveLimit(Refused):
    code = "keep_above_limit"
    status = 400
    text = "keep: Must be at most {0}, the account's limit of snapshots of a server."
    example = Example("5")


class NameTaken(Refused):
    """`of` takes the snapshot that has the name, and the Unix time in milliseconds at which it was requested."""

    code = "name_taken"
    status = 400
    text = "Snapshot {0} of the server, requested at {1}, already has this name."
    example = Example("801", _REQUESTED_MS)

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
    status = 400
    text = "Snapshot {id} is {0}. Only a completed snapshot can be restored."
    example = Example("in_progress", id=801)


class UndoUnavailable(Refused):
    """The data that the restore overwrote is no longer kept, or the server has been restored again."""

    code = "undo_unavailable"
    status = 400
    text = "The data that the job overwrote is no longer kept, or the server has been restored again."


class NodeNotFound(Refused):
    code = "node_not_found"
    status = 404
    text = "There is no node {id}."
    example = Example(id="node-17")


class ServerOnLiveNode(Refused):
    """A server is placed on another node, but its own is alive and has it."""

    code = "server_on_live_node"
    status = 409
    text = (
        "Node {0} is alive and has the server. A server moves when its node no longer reports it, as after a migration;"
        " it can be placed on another node once its own has not responded for a minute."
    )
    example = Example("node-17")


class TokenNotFound(Refused):
    code = "token_not_found"
    status = 404
    text = "There is no token {id}."
    example = Example(id="0a1b2c3d4e5f")


class CredentialNotFound(Refused):
    code = "credential_not_found"
    status = 404
    text = "Node {id} has no valid credential. Create one."
    example = Example(id="node-17")


class CredentialExists(Refused):
    """The node already has a credential, so a first one cannot be created."""

    code = "credential_exists"
    status = 409
    text = "Node {id} already has a credential. Rotate it instead."
    example = Example(id="node-17")


class JobNotRetryable(Refused):
    """The job has not failed, was retried, is a dry run, or its server is stranded."""

    code = "job_not_retryable"
    status = 409
    text = "The job is {0}. Only a failed job can be retried."
    texts: ClassVar[Mapping[str, str]] = {
        "dry_run": "A dry run cannot be retried. Request it again.",
        "retried": "The job was already retried as job {1}.",
        "stranded": "Job {1} stranded the server. Repair the server and mark that job as resolved first.",
        "cancelled": "The job was cancelled. A bulk retry skips cancelled jobs; retry this job individually.",
        "later": "The server has had a later job, {1}. A bulk retry skips such jobs; retry this job individually.",
    }
    example = Example("completed")

    @classmethod
    def of(cls, *found: str, **facts: object) -> Self:
        return cls(cls.texts.get(found[0], cls.text).format(*found, **facts))


class RetryNeedsForce(Refused):
    """Since the job failed, something has happened that a retry would override."""

    code = "retry_needs_force"
    status = 409
    texts: ClassVar[Mapping[str, str]] = {
        "later": "The server has had a later job, {0}.",
        "old": "The job failed at {0}, too long ago to be retried without a check.",
        "used": "The server has been running since the job failed: the {0} would overwrite the data that "
        "it has written.",
    }
    example = Example("later", _JOB_ID)

    @classmethod
    def of(cls, *found: str, **_: object) -> Self:
        """`found`: the reasons, each with its argument."""
        told = zip(found[::2], found[1::2], strict=True)
        reasons = [cls.texts[why].format(_shown(_moment(about)) if why == "old" else about) for why, about in told]
        return cls(f"{' '.join(reasons)} If the job is still wanted, force the retry.")


class JobNotStranded(Refused):
    """The job did not strand a server, or it was already resolved."""

    code = "job_not_stranded"
    status = 409
    text = "The job did not strand a server, or it was already resolved."


class NodeBootUnknown(Refused):
    """The service cannot detect when the node's host reboots."""

    code = "node_boot_unknown"
    status = 409
    text = (
        "The node's worker does not report when its host booted. Give the pause an end time, or resume the"
        " node yourself."
    )


class ServerNotStranded(Refused):
    """Nobody needs to repair the server."""

    code = "server_not_stranded"
    status = 409
    text = "The server is not stranded, or was already marked as resolved."


class SnapshotProtected(Refused):
    """The customer has protected the snapshot against deletes."""

    code = "snapshot_protected"
    status = 409
    text = "Snapshot {id} is protected. Set `protected` to false first."
    example = Example(id=801)


class JobNotCancellable(Refused):
    """The job has started, or it is a delete."""

    code = "job_not_cancellable"
    status = 409
    text = "The job is {0}. Only a queued create, restore or undo can be cancelled."
    example = Example("in_progress")


class IdempotencyKeyReused(Refused):
    """The key was used with a different request before."""

    code = "idempotency_key_reused"
    status = 422
    text = "This Idempotency-Key was used with a different request within the last 24 hours."


class ServerNotReady(Refused):
    """The server is suspended or no longer reported, so it can be neither snapshotted nor restored."""

    code = "server_not_ready"
    status = 400
    text = "The server is suspended, or its node no longer reports it. It cannot be snapshotted or restored."


class TooManyStreams(Refused):
    """The account, or this front end, has the maximum number of open event streams."""

    code = "too_many_streams"
    status = 429
    retry_after_seconds = 30
    text = "Too many event streams are open. Close one first."


class TooManyDryRuns(Refused):
    """The account has reached its limit of unfinished dry runs."""

    code = "too_many_dry_runs"
    status = 429
    retry_after_seconds = 5
    is_of_limit = True
    text = "The account has reached the limit of {0} unfinished dry runs. Wait until one has ended."
    example = Example("50")


class TokenLimitReached(Refused):
    code = "token_limit_reached"
    status = 409
    is_of_limit = True
    text = "The account has reached the limit of {0} tokens. Revoke one first."
    example = Example("100")


class NodeUnavailable(Refused):
    """The server's node has been silent for too long."""

    code = "node_unavailable"
    status = 503
    retry_after_seconds = 30
    text = "The server's hypervisor node is not responding. Nothing was queued."


class StoreNearlyFull(Refused):
    """Redis is short of memory. Less important calls are refused, to keep memory for deletes and outcomes of jobs."""

    code = "store_nearly_full"
    status = 503
    retry_after_seconds = 60
    text = (
        "The service's data store is nearly full and currently accepts no requests of this kind. Nothing was changed."
    )


class StoreUnavailable(Refused):
    """Redis did not respond. A read can be repeated; a change was not sent."""

    code = "store_unavailable"
    status = 503
    retry_after_seconds = 5
    text = "The service's data store is not responding."


class StoreReadOnly(StoreUnavailable):
    """Redis responds but refuses writes: it is full, a replica, or cannot persist data."""

    code = "store_read_only"
    status = 503
    retry_after_seconds = 30
    text = "The service's data store currently accepts no changes. Nothing was changed. Reads still work."


class OutcomeUnknown(StoreUnavailable):
    """Redis did not confirm a change, or its record cannot be shown. This is the only refusal after which the change
    may have taken effect."""

    code = "outcome_unknown"
    status = 503
    retry_after_seconds = 5
    text = (
        "It is unknown whether the request took effect. Repeat it with its Idempotency-Key. If it had none, check"
        " whether it took effect before you repeat it."
    )


def too_slow(*, changing: bool) -> StoreUnavailable:
    """The refusal of a request that took too long. `changing`: the request changes something."""
    return OutcomeUnknown.of() if changing else StoreUnavailable("The service's data store is too slow.")


def _moment(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) // 1000, UTC)


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _below(kind: type[Refused]) -> list[type[Refused]]:
    """The subclasses, each before its own."""
    return [each for child in kind.__subclasses__() for each in (child, *_below(child))]


REFUSALS = tuple(_below(Refused))  # in the order of this module
_BY_CODE = {kind.code: kind for kind in REFUSALS}


def refusal(code: str, *found: str, **facts: object) -> Refused:
    """Create a script's refusal from its code and the conflict that it reports."""
    return _BY_CODE[code].of(*found, **facts)


def example(kind: type[Refused]) -> Refused:
    """Create the refusal's example."""
    return kind.of(*kind.example.found, **kind.example.facts)
