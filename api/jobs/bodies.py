"""The bodies of jobs, for customers and for operators."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from api.http import fields
from api.http.answers import (
    After,
    KindOfJob,
    Open,
    ServerName,
    SnapshotName,
    StatusOfServer,
    StepOfJob,
    Timestamp,
    Total,
    TotalIfKnown,
    from_record,
    rfc3339,
)
from api.http.calls import API
from api.http.consistency import Label
from api.jobs.waiting import at, place, why
from worker.store import errors, model
from worker.store.model import JobId, JobKind, JobState
from worker.store.operators import records
from worker.store.operators.operator_store import JobFilter
from worker.store.operators.waiting import Waiting as WaitingRecord

BULK_MAX = 100
MIB = 1 << 20

BulkAction = Literal["retry", "cancel"]
State = Literal["queued", "in_progress", "completed", "failed"]


class JobsQuery(fields.PageQuery):
    """The query of the list of jobs."""

    server_id: fields.OfServer | None = None
    state: State | None = None
    since: fields.Since | None = None
    until: fields.Until | None = None


class DisksQuery(fields.Query):
    """The query of an undo."""

    disks: Annotated[
        Literal["all", "present"],
        Field(
            description=(
                "`all`: the job fails if the server's disks differ from those of the snapshot. `present`: it restores"
                " the disks that exist, and lists the others in its `notes`"
            )
        ),
    ] = "all"

    @property
    def present_only(self) -> bool:
        return self.disks == "present"


class OpsJobsQuery(fields.PeriodQuery):
    """The query of the list of all jobs."""

    state: (
        Annotated[
            Literal["queued", "in_progress", "completed", "failed", "cancelled"],
            Field(description="`cancelled`: the `failed` jobs that were cancelled"),
        ]
        | None
    ) = None
    kind: Annotated[JobKind, WithJsonSchema({"enum": [*JobKind], "type": "string"})] | None = None
    node: fields.NodeInPath | None = None
    account_id: fields.OfAccount | None = None
    server_id: fields.OfServer | None = None
    error_code: (
        Annotated[
            str,
            fields.matches(r"^[a-z_]{1,64}$", "Must be 1 to 64 lower-case letters or underscores."),
            Field(description="the error code of the job"),
        ]
        | None
    ) = None
    cancelled: (
        Annotated[
            bool,
            Field(
                description="true: only cancelled jobs; false: all other jobs. The `state` of a "
                "cancelled job is `failed`"
            ),
            BeforeValidator(fields.truth),
        ]
        | None
    ) = None
    text: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=100),
            *fields.STORABLE,
            Field(
                description=(
                    "matches part of the job ID, the server's name, the snapshot's name, the error's "
                    "detail or the request ID"
                )
            ),
        ]
        | None
    ) = None

    ended_since: (
        Annotated[
            fields.Moment,
            Field(description="only jobs that ended at this time or later, within a day of their admission"),
        ]
        | None
    ) = None
    ended_until: Annotated[fields.Moment, Field(description="only jobs that ended before this time")] | None = None

    @property
    def filter(self) -> JobFilter:
        state, cancelled = ("failed", True) if self.state == "cancelled" else (self.state, self.cancelled)
        return JobFilter(
            state=state and JobState(state),
            kind=self.kind,
            node=self.node,
            account_id=self.account_id,
            server_id=self.server_id,
            error_code=self.error_code,
            cancelled=cancelled,
            text=self.text,
            ended_since=self.ended_since,
            ended_until=self.ended_until,
        )


_FORCE = "retry even if that overrides something newer, such as data that the server has written since a restore failed"


class RetryQuery(fields.Query):
    """The query of a retry."""

    force: Annotated[bool, Field(description=_FORCE), BeforeValidator(fields.truth)] = False


class BulkBody(fields.RequestBody):
    """An action on several jobs."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"action": {"const": "cancel"}}},
            "then": {"properties": {"force": {"const": False}, "dry_run": {"const": False}}},
        }
    )

    action: BulkAction
    ids: Annotated[list[fields.JobIdInPath], Field(min_length=1, max_length=BULK_MAX)]
    force: Annotated[bool, Field(description=f"for a retry: {_FORCE}")] = False
    dry_run: Annotated[bool, Field(description="for a retry: show what would be done; change nothing")] = False

    @model_validator(mode="after")
    def _of_a_retry(self) -> Self:
        if self.action != "retry" and (self.force or self.dry_run):
            raise PydanticCustomError("only_of_a_retry", "Only a retry takes `force` and `dry_run`.")
        return self


class HeldDisk(Open):
    """A disk of the server at the time of the snapshot."""

    target: Annotated[str, Field(description="the name of the device in the server, for example `vda`")]
    size_mb: Annotated[int, Field(description="its size at that time, in MiB")]


class LeftOut(Open):
    """A disk or device that the snapshot does not contain."""

    target: str
    reason: str


