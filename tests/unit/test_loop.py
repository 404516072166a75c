"""The loop in which programs repeat their work."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from worker.program.loop import every

LONG = 3600.0


class Away(Exception):
    pass


def failing(*errors: Exception | None) -> Callable[[], Awaitable[None]]:
    """Work whose rounds raise these in turn (None: a good round), and which is then cancelled."""
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


async def test_a_failed_round_may_be_repeated_sooner_than_the_next_is_due() -> None:
    with capture_logs(), pytest.raises(asyncio.CancelledError):
        await every(LONG, failing(ValueError(), ValueError()), name="chores", again_seconds=0.001)
