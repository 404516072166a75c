"""The watchdog looks at the loops of a gateway and of a front end, not only at their event loops."""

import asyncio

import pytest
from redis.asyncio import Redis

from api.gateway.chores import CellChores
from tests.integration.conftest import Cell
from tests.integration.front_end import serving
from tests.queueing import until
from worker.program.alive import TURN_SECONDS, Turns
from worker.program.background import in_background
from worker.store.chores.chores import Chores


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def pass_limit(self) -> None:
        self.now += TURN_SECONDS + 60


class HangingChores(Chores):
    """Its first round hangs."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.hangs = asyncio.Event()

    async def forget_failed(self) -> int:
        self.hangs.set()
        return await asyncio.Future()


async def test_a_gateway_whose_chores_hang_is_noticed(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.gateway.scheduler.ROUND_SECONDS", 0.01)
    clock, chores = Clock(), HangingChores(redis)
    turns = Turns(now=lambda: clock.now)
    async with in_background(CellChores(chores=chores, turns=turns).keep_doing()):
        await chores.hangs.wait()
        assert turns.hung() == []
        clock.pass_limit()
        assert {*turns.hung()} == {"scheduler", "chores"}
        await until(lambda: turns.hung() == ["chores"])  # the scheduler has turned again


async def test_each_loop_of_a_front_end_is_watched(cell: Cell) -> None:
    clock = Clock()
    turns = Turns(now=lambda: clock.now)
    async with serving(cell, turns=turns):

        def watched() -> set[str]:
            clock.pass_limit()
            return {*turns.hung()}

        await until(lambda: watched() >= {"audit", "bounds", "streams", "sweeper", "token_uses", "webhooks"})
        await until(lambda: not {"audit", "webhooks"} & {*turns.hung()})  # the others turn less often
