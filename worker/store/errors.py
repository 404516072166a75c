"""Why a request was refused: what is true now, under a stable code. `api.problems` gives each its HTTP status."""

from typing import ClassVar


class Refused(Exception):
    """Base of every refusal: the request changed nothing. `detail` is for the caller's eyes."""

    code: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ServerNotFound(Refused):
    code = "server_not_found"


class SnapshotNotFound(Refused):
    code = "snapshot_not_found"


class ScheduleNotFound(Refused):
    code = "schedule_not_found"


class ScheduleLimitReached(Refused):
    code = "schedule_limit_reached"


class WebhookNotFound(Refused):
    code = "webhook_not_found"


class WebhookLimitReached(Refused):
    code = "webhook_limit_reached"


class WebhookNotReady(Refused):
    """A test of a webhook that is disabled, or has too much to deliver already."""

    code = "webhook_not_ready"


class RecordUnreadable(Refused):
    """What is kept of it was written by a newer version, or is damaged."""

    code = "record_unreadable"


class JobNotFound(Refused):
    code = "job_not_found"


class ServerBusy(Refused):
    """The server has a job already; the detail names it."""

    code = "server_busy"

    def __init__(self, detail: str, *, job_id: str) -> None:
        super().__init__(detail)
        self.job_id = job_id


class SnapshotLimitReached(Refused):
    code = "snapshot_limit_reached"


class NameTaken(Refused):
    code = "name_taken"


class SnapshotNotReady(Refused):
    """A restore of a snapshot that is not completed."""

    code = "snapshot_not_ready"


class SnapshotProtected(Refused):
    """The snapshot's owner has protected it from a delete."""

    code = "snapshot_protected"


class JobNotCancellable(Refused):
    """The job's node has begun it, or it is a delete's own work."""

    code = "job_not_cancellable"


class JobNotRetryable(Refused):
    """The job has not failed, or is of a kind that a customer asks for anew (a dry run)."""

    code = "job_not_retryable"


class JobNotStranded(Refused):
    """The job has stranded no server, or that was resolved."""

    code = "job_not_stranded"


class NodeNotFound(Refused):
    code = "node_not_found"


class TokenNotFound(Refused):
    code = "token_not_found"


KEY_REUSED = "This Idempotency-Key came with another request within the last 24 hours."


class IdempotencyKeyReused(Refused):
    """The key came with another request before."""

    code = "idempotency_key_reused"


class UndoUnavailable(Refused):
    """What the restore has overwritten is not kept any more, or a later restore came over it."""

    code = "undo_unavailable"


class ServerNotReady(Refused):
    """The server is in a state (suspended) in which it can be neither snapshotted nor restored."""

    code = "server_not_ready"


class TooManyStreams(Refused):
    """The account, or this front end, has as many streams of events open as it may."""

    code = "too_many_streams"


class NodeUnavailable(Refused):
    """The server's node has been silent for too long."""

    code = "node_unavailable"


class StoreUnavailable(Refused):
    """Redis did not answer, or could not write."""

    code = "store_unavailable"
