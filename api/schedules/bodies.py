"""The bodies of schedules."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from api.http import fields
from api.http.answers import After, Body, Open, ServerName, Timestamp, Total, TotalIfKnown, from_record
from api.http.consistency import Asked
from worker.store import errors
from worker.store.model import NAME_MAX, SNAPSHOTS_PER_SERVER, SNAPSHOTS_PER_SERVER_MOST, ScheduleId
from worker.store.schedules import schedules as records
from worker.store.schedules.schedules import ScheduleSpec
from worker.store.schedules.timing import IN_UTC, BadCron, check, check_zone, closest_runs

NAME_OF_SCHEDULE_MAX = NAME_MAX - len("-20250131-2359")
WHEN_MAX = 100
ZONE_MAX = 64
WINDOW_MINUTES = (10, 1440)  # the shortest leaves a job time to start; the longest is a day
WINDOW_BY_LABEL = 60  # minutes: its servers must not all be stopped at once

ScheduleIdInPath = Annotated[ScheduleId, *fields.hex_id("schedule", "5c1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e")]
SCHEDULE_ID: fields.PathId[ScheduleId] = fields.PathId(
    name="schedule_id", adapter=TypeAdapter(ScheduleIdInPath), not_found=errors.ScheduleNotFound
)


def _runnable(when: str) -> str:
    try:
        check(when, datetime.now(UTC))
    except BadCron as error:
        raise PydanticCustomError("not_a_cron", "{why}", {"why": str(error)}) from error
    return when


def _known_zone(name: str) -> str:
    try:
        check_zone(name)
    except BadCron as error:
        raise PydanticCustomError("not_a_time_zone", "{why}", {"why": str(error)}) from error
    return name


ScheduleName = Annotated[
    str,
    fields.matches(
        rf"^[A-Za-z0-9_-]{{1,{NAME_OF_SCHEDULE_MAX}}}$",
        f"Must be 1 to {NAME_OF_SCHEDULE_MAX} letters (A-Z, a-z), digits, hyphens or underscores.",
    ),
    Field(description="prefix of its snapshots' names, which end with the time of the run"),
]
When = Annotated[
    str,
    StringConstraints(max_length=WHEN_MAX),
    AfterValidator(_runnable),
    Field(
        description=(
            "`hourly`, `daily` or `weekly`, at a time that depends on the server or, of a schedule by label, on the"
            " account; or a cron expression of five fields, in `time_zone`, with runs at least an hour apart"
        ),
        examples=["daily", "0 3 * * MON-FRI"],
    ),
]
Keep = Annotated[
    int,
    Field(
        ge=1,
        le=SNAPSHOTS_PER_SERVER_MOST,
        description=(
            "how many of its completed snapshots of each server to keep; the newest are kept. At most the limit of"
            f" snapshots of a server, which is {SNAPSHOTS_PER_SERVER} unless the provider sets another one"
        ),
    ),
    BeforeValidator(fields.whole),
]
ExpireAfterHours = Annotated[
    int,
    Field(ge=1, le=fields.EXPIRE_HOURS_MAX, description="the age at which each of its snapshots is deleted"),
    BeforeValidator(fields.whole),
]


TimeZone = Annotated[
    str,
    StringConstraints(max_length=ZONE_MAX),
    AfterValidator(_known_zone),
    Field(
        description=(
            "the IANA name of the time zone of `when`. A time that the clocks skip when they go forward runs right"
            " after the gap; a time that occurs twice when they go back runs once"
        ),
        examples=["Europe/Berlin"],
    ),
]
WindowMinutes = Annotated[
    int,
    Field(
        ge=WINDOW_MINUTES[0],
        le=WINDOW_MINUTES[1],
        description=(
            "how long after `when` runs may start. The servers' runs are spread over this time; a run that has not"
            " started at its end is skipped. At most the time between two runs. Default of a schedule by label:"
            f" {WINDOW_BY_LABEL}"
        ),
    ),
    BeforeValidator(fields.whole),
]
ServerLabels = Annotated[
    fields.Labels,
    Field(
        min_length=1,
        description="covers all servers of the account that have all of these labels, also those labeled later",
    ),
]
Target = Literal["server", "labels"]


class SchedulesQuery(fields.PageQuery):
    """The query of the list of schedules."""

    server_id: fields.OfServer | None = None
    target: Annotated[
        Target, Field(description="`server`: schedules of single servers; `labels`: schedules by label")
    ] = "server"


class CoveredQuery(fields.CursorQuery):
    """The query of the servers of a schedule."""


class ScheduleBody(fields.RequestBody):
    """When to snapshot a server, or all servers with given labels: exactly one of `server_id` and `server_labels`."""

    server_id: Annotated[fields.ServerIdInBody | None, *fields.NOT_NULL] = None
    server_labels: Annotated[ServerLabels | None, *fields.NOT_NULL, Field(exclude_if=lambda labels: labels is None)] = (
        None
    )
    name: ScheduleName
    when: When
    keep: Keep = 3
    expire_after_hours: ExpireAfterHours | None = None
    enabled: bool = True
    consistency: Asked = None
    # left out of a request's fingerprint, which stays that of earlier versions
    time_zone: Annotated[TimeZone, Field(exclude_if=lambda zone: zone == IN_UTC)] = IN_UTC
    window_minutes: Annotated[
        WindowMinutes | None, fields.LEFT_OUT, Field(exclude_if=lambda minutes: minutes is None)
    ] = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.server_id is None) == (self.server_labels is None):
            raise PydanticCustomError("not_one_target", "Give either server_id or server_labels.")
        return self

    def spec(self, *, live: bool) -> ScheduleSpec:
        """`live`: whether its snapshots are taken without stopping the server."""
        return ScheduleSpec(
            name=self.name,
            when=self.when,
            keep=self.keep,
            expire_after=_hours(self.expire_after_hours),
            enabled=self.enabled,
            live=live,
            time_zone=self.time_zone,
            window=_minutes(self.window_minutes or (WINDOW_BY_LABEL if self.server_labels else None)),
            server_labels=self.server_labels,
        )


class ScheduleEditBody(fields.RequestBody):
    """The fields to change; omitted fields keep their values."""

    name: Annotated[ScheduleName | None, *fields.NOT_NULL] = None
    when: Annotated[When | None, *fields.NOT_NULL] = None
    keep: Annotated[Keep | None, *fields.NOT_NULL] = None
    expire_after_hours: Annotated[ExpireAfterHours | None, fields.LEFT_OUT, Field(description="null: never")] = None
    enabled: Annotated[bool | None, *fields.NOT_NULL] = None
    consistency: Asked = None
    server_labels: Annotated[
        ServerLabels | None, *fields.NOT_NULL, Field(description="only of a schedule by label")
    ] = None
    time_zone: Annotated[TimeZone | None, *fields.NOT_NULL] = None
    window_minutes: Annotated[
        WindowMinutes | None, fields.LEFT_OUT, Field(description="null: none, only of a schedule of one server")
    ] = None

    def applied(self, spec: ScheduleSpec, *, live: bool | None) -> ScheduleSpec:
        """The schedule with these changes. `live`: according to its `consistency`; None: unchanged."""
        expires, windows = "expire_after_hours" in self.model_fields_set, "window_minutes" in self.model_fields_set
        return ScheduleSpec(
            name=self.name or spec.name,
            when=self.when or spec.when,
            keep=self.keep or spec.keep,
            expire_after=_hours(self.expire_after_hours) if expires else spec.expire_after,
            enabled=spec.enabled if self.enabled is None else self.enabled,
            live=spec.live if live is None else live,
            time_zone=self.time_zone or spec.time_zone,
            window=_minutes(self.window_minutes) if windows else spec.window,
            server_labels=self.server_labels or spec.server_labels,
        )


class ScheduleRun(Open):
    """The result of a schedule's last run."""

    at: Timestamp
    job_id: Annotated[str | None, Field(description="null: the run was refused")]
    error: Annotated[str | None, Field(description="the error code of the refusal")]