class Contents(Open):
    """What a snapshot contains and what it leaves out."""

    disks: tuple[HeldDisk, ...]
    left_out: tuple[LeftOut, ...]
    firmware: Annotated[str, Field(description="`bios` or `uefi`")]
    nvram: Annotated[bool, Field(description="whether it contains the UEFI variables")]
    tpm: Annotated[bool, Field(description="whether it contains the state of the emulated TPM")]


class ServerNow(Open):
    """A server and its current status."""

    id: int
    name: str
    status: Annotated[StatusOfServer | None, Field(description="null: the server no longer exists")]


class JobError(Open):
    """Why a job failed."""

    code: Annotated[str, Field(description="stable, snake_case; more may be added")]
    detail: str
    stranded: Annotated[
        bool, Field(description="the job could not put the server back as it was; an operator must repair it")
    ]


class Note(Open):
    """Something that a job did, or a dry run would do, in addition to what was requested."""

    code: Annotated[str, Field(description="stable, snake_case; more may be added")]
    detail: str
    disks: Annotated[tuple[str, ...], Field(description="the disks that the note is about")]


class Job(Open):
    """Work on one server. Follow it until its state is `completed` or `failed`."""

    id: str
    kind: KindOfJob
    state: JobState
    step: Annotated[StepOfJob | None, Field(description="the current step; null before the job starts")]
    percent: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="the share of its steps that are done; for a failed job, at the time of the failure",
        ),
    ]
    server: ServerNow
    snapshot: Annotated[SnapshotName | None, Field(description="null for the dry run of a create")]
    attempts: Annotated[int, Field(description="how many times a node has started it; more than 1 after a crash")]
    queued_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    estimated_seconds: Annotated[
        int | None,
        Field(description="median duration of the node's latest jobs of this kind; null before the first one"),
    ]
    downtime_seconds: Annotated[float | None, Field(description="how long the guest was off")]
    error: Annotated[JobError | None, Field(description="set if the state is `failed`")]
    disks: Annotated[
        str,
        Field(
            description=(
                "for a restore or an undo: `all`, or `present`, which restores only the disks that exist; more may be"
                " added"
            )
        ),
    ]
    notes: tuple[Note, ...]
    contents: Annotated[
        Contents | None,
        Field(description="for a completed create, what the snapshot contains; for its dry run, what it would contain"),
    ]
    consistency: Label
    retried_by: Annotated[str | None, Field(description="ID of the job that retries this one")]


class JobList(Open):
    """One page of the list, newest first."""

    count: Total
    results: tuple[Job, ...]


OffSince = Annotated[
    Timestamp | None,
    Field(description="when the guest was asked to stop for a job; null: the guest is not off for a job"),
]


class OpsJobSummary(Job):
    """A job of any account."""

    account_id: int
    node: str
    request_id: str
    off_since: OffSince
    resolved_at: Annotated[
        Timestamp | None, Field(description="when an operator marked the server as repaired, if the job stranded it")
    ]


class OpsJobList(Open):
    """One page of the list, newest first."""

    count: TotalIfKnown
    after: After
    results: tuple[OpsJobSummary, ...]


class StepTaken(Open):
    """An attempt at a step of a job."""

    step: str
    started_at: Annotated[datetime, Field(description="by the node's clock")]
    seconds: Annotated[float | None, Field(description="null: it is running")]
    attempt: int
    failed: Annotated[bool, Field(description="this attempt failed")]


class Resolution(Open):
    """Who marked a stranded server as resolved, and why."""

    at: Timestamp
    by: str
    reason: str


class Waiting(Open):
    """Why a queued job has not started."""

    reason: Annotated[
        str,
        Field(
            description="`node_silent`, `node_paused`, `disks_busy`, `slots_full`, `server_busy`, or `node`: its node"
            " will start it within seconds; more may be added"
        ),
    ]
    detail: Annotated[str, Field(description="the reason in words")]
    place: Annotated[int, Field(description="its place in the queue of its node; 1: it is next")]
    queued: Annotated[int, Field(description="jobs in that queue")]
    given_up_at: Annotated[
        Timestamp | None, Field(description="when it will fail; null: it does not while its node responds")
    ]


class Retry(Open):
    """Whether an operator can retry the job."""

    possible: Annotated[bool, Field(description="also true if it needs `force`; a limit may still refuse the retry")]
    needs_force: bool
    detail: Annotated[str | None, Field(description="why it is not possible, or why it needs `force`")]


class OpsJob(OpsJobSummary):
    """A job with its steps, log lines and resolution."""

    retry: Retry
    waiting: Annotated[Waiting | None, Field(description="for a queued job")]
    cause: Annotated[
        str | None,
        Field(
            description="the message of libvirt, QEMU or qemu-img when it failed, with host paths; not for customers"
        ),
    ]
    power_found: Annotated[str | None, Field(description="`on`, `off` or `paused`, when its node started it")]
    power_now: str | None
    runbook: Annotated[str | None, Field(description="URL of the runbook's section on its error")]
    resolution: Resolution | None
    steps: tuple[StepTaken, ...]
    log: Annotated[
        tuple[dict[str, Any], ...], Field(description="its last log lines, at most 200 and 32 KiB; kept for 7 days")
    ]


