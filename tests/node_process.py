"""A worker as a process of its own, to be killed or measured: `python -m tests.node_process KIND PLACE SECONDS SLOTS`.

KIND is gateway: our loop behind a gateway, as in production; direct: our loop on Redis itself; or plain: arq's own
worker as it comes. PLACE is Redis's socket; for a gateway JSON with `redis` and the settings of `gateway`. A job takes
SECONDS. Prints a line for each beginning and end of a job: `began ID MOMENT`, the moment in seconds of the machine's
monotonic clock.
"""

import asyncio
import json
import sys
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog
import uvloop
from arq.connections import ArqRedis
from arq.worker import Worker, func

from tests.queueing import CELL, NODE, QUEUE, taker
from worker.gateway_client import GatewayAddress, GatewayClient
from worker.local_redis import local_redis
from worker.node_worker import NodeWorker
from worker.program.background import in_background
from worker.store import arq_queue as queue
from worker.store.nodes.protocol import TAKE_SECONDS
from worker.store.redis_client import RedisSettings, connect

if TYPE_CHECKING:
    from arq.typing import WorkerCoroutine


class Kind(StrEnum):
    GATEWAY = "gateway"
    DIRECT = "direct"
    PLAIN = "plain"


def command(kind: Kind, socket: object, *, seconds: float, slots: int) -> list[str]:
    return [sys.executable, "-m", "tests.node_process", kind, str(socket), str(seconds), str(slots)]


def _say(word: str, job_id: str = "-") -> None:
    moment = time.monotonic()
    sys.stdout.write(f"{word} {job_id} {moment:.6f}\n")
    sys.stdout.flush()


async def _gateway(place: str, seconds: float, slots: int) -> None:
    reached = json.loads(place)
    cell = connect(RedisSettings(url=f"unix://{reached.pop('redis')}"))

    async def run(job_id: str) -> None:
        _say("began", job_id)
        await asyncio.sleep(seconds)
        _say("ended", job_id)
        async with cell.pipeline(transaction=True) as pipe:  # what `finish` would do
            pipe.hset(f"job:{job_id}", "state", "completed")
            pipe.zrem(QUEUE, job_id)
            await pipe.execute()

    node = GatewayClient(GatewayAddress.model_validate(reached), node=NODE, machine="m1", who="a benchmark")
    with tempfile.TemporaryDirectory(prefix="vps-node-") as folder:
        async with in_background(node.keep_connected()), local_redis(Path(folder) / "queue") as local:
            worker = NodeWorker(local.client, take=node.take, node=NODE, run=run, max_jobs=slots)
            worker.resume()
            await node.republish()  # it is connected
            _say("ready")
            await worker.work()


async def _direct(socket: str, seconds: float, slots: int) -> None:
    async def run(job_id: str) -> None:
        _say("began", job_id)
        await asyncio.sleep(seconds)
        _say("ended", job_id)

    settings = RedisSettings(url=f"unix://{socket}")
    waiting = connect(settings, command_seconds=2 * TAKE_SECONDS)
    redis = connect(settings)

    async def run_and_tell(job_id: str) -> None:
        await run(job_id)
        await redis.zrem(CELL, job_id)

    worker = NodeWorker(redis, take=taker(waiting), node=NODE, run=run_and_tell, max_jobs=slots)
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
    serve = {Kind.GATEWAY: _gateway, Kind.DIRECT: _direct, Kind.PLAIN: _plain}[Kind(wanted)]
    uvloop.run(serve(path, float(job_seconds), int(max_jobs)))
