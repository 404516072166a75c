"""A worker as a process of its own, to be killed or measured: `python -m tests.node_process KIND SOCKET SECONDS SLOTS`.

KIND is ours, or plain: arq's own worker as it comes, on the same queue. A job takes SECONDS. Prints a line for each
beginning and end of a job: `began ID MOMENT`, the moment in seconds of the machine's monotonic clock.
"""

import asyncio
import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

import structlog
import uvloop
from arq.connections import ArqRedis
from arq.worker import Worker, func

from tests.queueing import NODE, QUEUE, taker
from worker.node_worker import NodeWorker
from worker.store import arq_queue as queue
from worker.store.nodes.protocol import TAKE_SECONDS
from worker.store.redis_client import RedisSettings, connect

if TYPE_CHECKING:
    from arq.typing import WorkerCoroutine


class Kind(StrEnum):
    OURS = "ours"
    PLAIN = "plain"


def command(kind: Kind, socket: object, *, seconds: float, slots: int) -> list[str]:
    return [sys.executable, "-m", "tests.node_process", kind, str(socket), str(seconds), str(slots)]


def _say(word: str, job_id: str = "-") -> None:
    moment = time.monotonic()
    sys.stdout.write(f"{word} {job_id} {moment:.6f}\n")
    sys.stdout.flush()


async def _ours(socket: str, seconds: float, slots: int) -> None:
    async def run(job_id: str) -> None:
        _say("began", job_id)
        await asyncio.sleep(seconds)
        _say("ended", job_id)

    settings = RedisSettings(url=f"unix://{socket}")
    waiting = connect(settings, command_seconds=2 * TAKE_SECONDS)
    worker = NodeWorker(connect(settings), take=taker(waiting), node=NODE, run=run, max_jobs=slots)
    worker.resume()
    _say("ready")
    await worker.work()


async def _plain(socket: str, seconds: float, slots: int) -> None:
    async def run(_context: dict[Any, Any], job_id: str) -> None:
        _say("began", job_id)
        await asyncio.sleep(seconds)
        _say("ended", job_id)

    redis = ArqRedis(unix_socket_path=socket)
    worker = Worker(
        [func(cast("WorkerCoroutine", run), name=queue.FUNCTION)], queue_name=QUEUE, redis_pool=redis, max_jobs=slots
    )
    _say("ready")
    await worker.async_run()


if __name__ == "__main__":
    _, wanted, *(path, job_seconds, max_jobs) = sys.argv
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    serve = _ours if wanted == Kind.OURS else _plain
    uvloop.run(serve(path, float(job_seconds), int(max_jobs)))
