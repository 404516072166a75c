"""The workers whose pick-up is measured, each with its own Redis: ours, arq's, and those of other job queues."""

import asyncio
import os
import random
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

from arq.connections import ArqRedis
from pydantic_core import to_json
from redis.asyncio import Redis

from tests.bench import seeding
from tests.conftest import RedisServer
from tests.node_process import FUNCTION, Kind, command
from tests.queueing import NODE, QUEUE, client, until_told
from worker.store import scripts
from worker.store.script_connection import RunsScripts, Script

HEARD_SECONDS = 60.0
ROOT = Path(__file__).parents[2]
PEERS_PYTHON = Path(f"{sys.prefix}-peers") / "bin" / "python"
PEERS = {
    "saq": "SAQ",
    "taskiq": "Taskiq, list",
    "taskiq-stream": "Taskiq, stream",
    "rq": "rq",
    "dramatiq": "Dramatiq",
    "celery": "Celery",
}


@dataclass(frozen=True)
class Said:
    word: str
    job_id: str
    at: float  # seconds of the machine's monotonic clock


class Process:
    """A running program and its output."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child

    async def line(self) -> Said:
        """The next line that does not come from a library."""
        assert self.child.stdout is not None
        while line := await self.child.stdout.readline():
            match line.decode().split():
                case ["ready" | "queued" | "began" | "ended" as word, job_id, at]:
                    return Said(word, job_id, float(at))
        raise EOFError(f"the program has ended with code {await self.child.wait()}")

    async def heard(self, word: str, job_ids: Iterable[str]) -> list[Said]:
        """Read its output until it has reported that word for each of these jobs."""
        awaited, wanted = set(job_ids), frozenset(job_ids)
        said: list[Said] = []
        async with asyncio.timeout(HEARD_SECONDS):
            while awaited:
                one = await self.line()
                if one.job_id in wanted:  # otherwise the line is from a worker that was killed earlier
                    said.append(one)
                if one.word == word:
                    awaited.discard(one.job_id)
        return said


@asynccontextmanager
async def running(program: list[str]) -> AsyncIterator[Process]:
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(
        *program, stdin=pipe, stdout=pipe, stderr=nowhere, cwd=ROOT, start_new_session=True
    )
    try:
        yield Process(child)
    finally:
        os.killpg(child.pid, signal.SIGKILL)  # also its own processes
        await child.wait()


class Contestant(ABC):
    """A kind of worker and the client that queues its jobs. `redis` only observes, unless a subclass queues with it."""

    def __init__(self, name: str, server: RedisServer, redis: Redis) -> None:
        self.name = name
        self.redis = redis
        self._socket = str(server.socket)

    @abstractmethod
    async def queue(self, many: int, *, apart_seconds: float = 0.0) -> dict[str, float]:
        """Queue jobs at random intervals with this mean. Returns the time before each was queued."""

    @abstractmethod
    def _command(self, seconds: float, slots: int) -> list[str]: ...

    @asynccontextmanager
    async def worker(self, *, job_seconds: float = 0.0, slots: int = 10) -> AsyncIterator[Process]:
        """Start a new worker and run one job, so that its connections are open."""
        async with self.cold_worker(job_seconds=job_seconds, slots=slots) as process:
            await process.heard("ended", await self.queue(1))
            await asyncio.sleep(0.1)
            yield process
            await self.settled()

    @asynccontextmanager
    async def cold_worker(self, *, job_seconds: float = 0.0, slots: int = 10) -> AsyncIterator[Process]:
        async with running(self._command(job_seconds, slots)) as process:
            yield process

    async def settled(self) -> None:
        """Return when the worker sends nothing more to Redis."""
        await asyncio.sleep(0.1)

    async def commands(self) -> int:
        stats = await self.redis.info("stats")
        return int(stats["total_commands_processed"])


class Ours(Contestant):
    """Our worker, connected to a gateway or to the cell's Redis. The script that admits jobs queues them."""

    def __init__(self, kind: Kind, server: RedisServer, redis: Redis, *, place: str = "") -> None:
        super().__init__(f"ours, {kind}", server, redis)
        self._kind = kind
        self._place = place or self._socket
        self._runs = cast("RunsScripts", redis)
        self._script = Script(scripts.linked(Path(__file__).with_name("enqueue.lua").read_text()))
        self._numbers = count()

    def _command(self, seconds: float, slots: int) -> list[str]:
        return command(self._kind, self._place, seconds=seconds, slots=slots)

    async def queue(self, many: int, *, apart_seconds: float = 0.0) -> dict[str, float]:
        queued = {}
        for job_id in _ids(self._numbers, many):
            await _apart(apart_seconds)
            queued[job_id] = time.monotonic()
            ask = {"jobs": [job_id], "node": NODE}
            await self._runs.run_script(self._script, to_json(ask))
        return queued

    async def settled(self) -> None:
        async def empty() -> bool:
            return not await self.redis.zcard(QUEUE)

        await until_told(empty)


class Arq(Contestant):
    """arq's own worker and client."""

    def __init__(self, kind: Kind, server: RedisServer, redis: Redis, arq: ArqRedis) -> None:
        super().__init__("arq" if kind is Kind.PLAIN else "arq, every 10 ms", server, redis)
        self._kind = kind
        self._arq = arq
        self._numbers = count()

    def _command(self, seconds: float, slots: int) -> list[str]:
        return command(self._kind, self._socket, seconds=seconds, slots=slots)

    async def queue(self, many: int, *, apart_seconds: float = 0.0) -> dict[str, float]:
        queued = {}
        for job_id in _ids(self._numbers, many):
            await _apart(apart_seconds)
            queued[job_id] = time.monotonic()
            await self._arq.enqueue_job(FUNCTION, job_id, _job_id=job_id, _queue_name=QUEUE)
        return queued


class Peer(Contestant):
    """A worker of another library and a program that queues for it, both in the peers' venv."""

    def __init__(self, key: str, server: RedisServer, redis: Redis, queueing: Process) -> None:
        super().__init__(PEERS[key], server, redis)
        self._key = key
        self._queueing = queueing

    def _command(self, seconds: float, slots: int) -> list[str]:
        return [*peer_command(self._key, self._socket), str(seconds), str(slots)]

    async def queue(self, many: int, *, apart_seconds: float = 0.0) -> dict[str, float]:
        assert self._queueing.child.stdin is not None
        self._queueing.child.stdin.write(f"{many} {apart_seconds}\n".encode())
        said = [await self._queueing.line() for _ in range(many)]
        return {one.job_id: one.at for one in said}


def peer_command(key: str, socket: str) -> list[str]:
    return [str(PEERS_PYTHON), "-m", "tests.bench.peers.queues", key, socket]


def _ids(numbers: Iterator[int], many: int) -> Iterator[str]:
    return (f"{number:032x}" for number in islice(numbers, many))


async def _apart(seconds: float) -> None:
    await asyncio.sleep(seconds * random.uniform(0.5, 1.5))


async def enter(stack: AsyncExitStack, server: RedisServer) -> Redis:
    """A client of a new cell with one server of the node."""
    redis = await stack.enter_async_context(client(server.socket))
    row: dict[str, Any] = {"id": "1", "account": "1", "node": NODE, "name": "web-1"}
    await seeding.write_rows(redis, "servers", iter([row]))
    return redis
