"""Chart series of a time window: a value per point, null if no job finished."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from worker.store.model import JobKind
from worker.store.operators.overview import Durations, Overview, Point

JOBS, SECONDS = "jobs", "s"  # units

Value = float | None


@dataclass(frozen=True, kw_only=True)
class Series:
    label: str
    hue: str  # a job kind, or `failed`
    is_dashed: bool
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    id: str
    title: str
    unit: str
    step: int  # seconds between two points
    times: tuple[int, ...]  # Unix seconds
    series: tuple[Series, ...]

    @property
    def has_data(self) -> bool:
        return any(value for series in self.series for value in series.values)

    @property
    def data(self) -> Mapping[str, object]:
        """What charts.js reads."""
        series = [{"label": s.label, "hue": s.hue, "dashed": s.is_dashed, "values": s.values} for s in self.series]
        return {"unit": self.unit, "step": self.step, "times": self.times, "series": series}


def charts(overview: Overview) -> tuple[Chart, ...]:
    step, points = overview.window.point_seconds, overview.window.points
    last = int(overview.at.timestamp()) // step * step
    times = tuple(range(last - (points - 1) * step, last + 1, step))
    at = {kind: {int(point.at.timestamp()): point for point in points} for kind, points in overview.charts.items()}

    def series(
        kind: JobKind, label: str, value: Callable[[Point], Value], *, none: Value, dashed: bool = False
    ) -> Series:
        found = at[kind]
        values = tuple(value(found[moment]) if moment in found else none for moment in times)
        return Series(label=f"{kind.replace('_', ' ')}{label}", hue=kind, is_dashed=dashed, values=values)

    def percentiles(of: Callable[[Point], Durations]) -> Iterator[Series]:
        for kind in at:
            yield series(kind, " p50", lambda point: of(point).p50, none=None)
            yield series(kind, " p95", lambda point: of(point).p95, none=None, dashed=True)

    done = [series(kind, "", lambda point: point.completed, none=0) for kind in at]
    seconds = tuple(percentiles(lambda point: point.seconds))
    downtime = tuple(line for line in percentiles(lambda point: point.downtime_seconds) if any(line.values))
    ended = (*done, _failed(overview, times))
    return (
        Chart(id="ended", title="Jobs finished", unit=JOBS, step=step, times=times, series=ended),
        Chart(id="seconds", title="Durations", unit=SECONDS, step=step, times=times, series=seconds),
        Chart(id="downtime", title="Guest downtime", unit=SECONDS, step=step, times=times, series=downtime),
    )


def _failed(overview: Overview, times: Sequence[int]) -> Series:
    counted = dict.fromkeys(times, 0)
    for point in (point for points in overview.charts.values() for point in points):
        moment = int(point.at.timestamp())
        counted[moment] = counted.get(moment, 0) + point.failed
    return Series(label="failed", hue="failed", is_dashed=False, values=tuple(counted[moment] for moment in times))