class ScheduleWindow(Open):
    """The current or latest window of a schedule, and its runs: one for each server that it covered then."""

    starts_at: Timestamp
    ends_at: Timestamp
    servers: Annotated[int, Field(description="how many it covered when the window began")]
    waiting: Annotated[int, Field(description="how many have not started yet")]
    started: int
    refused: Annotated[int, Field(description="for a reason that is not temporary; see the runs of its servers")]
    missed: Annotated[int, Field(description="the window ended before they could start")]


class Schedule(Open):
    """When a server, or all servers with given labels, are snapshotted automatically."""

    id: str
    server: Annotated[ServerName | None, Field(description="null: the schedule is by label")]
    server_labels: Annotated[dict[str, str] | None, Field(description="null: the schedule is of one server")]
    name: Annotated[str, Field(description="prefix of its snapshots' names, which end with the time of the run")]
    when: Annotated[str, Field(description="`hourly`, `daily`, `weekly`, or a cron expression in `time_zone`")]
    time_zone: Annotated[str, Field(description="IANA name")]
    window_minutes: Annotated[
        int | None, Field(description="null: runs start at once and are retried until the next run")
    ]
    keep: Annotated[
        int, Field(description="how many of its completed snapshots of each server to keep; the newest are kept")
    ]
    expire_after_hours: int | None
    enabled: bool
    consistency: Annotated[str, Field(description="consistency of its snapshots: `stop` or `live`; more may be added")]
    created_at: Timestamp
    next_run_at: Annotated[
        Timestamp | None, Field(description="or the start of its next window; null: the schedule is not enabled")
    ]
    last_run: ScheduleRun | None
    window: Annotated[ScheduleWindow | None, Field(description="null: it has no window, or none has begun yet")]


