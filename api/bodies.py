"""What callers get: the contract's bodies, key for key. The API's own document is made from these models."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from yarl import URL

from api.http.reading import PageQuery
from worker.store import model
from worker.store.calls import Page
from worker.store.customers import events
from worker.store.customers.customer_store import Admitted
from worker.store.model import JobKind, JobState, ServerState, SnapshotStatus, Step
from worker.store.schedules import schedules as schedules_

MIB = 1 << 20
CREATE_MESSAGE = "Snapshot is being created. This may take 3-10 minutes depending on server size."
RESTORE_MESSAGE = "Server is being restored from snapshot. This may take 5-15 minutes."


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Moment = Annotated[
    datetime,
    PlainSerializer(_rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "UTC, RFC 3339, whole seconds"}),
]


class Closed(BaseModel):
    """A body of the contract: exactly these keys, today and later."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Open(BaseModel):
    """A body of our own: keys may be added, and a client leaves alone what it does not know."""

    model_config = ConfigDict(frozen=True)


class ServerName(Closed):
    """A server by its number and name."""

    id: int
    name: str


class SnapshotName(Closed):
    """A snapshot by its number and name."""

    id: int
    name: str


class Snapshot(Closed):
    """One point in time of one server: all its disks."""

    id: int
    server: ServerName
    name: str
    status: SnapshotStatus
    size_mb: Annotated[int | None, Field(description="MiB of guest data over all disks; null until completed")]
    created_at: Moment
    description: str


class HeldDisk(Open):
    """A disk of the server when the snapshot was taken."""

    target: Annotated[str, Field(description="the device's name in the server, for example `vda`")]
    size_mb: Annotated[int, Field(description="MiB, its size then")]


class LeftOut(Open):
    """A disk or device that the snapshot does not hold."""

    target: str
    reason: str


class Contents(Open):
    """What a snapshot holds, and what it does not."""

    disks: tuple[HeldDisk, ...]
    left_out: tuple[LeftOut, ...]
    firmware: Annotated[str, Field(description="`bios` or `uefi`")]
    nvram: Annotated[bool, Field(description="the UEFI variables are part of it")]
    tpm: Annotated[bool, Field(description="the state of the emulated TPM is part of it")]


