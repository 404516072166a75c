"""Schedules: snapshots that the service creates at fixed times."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from uuid import uuid4

from cronsim import CronSim, CronSimError
from redis.asyncio import Redis

from worker.store import errors, records
from worker.store.calls import Idempotency, Page, Scripts, accepted, for_script, given
from worker.store.model import AccountId, JobId, ScheduleId, ServerId

SCHEDULES_PER_SERVER = 5
CLOSEST = timedelta(hours=1)  # minimum interval between runs, because each stops the server
RUNS_CHECKED = 60  # enough runs to find the shortest interval: minutes repeat every hour, hours every day

_FIVE_FIELDS = re.compile(r"\S+( \S+){4}", re.ASCII)


class BadCron(Exception):
    """Not a cron expression that we accept; the text gives the reason."""


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The fields of a schedule that a customer sets."""

    name: str  # prefix of its snapshots' names
    when: str  # see `cron_of`
    keep: int  # how many of its completed snapshots are kept
    expire_after: timedelta | None
    enabled: bool
    live: bool = False  # its snapshots do not stop the server

    def for_script(self) -> dict[str, str]:
        return {
            "name": self.name,
            "when": self.when,
            "keep": str(self.keep),
            "expire_after_ms": str(round(self.expire_after.total_seconds() * 1000)) if self.expire_after else "",
            "enabled": "1" if self.enabled else "",
            "live": "1" if self.live else "",
        }


@dataclass(frozen=True, kw_only=True)
class Schedule:
    id: ScheduleId
    account_id: AccountId
    server_id: ServerId
    server_name: str
    spec: ScheduleSpec
    created_at: datetime
    next_run_at: datetime | None  # None: disabled
    last_run_at: datetime | None
    last_job_id: JobId | None  # None: the run was refused
    last_error: str | None  # the error code of its refusal


def cron_of(when: str, server_id: ServerId) -> str:
    """A schedule's `when` as a cron expression."""
    minute, hour, weekday = server_id % 60, server_id // 60 % 24, server_id // 1440 % 7
    # spread over servers, so that they do not all stop at midnight
    every = {
        "hourly": f"{minute} * * * *",
        "daily": f"{minute} {hour} * * *",
        "weekly": f"{minute} {hour} * * {weekday}",
    }
    return every.get(when, when)


def next_run(cron: str, after: datetime) -> datetime:
    """The first run after this time, in UTC. Raises BadCron."""
    return next(_runs(cron, after))


def check(when: str, now: datetime) -> None:
    """Raises BadCron if it is neither hourly, daily or weekly nor a five-field cron expression, or if it never runs
    or runs too often."""
    runs = list(islice(_runs(cron_of(when, ServerId(0)), now), RUNS_CHECKED))
    if any(later - earlier < CLOSEST for earlier, later in pairwise(runs)):
        raise BadCron("Two runs must be at least an hour apart")


def _runs(cron: str, after: datetime) -> Iterator[datetime]:
    if not _FIVE_FIELDS.fullmatch(cron):
        raise BadCron("Must be hourly, daily, weekly or a cron expression of five fields")
    try:
        yield from CronSim(cron, after.astimezone(UTC))
    except CronSimError as error:
        raise BadCron(f"Must be a cron expression: {error}") from error
    raise BadCron("This time never occurs")


def snapshot_name(name: str, due: datetime) -> str:
    return f"{name}-{due:%Y%m%d-%H%M}"


