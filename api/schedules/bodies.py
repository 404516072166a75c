"""The bodies of schedules."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, TypeAdapter
from pydantic_core import PydanticCustomError

from api.http import fields
from api.http.answers import After, Body, Open, ServerName, Timestamp, Total, TotalIfKnown, from_record
from api.http.consistency import Asked
from worker.store import errors
from worker.store.model import NAME_MAX, SNAPSHOTS_PER_SERVER, ScheduleId
from worker.store.schedules import schedules as records
from worker.store.schedules.schedules import BadCron, ScheduleSpec, check

NAME_OF_SCHEDULE_MAX = NAME_MAX - len("-20250131-2359")
WHEN_MAX = 100

ScheduleIdInPath = Annotated[ScheduleId, *fields.hex_id("schedule", "5c1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e")]
SCHEDULE_ID: fields.PathId[ScheduleId] = fields.PathId(
    "schedule_id", TypeAdapter(ScheduleIdInPath), errors.ScheduleNotFound
)


def _runnable(when: str) -> str:
    try:
        check(when, datetime.now(UTC))
    except BadCron as error:
        raise PydanticCustomError("not_a_cron", "{why}", {"why": str(error)}) from error
    return when


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
            "`hourly`, `daily` or `weekly`, at a time that depends on the server; or a cron expression of five fields,"
            " in UTC, with runs at least an hour apart"
        ),
        examples=["daily", "0 3 * * MON-FRI"],
    ),
]
Keep = Annotated[
    int,
    Field(
        ge=1, le=SNAPSHOTS_PER_SERVER, description="how many of its completed snapshots to keep; the newest are kept"
    ),
    BeforeValidator(fields.whole),
]
ExpireAfterHours = Annotated[
    int,
    Field(ge=1, le=fields.EXPIRE_HOURS_MAX, description="the age at which each of its snapshots is deleted"),
    BeforeValidator(fields.whole),
]


class SchedulesQuery(fields.PageQuery):
    """The query of the list of schedules."""

    server_id: fields.OfServer | None = None


class ScheduleBody(fields.RequestBody):
    """When to snapshot a server."""

    server_id: fields.ServerIdInBody
    name: ScheduleName
    when: When
    keep: Keep = 3
    expire_after_hours: ExpireAfterHours | None = None
    enabled: bool = True
    consistency: Asked = None

    def spec(self, *, live: bool) -> ScheduleSpec:
        """`live`: whether its snapshots are taken without stopping the server."""
        return ScheduleSpec(
            name=self.name,
            when=self.when,
            keep=self.keep,
            expire_after=_hours(self.expire_after_hours),
            enabled=self.enabled,
            live=live,
        )


class ScheduleEditBody(fields.RequestBody):
    """The fields to change; omitted fields keep their values."""

    name: Annotated[ScheduleName | None, *fields.NOT_NULL] = None
    when: Annotated[When | None, *fields.NOT_NULL] = None
    keep: Annotated[Keep | None, *fields.NOT_NULL] = None
    expire_after_hours: Annotated[ExpireAfterHours | None, fields.LEFT_OUT, Field(description="null: never")] = None
    enabled: Annotated[bool | None, *fields.NOT_NULL] = None
    consistency: Asked = None

    def applied(self, spec: ScheduleSpec, *, live: bool | None) -> ScheduleSpec:
        """The schedule with these changes. `live`: according to its `consistency`; None: unchanged."""
        expires = "expire_after_hours" in self.model_fields_set
        return ScheduleSpec(
            name=self.name or spec.name,
            when=self.when or spec.when,
            keep=self.keep or spec.keep,
            expire_after=_hours(self.expire_after_hours) if expires else spec.expire_after,
            enabled=spec.enabled if self.enabled is None else self.enabled,
            live=spec.live if live is None else live,
        )


class ScheduleRun(Open):
    """The result of a schedule's last run."""

    at: Timestamp
    job_id: Annotated[str | None, Field(description="null: the run was refused")]
    error: Annotated[str | None, Field(description="the error code of the refusal")]


class Schedule(Open):
    """When a server is snapshotted automatically."""

    id: str
    server: ServerName
    name: Annotated[str, Field(description="prefix of its snapshots' names, which end with the time of the run")]
    when: Annotated[str, Field(description="`hourly`, `daily`, `weekly`, or a cron expression in UTC")]
    keep: Annotated[int, Field(description="how many of its completed snapshots to keep; the newest are kept")]
    expire_after_hours: int | None
    enabled: bool
    consistency: Annotated[str, Field(description="consistency of its snapshots: `stop` or `live`; more may be added")]
    created_at: Timestamp
    next_run_at: Annotated[Timestamp | None, Field(description="null: the schedule is not enabled")]
    last_run: ScheduleRun | None


class ScheduleList(Open):
    """One page of the list, newest first."""

    count: Total
    results: tuple[Schedule, ...]


class OpsSchedulesQuery(fields.PeriodQuery):
    """The query of the list of all schedules; `since` and `until` apply to their next runs."""

    account_id: fields.OfAccount | None = None
    server_id: fields.OfServer | None = None


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


def schedule(record: records.Schedule) -> Schedule:
    return _of(Schedule, record)


def ops_schedule(record: records.Schedule) -> OpsSchedule:
    return _of(OpsSchedule, record)


def _of(body: type[Body], record: records.Schedule) -> Body:
    spec, ran_at = record.spec, record.last_run_at
    return from_record(
        body,
        record,
        server=ServerName(id=record.server_id, name=record.server_name),
        name=spec.name,
        when=spec.when,
        keep=spec.keep,
        expire_after_hours=spec.expire_after // timedelta(hours=1) if spec.expire_after else None,
        enabled=spec.enabled,
        consistency="live" if spec.live else "stop",
        last_run=ScheduleRun(at=ran_at, job_id=record.last_job_id, error=record.last_error) if ran_at else None,
    )