class SnapshotDetails(Snapshot):
    """A snapshot with what it holds and what its owner says about it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    labels: dict[str, str]
    protected: Annotated[bool, Field(description="its delete is refused")]
    expires_at: Annotated[Moment | None, Field(description="deleted then, unless it is protected")]
    schedule_id: Annotated[str | None, Field(description="the schedule that made it")]
    contents: Annotated[
        Contents | None, Field(description="null until completed, and for a snapshot of an earlier version")
    ]


class SnapshotCreated(Snapshot):
    """The snapshot that is being made."""

    message: str


class SnapshotList(Closed):
    """One page of the list, newest first."""

    count: Annotated[int, Field(description="the total over all pages")]
    results: tuple[Snapshot, ...]


class RestoredSnapshot(SnapshotName):
    """The snapshot that a server goes back to."""

    created_at: Moment


class RestoredServer(ServerName):
    """The server that goes back, and what it does now."""

    status: ServerState


class RestoreStarted(Closed):
    """What goes back to what."""

    status: Literal["success"] = Field(description="the restore was accepted")
    message: str
    snapshot: RestoredSnapshot
    server: RestoredServer


class BusyJob(Open):
    """The job that holds a server."""

    id: str
    kind: JobKind


class Server(Open):
    """A server, and what can be asked of it."""

    id: int
    name: str
    status: ServerState
    snapshots: Annotated[int, Field(description="those that take one of its slots: not failed ones")]
    snapshots_max: int
    job: Annotated[BusyJob | None, Field(description="what keeps it busy")]
    reachable: Annotated[bool, Field(description="its node answers: new work would be taken")]


class ServerNow(Open):
    """A server, and what it does now."""

    id: int
    name: str
    status: Annotated[ServerState | None, Field(description="null: the server is gone")]


class JobError(Open):
    """Why a job failed."""

    code: Annotated[str, Field(description="stable, snake_case; more may be added")]
    detail: str
    stranded: Annotated[bool, Field(description="the server could not be left as it was found: an operator must look")]


class Note(Open):
    """What a job did, or a dry run would do, beside what it was asked for."""

    code: Annotated[str, Field(description="stable, snake_case; more may be added")]
    detail: str
    disks: Annotated[tuple[str, ...], Field(description="the disks that it is about")]


class Job(Open):
    """The work on one server, to be followed until its state is `completed` or `failed`."""

    id: str
    kind: JobKind
    state: JobState
    step: Annotated[Step | None, Field(description="how far it has got; null before it began")]
    percent: Annotated[
        int, Field(ge=0, le=100, description="how far, in whole steps; of a failed job: where it failed")
    ]
    server: ServerNow
    snapshot: Annotated[SnapshotName | None, Field(description="null for the dry run of a create")]
    attempts: Annotated[int, Field(description="times that a node began it: more than 1 after a crash")]
    queued_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    estimated_seconds: Annotated[
        int | None, Field(description="median of the node's latest jobs of the kind; null before the first")
    ]
    downtime_seconds: Annotated[float | None, Field(description="how long the guest was kept off")]
    error: Annotated[JobError | None, Field(description="set when the state is `failed`")]
    disks: Annotated[
        Literal["all", "present"],
        Field(description="of a restore or an undo: `present` restores the disks that are there, whatever is missing"),
    ]
    notes: tuple[Note, ...]
    contents: Annotated[
        Contents | None,
        Field(description="of a completed create: what the snapshot holds; of its dry run: what it would hold"),
    ]
    retried_by: Annotated[str | None, Field(description="the job that does the same again")]


class JobList(Open):
    """One page of the list, newest first."""

    count: Annotated[int, Field(description="the total over all pages")]
    results: tuple[Job, ...]


class Event(Open):
    """A job has changed: the data of one event of the stream."""

    job_id: str
    kind: JobKind
    state: JobState
    step: Step | None
    server_id: int
    snapshot_id: Annotated[int | None, Field(description="null for the dry run of a create")]
    notes: Annotated[tuple[str, ...], Field(description="codes of the job's notes; empty before its end")]


class ScheduleRun(Open):
    """What became of a schedule's last run."""

    at: Moment
    job_id: Annotated[str | None, Field(description="null: it was refused")]
    error: Annotated[str | None, Field(description="the code of the refusal")]


class Schedule(Open):
    """When a server is snapshotted without anyone asking for it each time."""

    id: str
    server: ServerName
    name: Annotated[str, Field(description="of its snapshots, which have the moment behind it")]
    when: Annotated[str, Field(description="`hourly`, `daily`, `weekly`, or a cron expression in UTC")]
    keep: Annotated[int, Field(description="of its completed snapshots the newest stay")]
    expire_after_hours: int | None
    enabled: bool
    created_at: Moment
    next_run_at: Annotated[Moment | None, Field(description="null: it is not enabled")]
    last_run: ScheduleRun | None


class ScheduleList(Open):
    """One page of the list, newest first."""

    count: Annotated[int, Field(description="the total over all pages")]
    results: tuple[Schedule, ...]


class Health(Open):
    """A probe's answer."""

    status: Literal["ok"]


