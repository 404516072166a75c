"""Schedules: snapshots that the service creates at fixed times, of one server or of all servers with given labels."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from worker.store import errors, records
from worker.store.calls import Cursor, CursorPage, Idempotency, Page, Scripts, accepted, for_script, given
from worker.store.model import AccountId, JobId, ScheduleId, ServerId
from worker.store.schedules.timing import IN_UTC, cron_of, next_run, zone_of

SCHEDULES_PER_SERVER = 5
BY_LABEL_PER_ACCOUNT = 20


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The fields of a schedule that a customer sets."""

    name: str  # prefix of its snapshots' names
    when: str  # see `cron_of`
    keep: int  # how many of its completed snapshots of each server are kept
    expire_after: timedelta | None
    enabled: bool
    live: bool = False  # its snapshots do not stop the server
    time_zone: str = IN_UTC  # IANA name of the time zone of `when`
    window: timedelta | None = None  # runs start within it; None: they start at once and are retried until the next run
    server_labels: Mapping[str, str] | None = None  # covers the servers that have all of them; None: one server

    def for_script(self) -> dict[str, str]:
        return {
            "name": self.name,
            "when": self.when,
            "keep": str(self.keep),
            "expire_after_ms": _milliseconds(self.expire_after),
            "enabled": "1" if self.enabled else "",
            "live": "1" if self.live else "",
            "time_zone": "" if self.time_zone == IN_UTC else self.time_zone,
            "window_ms": _milliseconds(self.window),
            **({"server_labels": json.dumps(dict(self.server_labels))} if self.server_labels else {}),
        }


def _milliseconds(period: timedelta | None) -> str:
    return str(round(period.total_seconds() * 1000)) if period else ""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The current or latest window of a schedule, and the number of its runs, one for each server. `planned` includes
    the runs that have not started yet."""

    starts_at: datetime
    ends_at: datetime
    planned: int
    started: int
    refused: int  # for a reason that is not temporary
    missed: int  # the window ended before they could start


@dataclass(frozen=True, kw_only=True)
class Run:
    """The outcome of a run: a job, or the error code of its refusal."""

    at: datetime
    job_id: JobId | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class CoveredServer:
    """A server that a schedule covers. `starts_at`: of its run that is planned in the current window. `run`: in the
    current or latest one."""

    server_id: ServerId
    server_name: str
    starts_at: datetime | None
    run: Run | None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    id: ScheduleId
    account_id: AccountId
    server_id: ServerId | None  # None: by label
    server_name: str
    spec: ScheduleSpec
    created_at: datetime
    next_run_at: datetime | None  # None: disabled
    last_run_at: datetime | None
    last_job_id: JobId | None  # None: the run was refused
    last_error: str | None  # the error code of its refusal
    window: Window | None  # None: it has no window, or none has begun yet


class Schedules(Scripts):
    """An account's schedules, for the front end. `now`: returns the time of the cell. Every call
    may raise StoreUnavailable."""

    def __init__(self, redis: Redis, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(redis)
        self._now = now

    async def create(
        self, *, account_id: AccountId, server_id: ServerId | None, spec: ScheduleSpec, idempotency: Idempotency | None
    ) -> Schedule:
        """`server_id` None: a schedule by label. Raises ServerNotFound, ScheduleLimitReached, KeepAboveLimit or
        IdempotencyKeyReused."""
        due_ms = self._due_ms(spec, server_id or account_id)
        more = {"new": True, **given(server=server_id), "fields": spec.for_script(), "due_ms": due_ms}
        return await self._write(account_id, ScheduleId(uuid4().hex), idempotency, **more)

    async def change(self, schedule: Schedule, spec: ScheduleSpec) -> Schedule:
        """Raises ScheduleNotFound if it was deleted meanwhile, KeepAboveLimit, or BadCron if this version does not know
        its `when`."""
        before = schedule.spec.for_script()
        fields = {field: text for field, text in spec.for_script().items() if text != before.get(field)}
        is_due_anew = bool(fields.keys() & {"when", "enabled", "time_zone"})
        due = {"due_ms": self._due_ms(spec, schedule.server_id or schedule.account_id)} if is_due_anew else {}
        return await self._write(schedule.account_id, schedule.id, None, fields=fields, **due)

    async def drop(self, *, account_id: AccountId, schedule_id: ScheduleId) -> None:
        """Delete a schedule, but not its snapshots. Raises ScheduleNotFound."""
        if not await self._call("schedules/drop_schedule", {"account": str(account_id), "id": schedule_id}):
            raise errors.ScheduleNotFound.of(id=schedule_id)

    async def one(self, *, account_id: AccountId, schedule_id: ScheduleId) -> Schedule:
        """Raises ScheduleNotFound, also for another account's; RecordUnreadable."""
        found = await self._find("schedules/schedule", schedule_id, account_id, errors.ScheduleNotFound)
        return await self._one(shown_schedule, found, kind="schedule")

    async def page(
        self, *, account_id: AccountId, server_id: ServerId | None, offset: int, limit: int, by_label: bool = False
    ) -> Page[Schedule]:
        """The schedules of one server, of all, or, with `by_label`, those by label; newest first. Unreadable ones are
        counted and left out."""
        ask = {"account": str(account_id), **given(server=server_id), "by_label": by_label}
        ask |= {"offset": offset, "limit": limit}
        count, *rows = await self._call("schedules/list_schedules", ask)
        return Page(count=count, results=await self._many(shown_schedule, rows, kind="schedule"))

    async def servers(
        self, *, account_id: AccountId, schedule_id: ScheduleId, cursor: Cursor
    ) -> CursorPage[CoveredServer]:
        """The servers that a schedule covers now, by ID. Raises ScheduleNotFound or RecordUnreadable."""
        ask = {"account": str(account_id), "id": schedule_id} | cursor.for_script()
        found = await self._call("schedules/covered", ask)
        if found is None:
            raise errors.ScheduleNotFound.of(id=schedule_id)
        after, *rows = found
        return CursorPage.of(-1, after, await self._many(_covered, rows, kind="schedule"))

    async def _write(
        self, account_id: AccountId, schedule_id: ScheduleId, idempotency: Idempotency | None, **more: Any
    ) -> Schedule:
        most = SCHEDULES_PER_SERVER if "server" in more else BY_LABEL_PER_ACCOUNT
        ask = {
            "account": str(account_id),
            "id": schedule_id,
            "most": most,
            "idempotency": for_script(idempotency),
            **more,
        }
        of = "server" if "server" in more else "account"
        kind = "schedules" if "server" in more else "schedules by label"
        facts = {"id": more.get("server", schedule_id), "limit": most, "of": of, "kind": kind}
        answer = await self._call("schedules/put_schedule", ask)
        shown = accepted(answer, idempotency, **facts)[0]
        return await self._changed(shown_schedule, shown, kind="schedule")

    def _due_ms(self, spec: ScheduleSpec, spread: int) -> str:
        """The time of its next run, or of the start of its next window; "" if it is disabled."""
        if not spec.enabled:
            return ""
        return records.milliseconds(next_run(cron_of(spec.when, spread), self._now(), zone_of(spec.time_zone)))


