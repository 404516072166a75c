"""A worker in a separate process, to be killed or measured: `python -m tests.node_process KIND PLACE SECONDS SLOTS`.

KIND is gateway: our loop with a gateway, as in production; direct: the same with the cell's Redis itself; list: our
loop with the jobs of `tests.queueing.CELL`; plain: arq's own worker; or polling: the same, polling every 10 ms. PLACE
is Redis's socket; for a gateway, JSON with the settings of `gateway`. A job takes SECONDS. Prints a line for each start
and end of a job: `began ID MOMENT`, in seconds of the machine's monotonic clock. If there is a cell, the job has
started there by then, too.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import structlog
from arq.connections import ArqRedis
from arq.worker import Worker, func

from tests.logs import log_plainly
from tests.queueing import CELL, NODE, QUEUE, taker
from worker.gateway_address import GatewayAddress
from worker.gateway_client import GatewayClient
from worker.node_worker import NodeWorker, Take
from worker.program.background import in_background
from worker.store.model import Job, JobId, JobState, SnapshotStatus
from worker.store.nodes.node_store import NodeStore
from worker.store.nodes.port import NodePort
from worker.store.nodes.protocol import TAKE_SECONDS
from worker.store.outcome import Outcome
from worker.store.redis_client import RedisSettings, connect

if TYPE_CHECKING:
    from arq.typing import WorkerCoroutine


FUNCTION = "run"  # of arq's own worker
DONE = Outcome(state=JobState.COMPLETED, size_mb=5, snapshot_status=SnapshotStatus.COMPLETED)


class Kind(StrEnum):
    GATEWAY = "gateway"
    DIRECT = "direct"
    LIST = "list"
    PLAIN = "plain"
    POLLING = "polling"


def command(kind: Kind, socket: object, *, seconds: float, slots: int) -> list[str]:
    return [sys.executable, "-m", "tests.node_process", kind, str(socket), str(seconds), str(slots)]


def _say(word: str, job_id: str = "-") -> None:
    moment = time.monotonic()
    sys.stdout.write(f"{word} {job_id} {moment:.6f}\n")
    sys.stdout.flush()


def _no_power() -> None:
    """Replaces the call with which the runner asks libvirt for the server's power before it reports the end."""


async def _gateway(place: str, seconds: float, slots: int) -> None:
    address = GatewayAddress.model_validate_json(place)
    node = GatewayClient(address, node=NODE, machine="m1", who="a benchmark")
    async with in_background(node.keep_connected()):
        await _work(node, node.take, seconds, slots)


async def _direct(socket: str, seconds: float, slots: int) -> None:
    settings = RedisSettings(url=f"unix://{socket}")
    waiting = connect(settings, command_seconds=2 * TAKE_SECONDS)
    node = NodeStore(connect(settings), node=NODE, machine="m1", who="a benchmark", waiting=waiting)
    await _work(node, partial(node.take, begin=True), seconds, slots)


async def _work(node: NodePort, take: Take, seconds: float, slots: int) -> None:
    async def run(job_id: str, begun: Job | None) -> None:
        if begun is None:
            await node.begin(JobId(job_id))
        _say("began", job_id)
        await asyncio.sleep(seconds)
        _say("ended", job_id)
        worker.free_slot(job_id)
        await asyncio.to_thread(_no_power)
        await node.finish(JobId(job_id), DONE)

    worker = NodeWorker(take=take, run=run, max_jobs=slots)
    await node.take_lease(seconds=15)
    worker.resume()
    _say("ready")
    await worker.work()


async def _list(socket: str, seconds: float, slots: int) -> None:
    settings = RedisSettings(url=f"unix://{socket}")
    redis, waiting = connect(settings), connect(settings, command_seconds=2 * TAKE_SECONDS)

    async def run(job_id: str, _begun: Job | None) -> None:
        _say("began", job_id)
        await asyncio.sleep(seconds)
        _say("ended", job_id)
        await redis.zrem(CELL, job_id)

    worker = NodeWorker(take=taker(waiting), run=run, max_jobs=slots)
    worker.resume()
    _say("ready")
    await worker.work()


async def _plain(socket: str, seconds: float, slots: int, *, poll_seconds: float = 0.5) -> None:
    async def run(_context: dict[Any, Any], job_id: str) -> None:
        _say("began", job_id)
        await asyncio.sleep(seconds)
        _say("ended", job_id)

    redis = ArqRedis(unix_socket_path=socket)
    worker = Worker(
        [func(cast("WorkerCoroutine", run), name=FUNCTION)],
        queue_name=QUEUE,
        redis_pool=redis,
        max_jobs=slots,
        poll_delay=poll_seconds,
    )
    _say("ready")
    await worker.async_run()


if __name__ == "__main__":
    _, wanted, *(path, job_seconds, max_jobs) = sys.argv
    log_plainly(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    works: dict[Kind, Callable[[str, float, int], Coroutine[Any, Any, None]]] = {
        Kind.GATEWAY: _gateway,
        Kind.DIRECT: _direct,
        Kind.LIST: _list,
        Kind.PLAIN: _plain,
        Kind.POLLING: partial(_plain, poll_seconds=0.01),
    }
    asyncio.run(works[Kind(wanted)](path, float(job_seconds), int(max_jobs)))
