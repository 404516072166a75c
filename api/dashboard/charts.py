"""Chart series of the last 24 hours: a value per 15 minutes, null if no job finished."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from worker.store.model import JobKind
from worker.store.operators.overview import COUNTED_MS, POINT, Durations, Overview, Point

POINT_SECONDS = COUNTED_MS * POINT // 1000
POINTS = 86_400 // POINT_SECONDS

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
    times: tuple[int, ...]  # Unix seconds
    series: tuple[Series, ...]

    @property
    def has_data(self) -> bool:
        return any(value for series in self.series for value in series.values)

    @property
    def data(self) -> Mapping[str, object]:
        """What charts.js reads."""
        series = [{"label": s.label, "hue": s.hue, "dashed": s.is_dashed, "values": s.values} for s in self.series]
        return {"unit": self.unit, "times": self.times, "series": series}


def charts(overview: Overview) -> tuple[Chart, ...]:
    last = int(overview.at.timestamp()) // POINT_SECONDS * POINT_SECONDS
    times = tuple(range(last - (POINTS - 1) * POINT_SECONDS, last + 1, POINT_SECONDS))
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
    return (
        Chart(id="ended", title="Jobs finished", unit="", times=times, series=(*done, _failed(overview, times))),
        Chart(id="seconds", title="Durations", unit="s", times=times, series=seconds),
        Chart(id="downtime", title="Guest downtime", unit="s", times=times, series=downtime),
    )


def _failed(overview: Overview, times: Sequence[int]) -> Series:
    counted = dict.fromkeys(times, 0)
    for point in (point for points in overview.charts.values() for point in points):
        moment = int(point.at.timestamp())
        counted[moment] = counted.get(moment, 0) + point.failed
    return Series(label="failed", hue="failed", is_dashed=False, values=tuple(counted[moment] for moment in times))
