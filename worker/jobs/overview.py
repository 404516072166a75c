"""The cell at a glance: what happens now, and what the last day was like."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.jobs import records
from worker.jobs.model import JobId, JobKind

COUNTED_MS = 300_000  # what the scripts count together
POINT = 3  # of these to a point of a chart
HOUR = 12  # of these
BIN = 1.1  # from one bin of durations to the next; in the middle of a bin, a percentile is off by a twentieth at most

Counts = Counter[str]


@dataclass(frozen=True, kw_only=True)
class Durations:
    """In seconds; None where nothing was counted."""

    p50: float | None
    p95: float | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """What came to its end within 15 minutes."""

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
    nodes: int
    nodes_alive: int
    nodes_paused: int
    servers_with_findings: int
    charts: Mapping[JobKind, tuple[Point, ...]]  # of the kinds that there were; points without an end are left out


def overview(answer: list[Any]) -> Overview:
    now, queued, running, oldest, stranded, nodes, alive, paused, findings, stats = answer
    counted = [
        (number, Counter({name: int(count) for name, count in records.pairs(flat).items()})) for number, flat in stats
    ]
    day = sum((counts for _, counts in counted), Counter[str]())
    hour = sum((counts for number, counts in counted if number > now // COUNTED_MS - HOUR), Counter[str]())
    return Overview(
        at=records.moment(now),
        queued=queued,
        in_progress=running,
        oldest=Oldest(job_id=JobId(oldest[0].decode()), queued_at=records.moment(oldest[1])) if oldest else None,
        completed_hour=_ended(hour, "completed"),
        failed_hour=_ended(hour, "failed"),
        completed_day=_ended(day, "completed"),
        failed_day=_ended(day, "failed"),
        stranded_servers=stranded,
        nodes=nodes,
        nodes_alive=alive,
        nodes_paused=paused,
        servers_with_findings=findings,
        charts={kind: points for kind in JobKind if (points := tuple(_points(kind, counted)))},
    )


def _ended(counts: Counts, state: str) -> int:
    return sum(counts[f"{kind}:{state}"] for kind in JobKind)


def _points(kind: JobKind, counted: Iterable[tuple[int, Counts]]) -> Iterable[Point]:
    together: dict[int, Counts] = {}
    for number, counts in counted:
        together.setdefault(number // POINT, Counter()).update(counts)
    for number, counts in together.items():
        completed, failed = counts[f"{kind}:completed"], counts[f"{kind}:failed"]
        if completed or failed:
            yield Point(
                at=records.moment(number * POINT * COUNTED_MS),
                completed=completed,
                failed=failed,
                seconds=_durations(counts, f"{kind}:ms:"),
                downtime_seconds=_durations(counts, f"{kind}:downtime:"),
            )


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
