"""Other job queues on Redis, with the settings that their documentation recommends for low latency, and jobs that do
nothing. `python -m tests.bench.peers.queues NAME SOCKET SECONDS SLOTS` is a worker, `… NAME SOCKET` queues.

A worker prints the same lines as `tests.node_process`. The other program reads lines `COUNT SECONDS`, queues that many
jobs with that mean interval, and prints `queued ID MOMENT` for each, with the time before it was queued.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import count
from typing import Any

import uvloop

Put = Callable[[str], Awaitable[object]]
_, NAME, SOCKET, *_OF_WORKER = sys.argv if len(sys.argv) > 2 else ["", "", ""]
SECONDS, SLOTS = (float(_OF_WORKER[0]), int(_OF_WORKER[1])) if _OF_WORKER else (0.0, 1)
URL = f"unix://{SOCKET}"


def say(word: str, job_id: str, moment: float) -> None:
    os.write(1, f"{word} {job_id} {moment:.6f}\n".encode())


async def job(job_id: str) -> None:
    say("began", job_id, time.monotonic())
    await asyncio.sleep(SECONDS)
    say("ended", job_id, time.monotonic())


def blocking_job(job_id: str) -> None:
    say("began", job_id, time.monotonic())
    time.sleep(SECONDS)
    say("ended", job_id, time.monotonic())


async def saq_job(_context: object, *, job_id: str) -> None:
    await job(job_id)


async def saq(*, works: bool) -> Put:
    from redis.asyncio import Redis  # noqa: PLC0415 - each program needs one of them
    from saq import Worker  # noqa: PLC0415
    from saq.queue.redis import RedisQueue  # noqa: PLC0415

    queue = RedisQueue(Redis.from_url(URL))
    if works:  # the timers are only for scheduled jobs, the dashboard and aborts
        timers = {"schedule": 60, "worker_info": 60, "sweep": 60, "abort": 60}
        await Worker(queue, [saq_job], concurrency=SLOTS, timers=timers).start()
    await queue.connect()
    return lambda job_id: queue.enqueue("saq_job", job_id=job_id, ttl=-1)


async def taskiq(*, works: bool) -> Put:
    from taskiq.api import run_receiver_task  # noqa: PLC0415
    from taskiq_redis import ListQueueBroker, RedisStreamBroker  # noqa: PLC0415

    # with a list, a killed worker's job is lost; with a stream, each job is acknowledged
    # by default, a worker without jobs reads its stream anew every 2 s
    stream = NAME == "taskiq-stream"
    broker = RedisStreamBroker(URL, consumer_id="0", xread_block=60_000) if stream else ListQueueBroker(URL)
    task: Any = broker.register_task(job, task_name="job")
    await broker.startup()
    if works:
        await run_receiver_task(broker, max_async_tasks=SLOTS)
    put: Put = task.kiq
    return put


def blocking(put: Callable[[str], object]) -> Put:
    async def call(job_id: str) -> None:
        put(job_id)

    return call


async def rq(*, works: bool) -> Put:
    from redis import Redis  # noqa: PLC0415
    from rq import Queue, SimpleWorker  # noqa: PLC0415
    from rq.serializers import JSONSerializer  # noqa: PLC0415

    if works:  # a process for each slot; the default also forks one for each job
        all(os.fork() for _ in range(SLOTS - 1))
    redis = Redis(unix_socket_path=SOCKET)
    if works:
        SimpleWorker(["default"], connection=redis, serializer=JSONSerializer).work(logging_level="WARNING")
    queue = Queue(connection=redis, serializer=JSONSerializer)
    name = f"{__spec__.name}.blocking_job"  # not __main__
    return blocking(lambda job_id: queue.enqueue(name, job_id, job_timeout=-1, result_ttl=0))


async def dramatiq(*, works: bool) -> Put:
    import dramatiq as library  # noqa: PLC0415
    from dramatiq.brokers.redis import RedisBroker  # noqa: PLC0415

    broker = RedisBroker(url=URL)
    actor = library.actor(blocking_job, broker=broker, actor_name="job")
    if works:  # the longest interval between polls; the default is 1000 ms
        library.Worker(broker, worker_threads=SLOTS, worker_timeout=10).start()
        await asyncio.Event().wait()
    return blocking(actor.send)


async def celery(*, works: bool) -> Put:
    from celery import Celery  # noqa: PLC0415

    app = Celery("peers", broker=f"redis+socket://{SOCKET}")
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        worker_enable_remote_control=False,
    )
    task = app.task(blocking_job, name="job")
    if works:  # without features that only several workers need
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
        app.worker_main(["worker", "--pool=threads", f"--concurrency={SLOTS}", *quiet])
    return blocking(task.delay)


PEERS: dict[str, Callable[..., Awaitable[Put]]] = {
    "saq": saq,
    "taskiq": taskiq,
    "taskiq-stream": taskiq,
    "rq": rq,
    "dramatiq": dramatiq,
    "celery": celery,
}


async def queue_as_told(put: Put, lines: Iterable[str]) -> None:
    numbers = count()
    for line in lines:
        many, seconds = line.split()
        for _ in range(int(many)):
            await asyncio.sleep(float(seconds) * random.uniform(0.5, 1.5))
            job_id, moment = f"{next(numbers):032x}", time.monotonic()
            await put(job_id)
            say("queued", job_id, moment)


async def main() -> None:
    put = await PEERS[NAME](works=bool(_OF_WORKER))
    await queue_as_told(put, iter(sys.stdin.readline, ""))


if __name__ == "__main__":
    uvloop.run(main())