def shown_schedule(shown: list[Any]) -> Schedule:
    """Parse a schedule in a script's answer."""
    schedule_id, flat, server_name = shown
    record = records.known(records.pairs(flat))
    labels = record.get("server_labels")
    spec = ScheduleSpec(
        name=record["name"],
        when=record["when"],
        keep=records.whole(record["keep"]),
        expire_after=_period(record["expire_after_ms"]),
        enabled=record["enabled"] == "1",
        live=record.get("live") == "1",
        time_zone=record.get("time_zone") or IN_UTC,
        window=_period(record.get("window_ms", "")),
        server_labels=records.labels(labels) if labels else None,
    )
    return Schedule(
        id=ScheduleId(schedule_id.decode()),
        account_id=AccountId(records.whole(record["account"])),
        server_id=None if labels else ServerId(records.whole(record["server"])),
        server_name=records.text(server_name),
        spec=spec,
        created_at=records.moment(record["created_ms"]),
        next_run_at=records.moment(record["next_ms"]) if record["next_ms"] else None,
        last_run_at=records.moment(record["last_ms"]) if record.get("last_ms") else None,
        last_job_id=JobId(record["last_job"]) if record.get("last_job") else None,
        last_error=record.get("last_error") or None,
        window=_window(record) if record.get("window_start_ms") and spec.window else None,
    )


def _period(milliseconds: str) -> timedelta | None:
    return timedelta(milliseconds=records.whole(milliseconds)) if milliseconds else None


def _window(record: Mapping[str, str]) -> Window:
    return Window(
        starts_at=records.moment(record["window_start_ms"]),
        ends_at=records.moment(record["window_end_ms"]),
        planned=records.whole(record["runs_planned"]),
        started=records.whole(record["runs_started"]),
        refused=records.whole(record["runs_refused"]),
        missed=records.whole(record["runs_missed"]),
    )


def _covered(shown: list[bytes]) -> CoveredServer:
    server_id, name, starts_ms, said = (text.decode() for text in shown)
    run = json.loads(said) if said else None
    return CoveredServer(
        server_id=ServerId(records.whole(server_id)),
        server_name=name,
        starts_at=records.moment(starts_ms) if starts_ms else None,
        run=Run(at=records.moment(run["ms"]), job_id=run["job"] or None, error=run["error"] or None) if run else None,
    )
