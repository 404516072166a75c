"""The time limit of calls."""

import asyncio

import pytest

from api.http.time_limit import TimeLimit

SECONDS = 0.05


async def sleeping(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def turns() -> None:
    """Let the event loop do what is due."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_each_call_ends_at_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, loop = TimeLimit(SECONDS), asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    calls: list[asyncio.Task[float]] = []
    for _ in range(9):
        calls.append(asyncio.create_task(limit.within(sleeping(60))))
        await asyncio.sleep(0)
        now += SECONDS / 20
    now += SECONDS * 0.525  # since the first began, 0.975 of the limit has passed
    for ended in range(9):
        await turns()
        assert [call.done() for call in calls] == [number < ended for number in range(9)]
        now += SECONDS / 20
    await turns()
    assert all(isinstance(call.exception(), TimeoutError) for call in calls)


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
    await turns()  # the task of calls that have returned goes on


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
