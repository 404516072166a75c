"""The time limit of calls."""

import asyncio

import pytest

from api.http.time_limit import TimeLimit

SECONDS = 0.05


async def sleeping(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def test_each_call_ends_at_its_own_limit() -> None:
    limit, loop = TimeLimit(SECONDS), asyncio.get_running_loop()
    ended: list[float] = []

    async def begin(after: float) -> None:
        await asyncio.sleep(after)
        began = loop.time()
        with pytest.raises(TimeoutError):
            await limit.within(sleeping(60))
        ended.append(loop.time() - began)

    await asyncio.gather(*(begin(SECONDS * n / 3) for n in range(9)))
    assert len(ended) == 9
    assert min(ended) >= SECONDS
    assert max(ended) < SECONDS * 5


async def test_a_call_in_time_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, loop = TimeLimit(SECONDS), asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    late = asyncio.create_task(limit.within(sleeping(60)))
    await asyncio.sleep(0)
    for _ in range(10):
        now += SECONDS / 20
        assert await limit.within(asyncio.sleep(0, "in time")) == "in time"
    now += SECONDS
    with pytest.raises(TimeoutError):
        await late
    now += SECONDS * 2
    for _ in range(10):
        await asyncio.sleep(0)  # the task of calls that have returned goes on


async def test_errors_and_other_cancellations_pass() -> None:
    limit = TimeLimit(60)

    async def failing() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await limit.within(failing())
    running = asyncio.create_task(limit.within(sleeping(60)))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
