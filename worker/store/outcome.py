"""The outcome of a job, in the form that scripts take."""

from dataclasses import dataclass

from worker.store import errors, written
from worker.store.model import WINDOW_MISSED, Contents, Failure, JobState, Note, NoteCode, SnapshotStatus

JOB_KEPT_SECONDS = 30 * 86_400  # retention of the record of a job that has ended
DELETE_RETRY_SECONDS = 60.0  # delay before a failed delete is retried; doubled with each failure
DELETE_RETRY_MOST_SECONDS = 3600.0
# Notes in the audit log. LEFT_OUT is omitted: nearly every create has it, and the snapshot's contents show it.
NOTE_CODES_KEPT_SECONDS = 90 * 86_400
NOT_AUDITED = frozenset({NoteCode.LEFT_OUT})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a job. `snapshot_status`: the status of the snapshot of a create."""

    state: JobState
    failure: Failure | None = None
    downtime_seconds: float | None = None
    size_mb: int | None = None
    snapshot_status: SnapshotStatus | None = None
    undoable_seconds: float | None = None  # for a restore: retention of the overwritten data
    notes: tuple[Note, ...] = ()
    contents: Contents | None = None  # for a create or its dry run: what the snapshot holds or would hold
    cause: str = ""  # the hypervisor's message for the failure, with paths of the host; for operators only

    def for_script(self) -> dict[str, str | int]:
        failure = self.failure
        codes = dict.fromkeys(note.code for note in self.notes)
        return {
            "state": self.state,
            "failure_code": failure.code if failure else "",
            "failure_detail": failure.detail if failure else "",
            "failure_cause": self.cause,
            "stranded": "1" if failure and failure.stranded else "0",
            "downtime_seconds": "" if self.downtime_seconds is None else f"{self.downtime_seconds:.3f}",
            "size_mb": "" if self.size_mb is None else str(self.size_mb),
            "undoable_ms": "" if self.undoable_seconds is None else str(round(self.undoable_seconds * 1000)),
            "snapshot_status": self.snapshot_status or SnapshotStatus.FAILED,
            "notes": written.notes(self.notes),
            "note_codes": " ".join(codes),
            "audited_codes": " ".join(code for code in codes if code not in NOT_AUDITED),
            "note_codes_ms": NOTE_CODES_KEPT_SECONDS * 1000,
            "contents": written.contents(self.contents),
            "kept_ms": JOB_KEPT_SECONDS * 1000,
            "retry_ms": round(DELETE_RETRY_SECONDS * 1000),
            "retry_most_ms": round(DELETE_RETRY_MOST_SECONDS * 1000),
        }


STARTS_TOO_LATE = Outcome(
    state=JobState.FAILED,
    failure=Failure(code=WINDOW_MISSED, detail="The window of its schedule ended before the job could start."),
    snapshot_status=SnapshotStatus.FAILED,
)
LEFT_ITS_NODE = Outcome(
    state=JobState.FAILED,
    failure=Failure(
        code=errors.NodeUnavailable.code, detail="The server has moved to another node; the job was abandoned."
    ),
    snapshot_status=SnapshotStatus.FAILED,
)