class Schedules(Scripts):
    """An account's schedules, for the front end. `now`: returns the time of the cell. Every call
    may raise StoreUnavailable."""

    def __init__(self, redis: Redis, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(redis)
        self._now = now

    async def create(
        self, *, account_id: AccountId, server_id: ServerId, spec: ScheduleSpec, idempotency: Idempotency | None
    ) -> Schedule:
        """Raises ServerNotFound, ScheduleLimitReached or IdempotencyKeyReused."""
        more = {"server": str(server_id), "fields": spec.for_script(), "due_ms": self._due_ms(spec, server_id)}
        return await self._write(account_id, ScheduleId(uuid4().hex), idempotency, **more)

    async def change(self, schedule: Schedule, spec: ScheduleSpec) -> Schedule:
        """Raises ScheduleNotFound if it was deleted meanwhile, or BadCron if this version does not know its `when`."""
        before = schedule.spec.for_script()
        fields = {field: text for field, text in spec.for_script().items() if text != before[field]}
        is_due_anew = bool(fields.keys() & {"when", "enabled"})
        due = {"due_ms": self._due_ms(spec, schedule.server_id)} if is_due_anew else {}
        return await self._write(schedule.account_id, schedule.id, None, fields=fields, **due)

    async def drop(self, *, account_id: AccountId, schedule_id: ScheduleId) -> None:
        """Delete a schedule, but not its snapshots. Raises ScheduleNotFound."""
        if not await self._call("schedules/drop_schedule", {"account": str(account_id), "id": schedule_id}):
            raise errors.ScheduleNotFound.of(id=schedule_id)

    async def one(self, *, account_id: AccountId, schedule_id: ScheduleId) -> Schedule:
        """Raises ScheduleNotFound, also for another account's; RecordUnreadable."""
        found = await self._find("schedule", schedule_id, account_id, errors.ScheduleNotFound)
        return await self._one(shown_schedule, found, kind="schedule")

    async def page(
        self, *, account_id: AccountId, server_id: ServerId | None, offset: int, limit: int
    ) -> Page[Schedule]:
        """The schedules of one server or of all, newest first. Unreadable ones are counted and left out."""
        ask = {"account": str(account_id), **given(server=server_id), "offset": offset, "limit": limit}
        count, *rows = await self._call("schedules/list_schedules", ask)
        return Page(count=count, results=await self._many(shown_schedule, rows, kind="schedule"))

    async def _write(
        self, account_id: AccountId, schedule_id: ScheduleId, idempotency: Idempotency | None, **more: Any
    ) -> Schedule:
        ask = {
            "account": str(account_id),
            "id": schedule_id,
            "most": SCHEDULES_PER_SERVER,
            "idempotency": for_script(idempotency),
            **more,
        }
        facts = {"id": more.get("server", schedule_id), "limit": SCHEDULES_PER_SERVER}
        shown = accepted(await self._call("schedules/put_schedule", ask), idempotency, **facts)[0]
        return await self._one(shown_schedule, shown, kind="schedule")

    def _due_ms(self, spec: ScheduleSpec, server_id: ServerId) -> int | str:
        """The time of its next run; "" if it is disabled."""
        cron = cron_of(spec.when, server_id)
        return records.milliseconds(next_run(cron, self._now())) if spec.enabled else ""


def shown_schedule(shown: list[Any]) -> Schedule:
    """Parse a schedule in a script's answer."""
    schedule_id, flat, server_name = shown
    record = records.known(records.pairs(flat))
    expire_after = record["expire_after_ms"]
    spec = ScheduleSpec(
        name=record["name"],
        when=record["when"],
        keep=records.whole(record["keep"]),
        expire_after=timedelta(milliseconds=records.whole(expire_after)) if expire_after else None,
        enabled=record["enabled"] == "1",
        live=record.get("live") == "1",
    )
    return Schedule(
        id=ScheduleId(schedule_id.decode()),
        account_id=AccountId(records.whole(record["account"])),
        server_id=ServerId(records.whole(record["server"])),
        server_name=records.text(server_name),
        spec=spec,
        created_at=records.moment(record["created_ms"]),
        next_run_at=records.moment(record["next_ms"]) if record["next_ms"] else None,
        last_run_at=records.moment(record["last_ms"]) if record.get("last_ms") else None,
        last_job_id=JobId(record["last_job"]) if record.get("last_job") else None,
        last_error=record.get("last_error") or None,
    )
