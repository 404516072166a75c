"""When schedules run: their cron expressions, time zones and windows."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

CLOSEST = timedelta(hours=1)  # minimum interval between runs, because each stops the server
RUNS_CHECKED = 60  # enough runs to find the shortest interval: minutes repeat every hour, hours every day
IN_UTC = "UTC"

_FIVE_FIELDS = re.compile(r"\S+( \S+){4}", re.ASCII)


class BadCron(Exception):
    """Not a cron expression or time zone that we accept; the text gives the reason."""


def cron_of(when: str, spread: int) -> str:
    """A schedule's `when` as a cron expression. `spread`: the ID of its server, or for a
    schedule by label, of its account."""
    minute, hour, weekday = spread % 60, spread // 60 % 24, spread // 1440 % 7
    # spread over servers, so that they do not all stop at midnight
    every = {
        "hourly": f"{minute} * * * *",
        "daily": f"{minute} {hour} * * *",
        "weekly": f"{minute} {hour} * * {weekday}",
    }
    return every.get(when, when)


def next_run(cron: str, after: datetime, zone: tzinfo = UTC) -> datetime:
    """The first run after this time, in UTC. The expression is in the local time of `zone`. A time that the clocks
    skip runs right after the gap. Of a time that occurs twice, a fixed hour runs the first time and `*` both times, as
    in Debian's cron. Raises BadCron."""
    # CronSim ignores the fold: in the second of two equal hours, it would return a time in the first one
    return next(run for run in _runs(cron, after, zone) if run > after)


def open_since(cron: str, now: datetime, window: timedelta, zone: tzinfo = UTC) -> datetime | None:
    """The start of the window that is open now, in UTC; None: no window is open. If two are open, on a day that the
    clocks shorten, the later one. Raises BadCron."""
    latest = None
    begin = next_run(cron, now - window, zone)
    while begin <= now:
        latest, begin = begin, next_run(cron, begin, zone)
    return latest


def check(when: str, now: datetime) -> None:
    """Raises BadCron if it is neither hourly, daily or weekly nor a five-field cron expression, or if it never runs
    or runs too often."""
    if closest_runs(when, now) < CLOSEST:
        raise BadCron("Two runs must be at least an hour apart")


def closest_runs(when: str, now: datetime) -> timedelta:
    """The shortest time between two runs, in a zone whose clocks never change. Raises BadCron."""
    runs = list(islice(_runs(cron_of(when, 0), now, UTC), RUNS_CHECKED))
    return min(later - earlier for earlier, later in pairwise(runs))


def zone_of(name: str) -> tzinfo:
    """A time zone by its IANA name. Raises BadCron if this machine does not know it."""
    if name == IN_UTC:
        return UTC  # CronSim needs no rules of clock changes for it
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadCron(f"There is no time zone {name}") from error


def check_zone(name: str) -> None:
    """Raises BadCron if it is not a time zone. Stricter than `zone_of`, which also accepts other files' names."""
    if name not in _zones():
        raise BadCron("Must be a time zone of the IANA database, such as Europe/Berlin")


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones()) - {"localtime"}  # the machine's own zone


def _runs(cron: str, after: datetime, zone: tzinfo) -> Iterator[datetime]:
    if not _FIVE_FIELDS.fullmatch(cron):
        raise BadCron("Must be hourly, daily, weekly or a cron expression of five fields")
    try:
        for run in CronSim(cron, after.astimezone(zone)):
            yield run.astimezone(UTC)
    except CronSimError as error:
        raise BadCron(f"Must be a cron expression: {error}") from error
    raise BadCron("This time never occurs")


def snapshot_name(name: str, due: datetime) -> str:
    return f"{name}-{due:%Y%m%d-%H%M}"