class BulkResult(Open):
    """The result for one of the jobs."""

    id: str
    done: Annotated[bool, Field(description="in a dry run: the job would be retried")]
    job_id: Annotated[str | None, Field(description="ID of the new job of a retry")]
    code: Annotated[str | None, Field(description="the error code of the refusal")]
    detail: str | None
    job: Annotated[OpsJobSummary | None, Field(description="in a dry run: the job, if it exists")] = None


class BulkResults(Open):
    """One result for each job, in the order of the request."""

    results: tuple[BulkResult, ...]


def server_name(record: model.Job | model.Snapshot) -> ServerName:
    return ServerName(id=record.server_id, name=record.server_name)


def contents(held: model.Contents | None) -> Contents | None:
    """The contents without paths on the node."""
    if held is None:
        return None
    disks = tuple(HeldDisk(target=disk.target, size_mb=-(-disk.virtual_bytes // MIB)) for disk in held.disks)
    return from_record(Contents, held, disks=disks)


def label(held: model.Contents | None) -> str | None:
    """How consistent a snapshot with these contents is; None: unknown."""
    return None if held is None else held.consistency


def _parts(record: model.Job) -> dict[str, object]:
    """The fields of a job's body whose names differ from the record's."""
    return {
        "server": ServerNow(id=record.server_id, name=record.server_name, status=record.server_state),
        "snapshot": SnapshotName(id=record.snapshot_id, name=record.snapshot_name) if record.snapshot_id else None,
        "error": record.failure,
        "disks": "present" if record.present_only else "all",
        "contents": contents(record.contents),
        "consistency": label(record.contents),
    }


def job(record: model.Job) -> dict[str, object]:
    """A `Job` as JSON, without the model: for a list of 500, creating models would take most of the time."""
    failure, held = record.failure, contents(record.contents)
    return {
        "id": record.id,
        "kind": record.kind,
        "state": record.state,
        "step": record.step,
        "percent": record.percent,
        "server": {"id": record.server_id, "name": record.server_name, "status": record.server_state},
        "snapshot": {"id": record.snapshot_id, "name": record.snapshot_name} if record.snapshot_id else None,
        "attempts": record.attempts,
        "queued_at": rfc3339(record.queued_at),
        "started_at": record.started_at and rfc3339(record.started_at),
        "finished_at": record.finished_at and rfc3339(record.finished_at),
        "estimated_seconds": record.estimated_seconds,
        "downtime_seconds": record.downtime_seconds,
        "error": failure and {"code": failure.code, "detail": failure.detail, "stranded": failure.stranded},
        "disks": "present" if record.present_only else "all",
        "notes": [{"code": note.code, "detail": note.detail, "disks": list(note.disks)} for note in record.notes],
        "contents": held and held.model_dump(mode="json"),
        "consistency": label(record.contents),
        "retried_by": record.retried_by,
    }


def job_model(record: model.Job) -> Job:
    return from_record(Job, record, **_parts(record))


def ops_job_summary(record: model.Job) -> OpsJobSummary:
    return from_record(OpsJobSummary, record, **_parts(record))


def ops_job(record: records.OpsJob, *, runbook_url: str) -> OpsJob:
    """`runbook_url`: URL of the page with a section for each error of a job."""
    failure = record.job.failure
    runbook = f"{runbook_url}#{failure.code}" if failure else None
    return from_record(
        OpsJob,
        record,
        **dict(ops_job_summary(record.job)),
        runbook=runbook,
        retry=_retry(record.retry),
        waiting=_waiting(record.waiting),
    )


def _waiting(record: WaitingRecord | None) -> Waiting | None:
    if record is None:
        return None
    return from_record(Waiting, record, reason=str(record.reason), detail=f"{why(record, when=at)} {place(record)}")


def _retry(record: records.Retry) -> Retry:
    detail = record.refusal.detail if record.refusal else None
    return Retry(possible=record.is_possible, needs_force=record.needs_force, detail=detail)


def would_retry(job_id: JobId, record: records.Retry | None) -> BulkResult:
    """The result of a dry run; None: there is no such job."""
    if record is None:
        missing = errors.JobNotFound.of(id=job_id)
        return BulkResult(id=job_id, done=False, job_id=None, code=missing.code, detail=missing.detail)
    refusal, shown = record.refusal, ops_job_summary(record.job)
    if refusal is None:
        return BulkResult(id=job_id, done=True, job_id=None, code=None, detail=None, job=shown)
    return BulkResult(id=job_id, done=False, job_id=None, code=refusal.code, detail=refusal.detail, job=shown)


def job_headers(job_id: JobId, *, base: str = API) -> dict[str, str]:
    """The headers with the job's path below `base` and its ID, which the contract's bodies do not have."""
    return {"Operation-Location": f"{base}jobs/{job_id}/", "X-Job-Id": job_id}
