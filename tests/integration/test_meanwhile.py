"""The rate limits that a process counts on its own equal those that Redis counts."""

import random
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from worker.store import scripts
from worker.store.access.local_rates import KEYS_MOST, LocalRates

WINDOW = timedelta(seconds=60)
# with the test's clock instead of Redis's, so nothing may expire by Redis's clock
MODULES = "".join(scripts.source(f"shared/{name}") for name in ("guard", "states", "records", "rate"))
RATE = MODULES.replace(", 'PX', math.ceil(full - now)", "")
TAKE = f"{RATE}return {{take('k', tonumber(ARGV[2]), 60000)}}".replace("now_ms()", "ARGV[1] + 0")


class Clock:
    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> float:
        return self.now_ms / 1000


@pytest.mark.parametrize("most", [1, 2, 3, 10, 600])
async def test_it_answers_what_the_script_answers(redis: Redis, most: int) -> None:
    clock, pauses = Clock(), random.Random(most)  # noqa: S311 # the same pauses each time
    limits, script = LocalRates(clock), redis.register_script(TAKE)
    for _ in range(300):
        clock.now_ms += pauses.choice([0, 0, 125, 100 * 60_000 // (most * 100), 3 * 60_000 // most])
        assert list(limits.take("k", most, WINDOW)) == await script(args=[clock.now_ms, most])


def test_callers_are_counted_apart() -> None:
    limits = LocalRates(Clock())
    assert [limits.take("a", 1, WINDOW)[0] for _ in range(2)] == [1, 0]
    assert limits.take("b", 1, WINDOW)[0] == 1


def test_a_bounded_number_of_callers_is_held_and_the_one_that_called_least_recently_is_forgotten() -> None:
    limits = LocalRates(Clock())
    for n in range(KEYS_MOST):
        limits.take(f"{n}", 1, WINDOW)
    assert limits.take("0", 1, WINDOW)[0] == 0
    limits.take("one more", 1, WINDOW)
    assert limits.take("0", 1, WINDOW)[0] == 0
    assert limits.take("1", 1, WINDOW)[0] == 1
