"""When schedules run: their cron expressions, time zones and windows."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

CLOSEST = timedelta(hours=1)  # between two runs: each stops the server
RUNS_CHECKED = 60  # to find the closest two: a list of minutes repeats every hour, one of hours every day
IN_UTC = "UTC"

_FIVE_FIELDS = re.compile(r"\S+( \S+){4}", re.ASCII)


class BadCron(Exception):
    """Not a cron expression, or not a time zone, that we accept; the text gives the reason."""


def cron_of(when: str, spread: int) -> str:
    """A schedule's `when` as a cron expression. `spread`: the ID of its server, or of the account of one by label."""
    minute, hour, weekday = spread % 60, spread // 60 % 24, spread // 1440 % 7
    # each at its own time, so that the servers of a cell do not all stop at midnight
    every = {
        "hourly": f"{minute} * * * *",
        "daily": f"{minute} {hour} * * *",
        "weekly": f"{minute} {hour} * * {weekday}",
    }
    return every.get(when, when)


def next_run(cron: str, after: datetime, zone: tzinfo = UTC) -> datetime:
    """The first run after this time, in UTC. The expression is of the clocks of `zone`: a time that does not exist,
    when they go forward, comes right after the gap; of one that exists twice, when they go back, a fixed hour comes the
    first time, and `*` each time, as in Debian's cron. Raises BadCron."""
    # CronSim reckons without the fold: in the second of two equal hours, it would name a time in the first one
    return next(run for run in _runs(cron, after, zone) if run > after)


def open_since(cron: str, now: datetime, window: timedelta, zone: tzinfo = UTC) -> datetime | None:
    """The begin of the window that is open now, in UTC: of two, on a day that the clocks make shorter, the later one.
    None: none is open. Raises BadCron."""
    latest = None
    begin = next_run(cron, now - window, zone)
    while begin <= now:
        latest, begin = begin, next_run(cron, begin, zone)
    return latest


def check(when: str, now: datetime) -> None:
    """Raises BadCron if it is neither one of our words nor a cron expression of five fields, never runs, or runs too
    often."""
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
    """Raises BadCron. Stricter than `zone_of`, which also takes names of files that are no zones."""
    if name not in _zones():
        raise BadCron("Must be a time zone of the IANA database, such as Europe/Berlin")


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones()) - {"localtime"}  # that of the machine


def _runs(cron: str, after: datetime, zone: tzinfo) -> Iterator[datetime]:
    if not _FIVE_FIELDS.fullmatch(cron):
        raise BadCron("Must be hourly, daily, weekly or a cron expression of five fields")
    try:
        for run in CronSim(cron, after.astimezone(zone)):
            yield run.astimezone(UTC)
    except CronSimError as error:
        raise BadCron(f"Must be a cron expression: {error}") from error
    raise BadCron("No such time ever comes")


def snapshot_name(name: str, due: datetime) -> str:
    return f"{name}-{due:%Y%m%d-%H%M}"
