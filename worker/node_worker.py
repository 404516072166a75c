"""arq's worker with our own main loop: it is woken instead of polling, and no Redis error ends it.

This process is the only worker of its queue (`worker.lease`), and the journal records which jobs have started. So arq
only delivers job ids, and an in-progress mark of a job that this process does not run is ignored.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.worker import Retry, Worker, func
from redis.exceptions import RedisError

from worker.program.loop import guarded
from worker.store import arq_queue as queue
from worker.store import scripts

if TYPE_CHECKING:
    from arq.typing import WorkerCoroutine

REDIS_TROUBLE = (RedisError, OSError, TimeoutError)  # unreachable, slow, or replying with errors (full, read-only)
FALLBACK_SECONDS = 5  # longest sleep without a wake-up
RETRY_SECONDS = 0.2  # between two attempts while Redis is failing
BROKEN_AGAIN_SECONDS = 5.0  # until a job is retried whose run raised something unexpected (the journal's disk is full)
PUT_BACK_SECONDS = 1.0  # at exit, for returning unfinished jobs to the queue
_DAMAGED = ("WRONGTYPE", "value is not an integer")  # what Redis says of a record of arq's
NEVER_SECONDS = 10 * 365 * 86_400  # disables limits of arq that we do not want

log = structlog.stdlib.get_logger()


class NodeWorker(Worker):
    """Takes jobs from one node's queue, up to `max_jobs` at a time, and awaits `run(job_id)` for each.

    `waiting`: a separate client for the blocking wait, whose command timeout is longer than that wait.
    """

    def __init__(
        self, redis: ArqRedis, waiting: ArqRedis, *, node: str, run: Callable[[str], Awaitable[None]], max_jobs: int
    ) -> None:
        async def run_job(context: dict[Any, Any], /, *_arguments: Any, **_named: Any) -> None:
            job_id = context["job_id"]  # the rest of arq's record is not used
            try:
                await run(job_id)
            except Exception as error:
                log.exception("job.broke", job_id=job_id)
                raise Retry(BROKEN_AGAIN_SECONDS) from error

        super().__init__(
            # The store has the results and the runner does the retries.
            [
                func(
                    cast("WorkerCoroutine", run_job),
                    name=queue.FUNCTION,
                    keep_result=0,
                    timeout=NEVER_SECONDS,
                    max_tries=NEVER_SECONDS,
                )
            ],
            queue_name=queue.queue_name(node),
            redis_pool=redis,
            max_jobs=max_jobs,
            handle_signals=False,
            job_serializer=queue.serialize,
            job_deserializer=queue.deserialize,
        )
        self._due = redis.register_script(scripts.text("nodes/start_due"))
        self._returning = redis.register_script(scripts.text("nodes/put_back"))
        self._waiting = waiting
        self._node = node
        self._wake = asyncio.Event()
        self._may_take = asyncio.Event()
        self._stopping = asyncio.Event()
        self._over = asyncio.Event()
        self._over.set()
        self._finishing: set[asyncio.Task[None]] = set()
        self._in_trouble = False
        self.allow_pick_jobs = False  # until we hold the lease

    def resume(self) -> None:
        """Start taking jobs. Call it once the node's lease is held."""
        self.allow_pick_jobs = True
        self._may_take.set()
        self._wake.set()

    def pause(self) -> None:
        """Take no new jobs; running jobs continue."""
        self.allow_pick_jobs = False
        self._may_take.clear()

    async def work(self) -> None:
        """Run until cancelled or stopped."""
        self._over.clear()
        try:
            async with asyncio.TaskGroup() as group:
                listener = group.create_task(self._listen())
                while not self._stopping.is_set():
                    await self._look()
                listener.cancel()
        finally:
            self._over.set()

    async def stop(self, drain_seconds: float) -> None:
        """Take no new jobs; return when the running jobs have ended. After `drain_seconds` they are requeued."""
        self.pause()
        self._stopping.set()
        self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_seconds):
                await self._over.wait()  # the loop may still be starting a job
                await asyncio.gather(*map(_ended, self.tasks.values()))
        await _cancel(self.tasks.values())  # arq then requeues them
        await _cancel(self._finishing)  # Redis is unreachable: the next process resumes from the journal

    async def _look(self) -> None:
        self._wake.clear()
        self._forget_ended()
        try:
            seconds = await self._start_due() if self.allow_pick_jobs else FALLBACK_SECONDS
        except REDIS_TROUBLE as error:
            if not self._in_trouble:
                log.warning("queue.redis_trouble", cause=str(error))
            self._in_trouble = True
            await _wait(self._stopping, RETRY_SECONDS)
        else:
            if self._in_trouble and self.allow_pick_jobs:
                self._in_trouble = False
                log.info("queue.redis_answers")
            await _wait(self._wake, seconds)

    async def _start_due(self) -> float:
        """Start the jobs that are due. Returns the seconds until the next check.

        Due times are compared with the clock of Redis, which set them: with the node's own clock, as arq does it, jobs
        would be late on a node whose clock is slow.
        """
        running = [job_id for job_id, task in self.tasks.items() if not task.done()]
        free = self.max_jobs - self.job_counter
        ask = {
            "queue": self.queue_name,
            "node": self._node,
            "free": free,
            "limit": self.queue_read_limit,
            "mark": in_progress_key_prefix,
            "mark_ms": NEVER_SECONDS * 1000,
            "running": running,
        }
        later_ms, *due = await self._due(args=[json.dumps(ask)])
        for job_id, score in zip(due[::2], due[1::2], strict=True):
            if not job_id.isascii():  # no ID of ours: it would take a slot at each look
                log.error("queue.record_unusable", job_id=repr(job_id))
                await self.pool.zrem(self.queue_name, job_id)
                continue
            with guarded("queue", *REDIS_TROUBLE, job_id=job_id.decode()):
                await self._start(job_id.decode(), int(max(0.0, float(score))))
        return min(FALLBACK_SECONDS, later_ms / 1000) if later_ms >= 0 else FALLBACK_SECONDS

    async def _start(self, job_id: str, score: int) -> None:
        # Replaces arq's start_jobs, which checks in four commands whether another worker was faster, leaks a slot if
        # Redis fails in between, and takes the mark of a dead process for that of a live worker.
        if not self.allow_pick_jobs:  # the lease was lost or the worker stopped during the script call
            await self.pool.delete(in_progress_key_prefix + job_id)
            return
        self.job_counter += 1
        self.tasks[job_id] = task = self.loop.create_task(self.run_job(job_id, score))
        task.add_done_callback(lambda _: self._release_sem_dec_counter_on_complete())

    def _forget_ended(self) -> None:
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                task.result()  # an unexpected exception ends the worker

    async def _listen(self) -> None:
        while True:
            await self._may_take.wait()  # without the lease, wake-ups are for another worker
            try:
                woken: Any = self._waiting.blpop([queue.wake_key(self.queue_name)], timeout=FALLBACK_SECONDS)
                if await woken:
                    self._wake.set()
            except REDIS_TROUBLE:
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()  # the lost reply may have been a wake-up

    # --- methods of arq that would end the worker, leak a slot or lose a job ---

    def _release_sem_dec_counter_on_complete(self) -> None:
        self.job_counter -= 1  # arq's semaphore is not used: only its own start_jobs needs it
        self._wake.set()  # start the next job now, not at the next check

    async def run_job(self, job_id: str, score: int) -> None:
        try:
            await super().run_job(job_id, score)
        except REDIS_TROUBLE as error:  # the job has not started and is still queued
            if any(words in str(error) for words in _DAMAGED):
                await self._insist(lambda: self._mend(job_id))
            log.warning("queue.job_not_begun", job_id=job_id, cause=str(error))
            await asyncio.sleep(RETRY_SECONDS)  # keep its slot: if only this job fails, the loop would spin

    async def finish_job(  # noqa: PLR0917 - arq's signature
        self,
        job_id: str,
        finish: bool,
        result_data: bytes | None,
        result_timeout_s: float | None,
        keep_result_forever: bool,
        incr_score: int | None,
        keep_in_progress: float | None,
    ) -> None:
        if finish:
            how = (finish, result_data, result_timeout_s, keep_result_forever, incr_score, keep_in_progress)
            await self._insist(lambda: super(NodeWorker, self).finish_job(job_id, *how))
        else:
            await self._insist(lambda: self._put_back(job_id, put_off=bool(incr_score)))

    async def _put_back(self, job_id: str, *, put_off: bool) -> None:
        ask = {
            "queue": self.queue_name,
            "job": job_id,
            "mark": in_progress_key_prefix + job_id,
            # arq increments the score, and would do so twice if a reply is lost
            "put_off_ms": round(BROKEN_AGAIN_SECONDS * 1000) if put_off else 0,
        }
        await self._returning(args=[json.dumps(ask)])

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:  # noqa: ARG002 - arq's signature
        # arq's record of the job has expired or cannot be read. arq would drop the job, which would then stay queued
        # in the store forever. Its id is all that we need.
        await self._insist(lambda: self._mend(job_id))

    async def _mend(self, job_id: str) -> None:
        if await self.pool.zscore(self.queue_name, job_id) is None:  # cancelled in the meantime
            await self.pool.delete(in_progress_key_prefix + job_id, retry_key_prefix + job_id)
            return
        log.error("queue.record_unusable", job_id=job_id)
        record = queue.payload(job_id, int(time.time() * 1000))
        async with self.pool.pipeline(transaction=True) as pipe:
            pipe.set(job_key_prefix + job_id, record, px=self.expires_extra_ms)
            pipe.delete(in_progress_key_prefix + job_id, retry_key_prefix + job_id)
            await pipe.execute()

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Retry the call until Redis accepts it or the worker stops: the next one finds the outcome in the journal."""
        task = asyncio.ensure_future(self._until_taken(call))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        await asyncio.shield(task)

    async def _until_taken(self, call: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await call()
            except REDIS_TROUBLE:
                if self._stopping.is_set():
                    return None
                await _wait(self._stopping, RETRY_SECONDS)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=PUT_BACK_SECONDS)