def answer(body: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    # json's own spacing: there are people who grep for `"state": "completed"`
    raw = json.dumps(body.model_dump(mode="json")).encode()
    return web.Response(body=raw, status=status, headers=headers, content_type="application/json", charset="utf-8")


def snapshot(record: model.Snapshot) -> Snapshot:
    return Snapshot(
        id=record.id,
        server=ServerName(id=record.server_id, name=record.server_name),
        name=record.name,
        status=record.status,
        size_mb=record.size_mb,
        created_at=record.created_at,
        description=record.description,
    )


def details(record: model.Snapshot) -> SnapshotDetails:
    return SnapshotDetails(
        **dict(snapshot(record)),
        labels=dict(record.labels),
        protected=record.protected,
        expires_at=record.expires_at,
        schedule_id=record.schedule_id,
        contents=contents(record.contents),
    )


def contents(held: model.Contents | None) -> Contents | None:
    """Without the paths on the node."""
    if held is None:
        return None
    return Contents(
        disks=tuple(HeldDisk(target=disk.target, size_mb=-(-disk.virtual_bytes // MIB)) for disk in held.disks),
        left_out=tuple(LeftOut(target=one.target, reason=one.reason) for one in held.left_out),
        firmware=held.firmware,
        nvram=held.nvram,
        tpm=held.tpm,
    )


def snapshots(page: Page[model.Snapshot]) -> SnapshotList:
    return SnapshotList(count=page.count, results=tuple(snapshot(record) for record in page.results))


def created(admitted: Admitted) -> SnapshotCreated:
    return SnapshotCreated(**dict(snapshot(admitted.snapshot)), message=CREATE_MESSAGE)


def restoring(admitted: Admitted) -> RestoreStarted:
    record, restore = admitted.snapshot, admitted.job
    state = restore.server_state or ServerState.RESTORING  # there is one: else it would not have been admitted
    return RestoreStarted(
        status="success",
        message=RESTORE_MESSAGE,
        snapshot=RestoredSnapshot(id=record.id, name=record.name, created_at=record.created_at),
        server=RestoredServer(id=restore.server_id, name=restore.server_name, status=state),
    )


def server(view: model.ServerView) -> Server:
    record = view.server
    busy = BusyJob(id=record.job_id, kind=record.job_kind) if record.job_id and record.job_kind else None
    return Server(
        id=record.id,
        name=record.name,
        status=record.state,
        snapshots=view.counted,
        snapshots_max=model.SNAPSHOTS_PER_SERVER,
        job=busy,
        reachable=view.reachable,
    )


def jobs(page: Page[model.Job]) -> JobList:
    return JobList(count=page.count, results=tuple(job(record) for record in page.results))


def job(record: model.Job) -> Job:
    failure = record.failure
    return Job(
        id=record.id,
        kind=record.kind,
        state=record.state,
        step=record.step,
        percent=record.percent,
        server=ServerNow(id=record.server_id, name=record.server_name, status=record.server_state),
        snapshot=SnapshotName(id=record.snapshot_id, name=record.snapshot_name) if record.snapshot_id else None,
        attempts=record.attempts,
        queued_at=record.queued_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        estimated_seconds=record.estimated_seconds,
        downtime_seconds=record.downtime_seconds,
        error=JobError(code=failure.code, detail=failure.detail, stranded=failure.stranded) if failure else None,
        disks="present" if record.present_only else "all",
        notes=tuple(Note(code=note.code, detail=note.detail, disks=note.disks) for note in record.notes),
        contents=contents(record.contents),
        retried_by=record.retried_by,
    )


def event(record: events.Event) -> Event:
    return Event(
        job_id=record.job_id,
        kind=record.kind,
        state=record.state,
        step=record.step,
        server_id=record.server_id,
        snapshot_id=record.snapshot_id,
        notes=record.notes,
    )


def schedule(record: schedules_.Schedule) -> Schedule:
    spec, ran_at = record.spec, record.last_run_at
    return Schedule(
        id=record.id,
        server=ServerName(id=record.server_id, name=record.server_name),
        name=spec.name,
        when=spec.when,
        keep=spec.keep,
        expire_after_hours=spec.expire_after // timedelta(hours=1) if spec.expire_after else None,
        enabled=spec.enabled,
        created_at=record.created_at,
        next_run_at=record.next_run_at,
        last_run=ScheduleRun(at=ran_at, job_id=record.last_job_id, error=record.last_error) if ran_at else None,
    )


def schedules(page: Page[schedules_.Schedule]) -> ScheduleList:
    return ScheduleList(count=page.count, results=tuple(schedule(record) for record in page.results))


def places(admitted: Admitted) -> dict[str, str]:
    """Where to follow what was accepted."""
    return {"Location": f"/api/v1/snapshots/{admitted.snapshot.id}/"} | place(admitted.job)


def place(record: model.Job) -> dict[str, str]:
    """Where to follow a job, and its id, which no body of the contract has."""
    return {"Operation-Location": f"/api/v1/jobs/{record.id}/", "X-Job-Id": record.id}


def link(url: URL, query: PageQuery, count: int) -> str:
    """The pages around this one as RFC 8288 wants them, with the other parameters of the query kept."""
    last = max(1, -(-count // query.page_size))
    pages = {"first": 1, "last": last}
    if query.page > 1:
        pages["prev"] = min(query.page - 1, last)
    if query.page < last:
        pages["next"] = query.page + 1
    here = url.relative() if url.absolute else url
    return ", ".join(f'<{here.update_query(page=page)}>; rel="{name}"' for name, page in pages.items())
