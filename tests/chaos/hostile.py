"""A hostile node alongside the honest one: it has a valid credential and makes random claims."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

from pydantic_core import from_json, to_json
from redis.exceptions import RedisError
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import WebSocketException

from tests.acceptance.cell import ACCOUNT, AcceptanceCell
from tests.claims import Liar
from tests.gateway import secret_of
from worker.program.background import in_background
from worker.store.model import AccountId, JobId, ServerId, SnapshotId
from worker.store.nodes.protocol import PATH, PROTOCOLS

NODE = "hostile"
ITS_SERVER = ServerId(666)
FITTING_TEXTS, FITTING_NUMBERS = ("x", "a:b", "<b>"), (1, 5, 2**31)  # values that the protocol accepts
WILD = 0.2  # share of the claims
PAUSE_SECONDS = 0.02  # between two claims, because the machine has other work
AGAIN_SECONDS = 0.2
NEWS_EVERY = 25  # claims
ANSWER_SECONDS = 10.0

_RECORD = re.compile(r"(job|snapshot):([0-9a-f]{32}|[0-9]{1,15})")


class HostileNode:
    """`answers`: number of claims by result. `violations`: what it got and must not get."""

    def __init__(self, cell: AcceptanceCell, chance: random.Random) -> None:
        self.answers: Counter[str] = Counter()
        self.violations: list[str] = []
        self._cell = cell
        self._chance = chance
        servers = (*map(ServerId, cell.servers), ITS_SERVER, ITS_SERVER, ITS_SERVER)
        accounts = (AccountId(ACCOUNT), AccountId(66))
        self._wild = Liar(chance, servers=servers, accounts=accounts)
        self._fitting = Liar(chance, servers=servers, accounts=accounts, texts=FITTING_TEXTS, numbers=FITTING_NUMBERS)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        await self.let_in()
        async with in_background(self._keep_claiming()):
            yield

    async def let_in(self) -> None:
        await self._cell.gateway.let_in(NODE)

    async def _keep_claiming(self) -> None:
        while True:
            with suppress(OSError, RedisError, WebSocketException, TimeoutError):  # the gateway or Redis was killed
                await self._connected()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _connected(self) -> None:
        headers = {"Authorization": f"Bearer {secret_of(NODE)}"}
        opening = unix_connect(str(self._cell.gateway.socket), f"ws://gateway{PATH}", additional_headers=headers)
        async with opening as connection:
            owner = uuid4().hex
            hello = {"protocols": [*PROTOCOLS], "node": NODE, "owner": owner, "machine": "m6", "who": "hostile"}
            await _ask(connection, "hello", hello)
            await _ask(connection, "take_lease", {"seconds": 60.0})
            for number in range(10**9):
                if number % NEWS_EVERY == 0:
                    await self._learn()
                await self._claim(connection)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _claim(self, connection: ClientConnection) -> None:
        liar = self._wild if self._chance.random() < WILD else self._fitting
        call, ask = liar.claim()
        if self._chance.random() < 1 / NEWS_EVERY:
            call, ask = "take", {"running": liar.jobs[:5], "free": 2, "seconds": 0.05}
        answer = await _ask(connection, call, ask)
        self.answers[f"{call} {answer.get('error', 'answered')}"] += 1
        for job in _jobs_given(call, ask, answer.get("answer")):
            await self._must_be_its_own(job, call)

    async def _must_be_its_own(self, job: str, call: str) -> None:
        """Check that the job is its own: it can invent jobs of its server that started before a loss of the store."""
        redis = self._cell.redis.client()
        try:
            holder = await redis.execute_command("HGET", f"job:{job}", "node")  # type: ignore[no-untyped-call]
        finally:
            await redis.aclose(close_connection_pool=True)
        if holder != NODE.encode():
            self.violations.append(f"the hostile node got an answer to {call} of job {job} of node {holder!r}")

    async def _learn(self) -> None:
        """Learn what exists: more than a node can know."""
        redis = self._cell.redis.client()
        try:
            keys = [key.decode() async for key in redis.scan_iter(count=1000)]
        finally:
            await redis.aclose(close_connection_pool=True)
        found = [(match[1], match[2]) for match in map(_RECORD.fullmatch, keys) if match]
        jobs = [JobId(name) for kind, name in found if kind == "job"]
        snapshots = [SnapshotId(int(name)) for kind, name in found if kind == "snapshot"]
        for liar in (self._wild, self._fitting):
            liar.jobs, liar.snapshots = jobs, snapshots


def _jobs_given(call: str, ask: dict[str, Any], answer: Any) -> list[str]:
    """The jobs that it was given, or whose end was accepted from it."""
    if answer is None:
        return []
    if call == "take":
        return [*answer]
    is_given = call == "begin" or (call == "finish" and answer != "job_unknown")
    return [ask["job_id"]] if is_given else []


async def _ask(connection: ClientConnection, call: str, ask: dict[str, Any]) -> dict[str, Any]:
    """Make a call without the checks of our client. Returns the answer or the error."""
    await connection.send(to_json({"id": 1, "call": call, "ask": ask}).decode())
    async with asyncio.timeout(ANSWER_SECONDS):
        answer: dict[str, Any] = from_json(await connection.recv())
    return answer
