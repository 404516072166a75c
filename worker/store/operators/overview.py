"""An overview of the cell: its current state, and charts of the last hours or days."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.store import records
from worker.store.model import JobId, JobKind

COUNTED_MS, HOUR_MS = 300_000, 3_600_000  # lengths of the periods in which the scripts count
HOUR, DAY = 12, 288  # in periods of five minutes
WEEK = 168  # in hours
BIN = 1.1  # ratio of adjacent bins of durations, so that a percentile is off by at most 5 %

COUNT_MAX = 1 << 32  # far above the count of any five minutes
BIN_MAX = 300  # far above the longest job: 1.1 ** 300 ms are 83 years

Counts = Counter[str]


@dataclass(frozen=True, kw_only=True)
class Window:
    """How far back charts go. `period_ms`: length of a counted period; `per_point`: periods per point."""

    name: str
    period_ms: int = COUNTED_MS
    per_point: int = 1
    periods: int

    @property
    def point_seconds(self) -> int:
        return self.period_ms * self.per_point // 1000

    @property
    def points(self) -> int:
        return self.periods // self.per_point


LAST_DAY = Window(name="24h", per_point=3, periods=DAY)
LAST_WEEK = Window(name="7d", period_ms=HOUR_MS, periods=WEEK)
WINDOWS = (Window(name="1h", periods=HOUR), Window(name="6h", periods=6 * HOUR), LAST_DAY, LAST_WEEK)


@dataclass(frozen=True, kw_only=True)
class Durations:
    """Percentiles in seconds; None if nothing was counted."""

    p50: float | None
    p95: float | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """The jobs that ended within one point of the window: 15 minutes of the last day."""

    at: datetime
    completed: int
    failed: int
    seconds: Durations
    downtime_seconds: Durations


@dataclass(frozen=True, kw_only=True)
class Oldest:
    job_id: JobId
    queued_at: datetime


@dataclass(frozen=True, kw_only=True)
class Overview:
    at: datetime
    queued: int
    in_progress: int
    oldest: Oldest | None
    completed_hour: int
    failed_hour: int
    completed_day: int
    failed_day: int
    stranded_servers: int
    servers_off: int  # servers whose guest is off for a job
    nodes: int
    nodes_alive: int
    nodes_paused: int
    servers_with_findings: int
    unreadable_records: int
    window: Window
    charts: Mapping[JobKind, tuple[Point, ...]]  # kinds and points without ended jobs are left out


class Counted:
    """The latest counts, by period. A period that is over is read once. `kept`: how many periods are kept."""

    def __init__(self, *, period_ms: int = COUNTED_MS, kept: int = DAY) -> None:
        self.last = 0  # the first period that may have changed since it was read
        self._period_ms = period_ms
        self._kept = kept
        self._counts: dict[int, Counts] = {}
        self._points: dict[tuple[int, int], Mapping[JobKind, Point]] = {}  # points whose periods are over

    def learn(self, last: int, stats: Iterable[tuple[int, list[bytes]]]) -> None:
        """Add counts. `stats`: the counts from the period `last` on."""
        kept = range(last - self._kept + 1, last + 1)
        read = {number: _counts(self._key(number), flat) for number, flat in stats}
        self._counts = {number: counts for number, counts in (self._counts | read).items() if number in kept}
        self._points = {
            (number, per_point): points
            for (number, per_point), points in self._points.items()
            if number * per_point in kept
        }
        self.last = last

    def ended(self, state: str, *, within: int) -> int:
        """The number of jobs that ended in this state within the last `within` periods."""
        numbers = (number for number in self._counts if number > self.last - within)
        return sum(self._counts[number][f"{kind}:{state}"] for number in numbers for kind in JobKind)

    def charts(self, window: Window = LAST_DAY) -> dict[JobKind, tuple[Point, ...]]:
        """Kinds and points without ended jobs are left out."""
        first = self.last - window.periods + 1
        numbers = sorted({number // window.per_point for number in self._counts if number >= first})
        points = [self._point(number, window.per_point) for number in numbers]
        charts = {kind: tuple(point[kind] for point in points if kind in point) for kind in JobKind}
        return {kind: points for kind, points in charts.items() if points}

    def _point(self, number: int, per_point: int) -> Mapping[JobKind, Point]:
        if (number, per_point) in self._points:
            return self._points[number, per_point]
        together = Counter[str]()
        for part in range(number * per_point, (number + 1) * per_point):
            together.update(self._counts.get(part, {}))
        points = _points(number * per_point * self._period_ms, together)
        if (number + 1) * per_point <= self.last:
            self._points[number, per_point] = points
        return points

    def _key(self, number: int) -> str:
        return f"stats:{number}" if self._period_ms == COUNTED_MS else f"stats:hour:{number}"


def learned(counted: Counted, hours: list[Any]) -> Counted:
    """The counts by hour, including those in the script's answer."""
    now, stats = hours
    counted.learn(now // HOUR_MS, stats)
    return counted


def overview(answer: list[Any], counted: Counted, window: Window, by_hour: Counted | None = None) -> Overview:
    """`by_hour`: the counts of a window whose periods are hours."""
    now, queued, running, oldest, stranded, nodes, alive, paused, off, findings, _, _, unreadable, stats = answer
    counted.learn(now // COUNTED_MS, stats)
    return Overview(
        at=records.moment(now),
        queued=queued,
        in_progress=running,
        oldest=records.part(_oldest, oldest, key="jobs:state:queued", otherwise=None),
        completed_hour=counted.ended("completed", within=HOUR),
        failed_hour=counted.ended("failed", within=HOUR),
        completed_day=counted.ended("completed", within=DAY),
        failed_day=counted.ended("failed", within=DAY),
        stranded_servers=stranded,
        servers_off=off,
        nodes=nodes,
        nodes_alive=alive,
        nodes_paused=paused,
        servers_with_findings=findings,
        unreadable_records=unreadable,
        window=window,
        charts=(by_hour or counted).charts(window),
    )


def _oldest(found: list[bytes]) -> Oldest | None:
    return Oldest(job_id=JobId(found[0].decode()), queued_at=records.moment(found[1])) if found else None


def _counts(key: str, flat: list[bytes]) -> Counts:
    fields = zip(flat[::2], flat[1::2], strict=True)
    counted = records.many(_counted, fields, kind="stats", key_of=lambda _: key)
    return Counter(dict(counted))


def _counted(field: tuple[bytes, bytes]) -> tuple[str, int]:
    name, count = field[0].decode(), records.whole(field[1])
    *_, last = name.split(":")
    if not 0 <= count <= COUNT_MAX or (last.lstrip("-").isdecimal() and not 0 <= int(last) <= BIN_MAX):
        raise ValueError(f"{name}: {count}")
    return name, count


def _points(at_ms: int, counts: Counts) -> Mapping[JobKind, Point]:
    return {
        kind: Point(
            at=records.moment(at_ms),
            completed=counts[f"{kind}:completed"],
            failed=counts[f"{kind}:failed"],
            seconds=_durations(counts, f"{kind}:ms:"),
            downtime_seconds=_durations(counts, f"{kind}:downtime:"),
        )
        for kind in JobKind
        if counts[f"{kind}:completed"] or counts[f"{kind}:failed"]
    }


def _durations(counts: Counts, prefix: str) -> Durations:
    bins = sorted((int(name.removeprefix(prefix)), n) for name, n in counts.items() if name.startswith(prefix))
    return Durations(p50=_percentile(bins, 0.5), p95=_percentile(bins, 0.95))


def _percentile(bins: list[tuple[int, int]], share: float) -> float | None:
    left = share * sum(n for _, n in bins)
    for number, n in bins:
        left -= n
        if left <= 0:
            return round(float(BIN ** (number + 0.5)) / 1000, 3)
    return None