class ScheduleList(Open):
    """One page of the list, newest first."""

    count: Total
    results: tuple[Schedule, ...]


class CoveredServer(Open):
    """A server that a schedule covers now."""

    server: ServerName
    starts_at: Annotated[Timestamp | None, Field(description="of its run that waits in the current window")]
    last_run: Annotated[ScheduleRun | None, Field(description="in the current or latest window")]


class CoveredServerList(Open):
    """One page of the list, by ID."""

    count: TotalIfKnown
    after: After
    results: tuple[CoveredServer, ...]


class OpsSchedulesQuery(fields.PeriodQuery):
    """The query of the list of all schedules; `since` and `until` apply to their next runs."""

    account_id: fields.OfAccount | None = None
    server_id: fields.OfServer | None = None
    target: Annotated[
        Literal["server", "labels", "all"],
        Field(description="`server`: schedules of single servers; `labels`: schedules by label; or `all`"),
    ] = "server"


class OpsSchedule(Schedule):
    """When a server of any account is snapshotted automatically."""

    account_id: int


class OpsScheduleList(Open):
    """One page of the list, by the next run."""

    count: TotalIfKnown
    after: After
    results: tuple[OpsSchedule, ...]


def _hours(hours: int | None) -> timedelta | None:
    return None if hours is None else timedelta(hours=hours)


def _minutes(minutes: int | None) -> timedelta | None:
    return None if minutes is None else timedelta(minutes=minutes)


def wrong_window(spec: ScheduleSpec) -> str | None:
    """Why its window is not valid, or None. Raises BadCron."""
    if spec.window is None:
        return "A schedule by label must have one." if spec.server_labels else None
    closest = closest_runs(spec.when, datetime.now(UTC))
    return "Must be at most the time between two runs." if spec.window > closest else None


def schedule(record: records.Schedule) -> Schedule:
    return _of(Schedule, record)


def ops_schedule(record: records.Schedule) -> OpsSchedule:
    return _of(OpsSchedule, record)


def _of(body: type[Body], record: records.Schedule) -> Body:
    spec, ran_at, server = record.spec, record.last_run_at, None
    if record.server_id is not None:
        server = ServerName(id=record.server_id, name=record.server_name)
    return from_record(
        body,
        record,
        server=server,
        server_labels=None if spec.server_labels is None else dict(spec.server_labels),
        name=spec.name,
        when=spec.when,
        time_zone=spec.time_zone,
        window_minutes=spec.window // timedelta(minutes=1) if spec.window else None,
        keep=spec.keep,
        expire_after_hours=spec.expire_after // timedelta(hours=1) if spec.expire_after else None,
        enabled=spec.enabled,
        consistency="live" if spec.live else "stop",
        last_run=ScheduleRun(at=ran_at, job_id=record.last_job_id, error=record.last_error) if ran_at else None,
        window=_window(record.window) if record.window else None,
    )


def _window(record: records.Window) -> ScheduleWindow:
    ended = record.started + record.refused + record.missed
    return from_record(ScheduleWindow, record, servers=record.planned, waiting=max(0, record.planned - ended))


def covered(record: records.CoveredServer) -> CoveredServer:
    return CoveredServer(
        server=ServerName(id=record.server_id, name=record.server_name),
        starts_at=record.starts_at,
        last_run=from_record(ScheduleRun, record.run) if record.run else None,
    )
