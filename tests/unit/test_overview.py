"""Cached counts of past intervals equal newly read ones."""

from worker.store.model import JobKind
from worker.store.operators.overview import DAY, HOUR, HOUR_MS, LAST_WEEK, WEEK, WINDOWS, Counted

FIRST = 5_985_000


def written(until: int) -> dict[int, dict[str, int]]:
    """Counts of one kind per five minutes, some without any."""
    numbers = [number for number in range(FIRST, until + 1) if number % 5]
    return {number: {"create:completed": number % 9 + 1, f"create:ms:{number % 90}": 2} for number in numbers}


def told(counts: dict[int, dict[str, int]], *, last: int, since: int) -> list[tuple[int, list[bytes]]]:
    """The counts as the script answers."""
    return [
        (number, [part for name, count in row.items() for part in (name.encode(), str(count).encode())])
        for number, row in counts.items()
        if max(since, last - DAY + 1) <= number <= last
    ]


def test_it_is_the_same_as_if_all_was_read_at_once() -> None:
    counts = written(FIRST + 2 * DAY)
    remembered = Counted()
    for last in (FIRST + DAY, FIRST + DAY, FIRST + DAY + 1, FIRST + DAY + 5, FIRST + DAY + 100, FIRST + 2 * DAY):
        counts.setdefault(last, {"create:completed": 0})["create:completed"] += 1  # the interval has not ended yet
        remembered.learn(last, told(counts, last=last, since=remembered.last))
        anew = Counted()
        anew.learn(last, told(counts, last=last, since=0))
        assert remembered.ended("completed", within=DAY) == anew.ended("completed", within=DAY)
        assert remembered.ended("completed", within=HOUR) == anew.ended("completed", within=HOUR)
        assert (
            remembered.charts()[JobKind.CREATE][1:] == anew.charts()[JobKind.CREATE][1:]
        )  # the first one is about to leave the window


def test_each_window_shows_its_own_part_and_is_the_same_when_asked_again() -> None:
    counts, last = written(FIRST + DAY), FIRST + DAY
    remembered = Counted()
    remembered.learn(last, told(counts, last=last, since=0))
    for window in WINDOWS[:3]:
        points = remembered.charts(window)[JobKind.CREATE]
        assert remembered.charts(window)[JobKind.CREATE] == points
        ended = sum(row["create:completed"] for number, row in counts.items() if number > last - window.periods)
        at_its_edge = 9 * window.per_point  # a point may start before the window
        assert ended <= sum(point.completed for point in points) <= ended + at_its_edge


def test_a_week_is_counted_by_the_hour() -> None:
    last = FIRST // 12
    counted = Counted(period_ms=HOUR_MS, kept=WEEK)
    counted.learn(last, [(last - WEEK, [b"create:completed", b"1"]), (last - WEEK + 1, [b"create:completed", b"2"])])
    (point,) = counted.charts(LAST_WEEK)[JobKind.CREATE]
    assert (point.completed, point.at.timestamp()) == (2, (last - WEEK + 1) * 3600)


def test_counts_older_than_a_day_are_dropped() -> None:
    counted = Counted()
    counted.learn(FIRST, told({FIRST: {"create:completed": 3}}, last=FIRST, since=0))
    assert counted.ended("completed", within=DAY) == 3
    counted.learn(FIRST + DAY, [])
    assert counted.ended("completed", within=DAY) == 0
    assert counted.charts() == {}
