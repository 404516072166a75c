"""The loop with which programs repeat work."""

import asyncio
import signal
from collections.abc import Callable, Coroutine

import pytest
from structlog.testing import capture_logs

from worker.program.background import in_background
from worker.program.loop import Outage, every, guarded

LONG = 3600.0


class Away(Exception):
    pass


def failing(*errors: Exception | None) -> Callable[[], Coroutine[None, None, None]]:
    """Work whose rounds raise these in turn (None: a successful round), and which is then cancelled."""
    left = list(errors)

    async def work() -> None:
        if not left:
            raise asyncio.CancelledError
        if error := left.pop(0):
            raise error

    return work


async def test_an_unforeseen_error_is_logged_and_the_next_round_runs() -> None:
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await every(0, failing(ValueError("odd"), None), name="chores")
    assert [(line["event"], line["log_level"], line["exc_info"]) for line in logs] == [("chores.broke", "error", True)]


async def test_an_expected_error_is_a_warning_with_its_cause() -> None:
    away = Away()
    away.__cause__ = OSError("refused")
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await every(0, failing(away), name="chores", expected={Away: "chores.store_unavailable"})
    assert logs == [{"event": "chores.store_unavailable", "log_level": "warning", "cause": "refused"}]


async def test_an_error_that_lasts_is_logged_again_after_a_minute_or_a_round_without_it() -> None:
    rounds = failing(*[Away()] * 100, None, *[Away()] * 100)
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await every(0, rounds, name="chores", expected={Away: "chores.store_unavailable"})
    assert len(logs) == 2

    outage = Outage(quiet_seconds=0)  # the minute is over
    with capture_logs() as logs:
        for cause in ("refused", "timeout"):
            outage.tell("chores.store_unavailable", cause=cause)
    assert [line["cause"] for line in logs] == ["refused", "timeout"]


async def test_a_failed_round_may_be_repeated_sooner_than_the_next_is_due() -> None:
    with capture_logs(), pytest.raises(asyncio.CancelledError):
        await every(LONG, failing(ValueError(), ValueError()), name="chores", again_seconds=0.001)


def test_an_unforeseen_error_of_one_item_ends_the_work_on_that_item_only() -> None:
    done = []
    with capture_logs() as logs:
        for item in ("good", "odd", "next"):
            with guarded("chores", Away, item=item):
                done.append({"good": 1, "next": 2}[item])
    assert done == [1, 2]
    assert [(line["event"], line["item"]) for line in logs] == [("chores.broke", "odd")]


def test_an_error_of_an_item_that_the_caller_handles_is_raised() -> None:
    with pytest.raises(Away), guarded("chores", Away):
        raise Away


async def test_work_beside_the_requests_that_fails_ends_the_program() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        with capture_logs() as logs, pytest.raises(ValueError, match="odd"):
            await beside(failing(ValueError("odd"))(), stop)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    assert [(line["event"], line["log_level"]) for line in logs] == [("background.failed", "critical")]


async def beside(work: Coroutine[None, None, None], stop: asyncio.Event) -> None:
    async with in_background(work), asyncio.timeout(60):
        await stop.wait()
