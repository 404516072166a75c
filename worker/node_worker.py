"""arq's worker with a loop of our own: woken instead of polling, and not ended by anything that Redis does.

This process is the only worker of its queue (`worker.lease`), and what a job has begun is in the journal. So arq only
says that there is something to do, and a mark of a job that this process does not run is a dead process's.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix
from arq.worker import Retry, Worker, func
from redis.exceptions import RedisError

from worker.jobs import queue

if TYPE_CHECKING:
    from arq.typing import WorkerCoroutine

REDIS_TROUBLE = (RedisError, OSError, TimeoutError)  # away, slow, and its error replies: full, read-only, loading
FALLBACK_SECONDS = 5  # longest sleep without a wake-up
RETRY_SECONDS = 0.2  # between two looks while Redis is in trouble
BROKEN_AGAIN_SECONDS = 5.0  # until a job is tried again whose run met something unexpected (the journal's disk full)
NEVER_SECONDS = 10 * 365 * 86_400  # for the limits of arq that we do not want

log = structlog.stdlib.get_logger()


class NodeWorker(Worker):
    """Takes the jobs of one node's queue, `max_jobs` at a time, and awaits `run(job_id)` for each.

    `waiting` is a client of its own for the blocking wait: its commands may take longer than the wait.
    """

    def __init__(
        self, redis: ArqRedis, waiting: ArqRedis, *, node: str, run: Callable[[str], Awaitable[None]], max_jobs: int
    ) -> None:
        async def run_job(_context: dict[Any, Any], job_id: str) -> None:
            try:
                await run(job_id)
            except Exception as error:
                log.exception("job.broke", job_id=job_id)
                raise Retry(BROKEN_AGAIN_SECONDS) from error

        super().__init__(
            # A result would only say what the store says better; a retry is the journal's business.
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
            poll_delay=0,
        )
        self._run = run
        self._waiting = waiting
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._finishing: set[asyncio.Task[None]] = set()
        self._marks_are_stale = True  # in-progress marks in Redis may be a dead process's
        self.allow_pick_jobs = False  # until the lease is ours

    def resume(self) -> None:
        """Take jobs: the node's lease is ours."""
        self.allow_pick_jobs = True
        self._wake.set()

    def pause(self) -> None:
        """Take no new job; those that run go on."""
        self.allow_pick_jobs = False

    async def work(self) -> None:
        """Run until cancelled or stopped."""
        listener = asyncio.create_task(self._listen())
        try:
            while not self._stopping.is_set():
                try:
                    await self._look()
                except REDIS_TROUBLE as error:
                    if not self._marks_are_stale:
                        log.warning("queue.redis_trouble", cause=str(error))
                    self._marks_are_stale = True
                    await self._sleep(RETRY_SECONDS)
        finally:
            listener.cancel()

    async def stop(self, drain_seconds: float) -> None:
        """Take no new job, and return when those that run have ended or the time is over."""
        self.pause()
        self._stopping.set()
        self._wake.set()
        running = {*self.tasks.values(), *self._finishing}
        if running:
            await asyncio.wait(running, timeout=drain_seconds)

    async def _look(self) -> None:
        self._wake.clear()
        if self._marks_are_stale:
            await self._clear_marks()
        await self._poll_iteration()
        await self._sleep(await self._until_due())

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _until_due(self) -> float:
        """Seconds until the next deferred job, at most the longest sleep."""
        now_ms = time.time() * 1000
        due = await self.pool.zrangebyscore(self.queue_name, f"({now_ms:.0f}", "+inf", 0, 1, withscores=True)
        return min([float(FALLBACK_SECONDS), *(max(0.001, (float(score) - now_ms) / 1000) for _, score in due)])

    async def _listen(self) -> None:
        while True:
            try:
                woken: Any = self._waiting.blpop([queue.wake_key(self.queue_name)], timeout=FALLBACK_SECONDS)
                if await woken:
                    self._wake.set()
            except REDIS_TROUBLE:
                await asyncio.sleep(RETRY_SECONDS)

    async def _clear_marks(self) -> None:
        """Take away the marks of jobs that nobody runs: left by a process that died, or by a start that Redis cut off."""
        queued = {job_id.decode() for job_id in await self.pool.zrange(self.queue_name, 0, -1)}
        idle = [in_progress_key_prefix + job_id for job_id in queued if not self._runs(job_id)]
        if idle and (freed := await self.pool.delete(*idle)):
            log.warning("queue.stale_marks_cleared", marks=freed)
        self._marks_are_stale = False

    def _runs(self, job_id: str) -> bool:
        return job_id in self.tasks and not self.tasks[job_id].done()

    # --- what arq does, where it would end the worker, lose a slot or lose a job ---

    def _release_sem_dec_counter_on_complete(self) -> None:
        super()._release_sem_dec_counter_on_complete()
        self._wake.set()  # the next job starts now, not at the next look

    async def heart_beat(self) -> None:
        """Nothing: `worker.lease` beats, and there are no cron jobs here."""

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        for job_id in job_ids:
            # Its mark may be lost with Redis's data while it runs: never start it a second time.
            if self._runs(job_id.decode()):
                continue
            slots = self.job_counter
            try:
                await super().start_jobs([job_id])
            except REDIS_TROUBLE:
                if self.job_counter > slots:  # arq took the slot and then could not start the job
                    super()._release_sem_dec_counter_on_complete()
                raise

    async def run_job(self, job_id: str, score: int) -> None:
        try:
            await super().run_job(job_id, score)
        except REDIS_TROUBLE:  # before the job began: it is queued still, under a mark that is stale now
            self._marks_are_stale = True
            self._wake.set()

    async def finish_job(self, job_id: str, *how: Any) -> None:
        await self._insist(lambda: super(NodeWorker, self).finish_job(job_id, *how))

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        # arq's record of the job has expired or can't be read. The id is all that we need: without this, the job
        # would wait for ever in the store.
        log.error("queue.record_unusable", job_id=job_id)
        await self._run(job_id)
        await self._insist(lambda: super(NodeWorker, self).finish_failed_job(job_id, result_data))

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Until Redis takes it, or the worker stops: the next one finds the job over in the journal."""
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
                await asyncio.sleep(RETRY_SECONDS)
