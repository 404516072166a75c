"""arq's worker with our own main loop: the cell gives it jobs, so it does not poll, and it needs no Redis.

The cell's queue is on the trusted side: it gives a job again until the job is over or the worker reports it as running.
The journal records which jobs have started, so a job may be delivered twice.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog
from arq.worker import Retry, Worker, func

from worker.journal import JournalFailed
from worker.store.errors import StoreUnavailable
from worker.store.model import Job, JobId
from worker.store.nodes.protocol import TAKE_SECONDS

if TYPE_CHECKING:
    from arq.connections import ArqRedis
    from arq.typing import WorkerCoroutine

RETRY_SECONDS = 0.2  # between two attempts while the queue is in trouble
BROKEN_AGAIN_SECONDS = 5.0  # before a job whose run raised an unexpected error (such as a full disk) is retried
# A job that has ended and is given again starts after this at the earliest, and at most TAKE_SECONDS later.
ENDED_AGAIN_SECONDS = 1.0
FULL_SECONDS = 5.0  # how long a worker without a free slot waits for one, because more jobs may be allowed meanwhile
MOST_TASKS = 500  # jobs that run or whose end is not published yet; `take` lists them
PUT_BACK_SECONDS = 1.0  # at exit, for jobs that were cancelled to end
NEVER_SECONDS = 10 * 365 * 86_400  # disables arq's limits
_FUNCTION = "run"  # arq's name of the worker's only function

log = structlog.stdlib.get_logger()


class Take(Protocol):
    """`take` of `worker.store.nodes.port.NodePort`."""

    async def __call__(self, *, running: Sequence[JobId], free: int, seconds: float) -> Sequence[JobId | Job]: ...


class _NoRedis:
    """Answers what arq asks its Redis when it starts a job: its record of the job, and how often it has tried it.

    Nothing has to be kept: the cell's queue knows which jobs are to run, and the journal which have started.
    """

    @asynccontextmanager
    async def pipeline(self, *, transaction: bool) -> AsyncIterator["_Start"]:  # noqa: ARG002 - as arq calls it
        yield _Start()


class _Start:
    """The transaction that arq's `run_job` makes."""

    def get(self, key: str) -> None:
        """arq's record of the job: see `_record`."""

    def incr(self, key: str) -> None:
        """Each run is the first that arq sees: the runner decides how often a job is tried."""

    def expire(self, key: str, seconds: int) -> None:
        """Nothing is kept."""

    async def execute(self) -> tuple[bytes, int, bool]:
        return b"a record", 1, True


def _record(_: bytes) -> dict[str, Any]:
    """arq's record of each job: tries, function, its arguments, and when it was queued. The function gets the job's ID
    from arq's context."""
    return {"t": None, "f": _FUNCTION, "a": (), "k": {}, "et": int(time.time() * 1000)}


def _no_result(_: dict[str, Any]) -> bytes:
    """Nothing reads what arq writes of a job that has ended, and pickle, its default, may fail for it."""
    return b""


class NodeWorker(Worker):
    """Takes jobs from the cell, up to `max_jobs` at a time, and awaits `run(job_id, job)` for each; the job is None
    unless the cell has just begun it.

    `turned` is called at each turn of its loop. `allowed` returns how many jobs may run now, if fewer than `max_jobs`;
    jobs that already run continue.
    """

    def __init__(
        self,
        *,
        take: Take,
        run: Callable[[str, Job | None], Awaitable[None]],
        max_jobs: int,
        turned: Callable[[], None] = lambda: None,
        allowed: Callable[[], int] | None = None,
    ) -> None:
        async def run_job(context: dict[Any, Any], /, *_arguments: Any, **_named: Any) -> None:
            job_id = context["job_id"]
            self._has_started(job_id)
            try:
                await run(job_id, self._begun.pop(job_id, None))
            except Exception as error:
                # on a full disk, each waiting job repeats this every few seconds: the reason is enough
                traceback = None if isinstance(error, JournalFailed) else error
                log.error("job.broke", job_id=job_id, reason=str(error), exc_info=traceback)  # noqa: TRY400 - exc_info has it
                raise Retry(BROKEN_AGAIN_SECONDS) from error

        super().__init__(
            # The store has the results and the runner does the retries.
            [
                func(
                    cast("WorkerCoroutine", run_job),
                    name=_FUNCTION,
                    keep_result=0,
                    timeout=NEVER_SECONDS,
                    max_tries=NEVER_SECONDS,
                )
            ],
            queue_name="",  # it reads none
            redis_pool=cast("ArqRedis", _NoRedis()),
            max_jobs=max_jobs,
            handle_signals=False,
            job_serializer=_no_result,
            job_deserializer=_record,
        )
        self._take = take
        self._turned = turned
        self._allowed = allowed or (lambda: max_jobs)
        self._taking: asyncio.Task[Sequence[JobId | Job]] | None = None
        self._begun: dict[str, Job] = {}  # jobs that the cell has begun and that have not started here
        self._starting: set[str] = set()  # jobs that arq has not started yet
        self._started = asyncio.Event()  # set when arq has started the last of them
        self._busy: set[asyncio.Task[None]] = set()  # tasks of the jobs that hold a slot
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._over = asyncio.Event()
        self._over.set()
        # Jobs that must not run again before this time on the monotonic clock: of those that broke, which are rare, and
        # of those that have ended. A wait for jobs ends early only for the first, because an admission starts jobs only
        # during a wait.
        self._rest_broken: dict[str, float] = {}
        self._rest_ended: dict[str, float] = {}
        self._in_trouble = False
        self.allow_pick_jobs = False  # until the lease is held

    def resume(self) -> None:
        """Start taking jobs. Call it once the node's lease is held."""
        self.allow_pick_jobs = True
        self._wake.set()

    def pause(self) -> None:
        """Take no new jobs; running jobs continue."""
        self.allow_pick_jobs = False
        if self._taking is not None:
            self._taking.cancel()

    async def work(self) -> None:
        """Run until cancelled or stopped."""
        self._over.clear()
        try:
            while not self._stopping.is_set():
                self._turned()
                await self._look()
        finally:
            self._over.set()

    async def stop(self, drain_seconds: float) -> None:
        """Take no new jobs; return when the running jobs have ended. After `drain_seconds` they are cancelled; they are
        still in the cell's queue."""
        self.pause()
        self._stopping.set()
        self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_seconds):
                await self._over.wait()  # the loop may still be starting a job
                await asyncio.gather(*map(_ended, self.tasks.values()))
        await _cancel(self.tasks.values())

    async def _look(self) -> None:
        self._wake.clear()
        self._forget_ended()
        try:
            await self._start(await self._given())
        except StoreUnavailable as error:
            if not self._in_trouble:
                log.warning("queue.trouble", cause=str(error.__cause__ or error))
            self._in_trouble = True
            await _wait(self._stopping, RETRY_SECONDS)
        else:
            if self._in_trouble and self.allow_pick_jobs:
                self._in_trouble = False
                log.info("queue.answers")

    async def _given(self) -> Sequence[JobId | Job]:
        """Wait for jobs to start. Returns none from time to time, and after a pause."""
        free = min(self.max_jobs - len(self._busy), self._allowed() - len(self._busy), MOST_TASKS - len(self.tasks))
        if free <= 0 or not self.allow_pick_jobs:
            await _wait(self._wake, FULL_SECONDS)
            return ()
        now = time.monotonic()
        for resting in (self._rest_broken, self._rest_ended):
            for job_id in [job_id for job_id, until in resting.items() if until <= now]:
                del resting[job_id]
        running = [JobId(job_id) for job_id in {*self.tasks, *self._rest_broken, *self._rest_ended}]
        seconds = min([TAKE_SECONDS, *(until - now for until in self._rest_broken.values())])
        self._taking = asyncio.ensure_future(self._take(running=running, free=free, seconds=seconds))
        try:
            await asyncio.wait({self._taking})
            return () if self._taking.cancelled() else self._taking.result()
        finally:
            self._taking.cancel()
            self._taking = None

    async def _start(self, given: Iterable[JobId | Job]) -> None:
        """Start the jobs. Returns once arq runs them, because asking the cell for more before that would delay them."""
        # Replaces arq's start_jobs, which reads jobs from its queue, checks in four commands whether another worker
        # was faster, leaks a slot if Redis fails in between, and mistakes the mark of a dead process for a live
        # worker's.
        for one in given:
            job_id = one.id if isinstance(one, Job) else one
            if not self.allow_pick_jobs or job_id in self.tasks:
                continue
            if isinstance(one, Job):
                self._begun[job_id] = one
            self.tasks[job_id] = task = self.loop.create_task(self.run_job(job_id, int(time.time() * 1000)))
            self._busy.add(task)
            task.add_done_callback(self._let_go)
            self._starting.add(job_id)
            task.add_done_callback(partial(self._has_started, job_id))
        self._started.clear()
        if self._starting:
            await self._started.wait()

    def _has_started(self, job_id: str, _task: asyncio.Task[None] | None = None) -> None:
        self._starting.discard(job_id)
        if not self._starting:
            self._started.set()

    def free_slot(self, job_id: str) -> None:
        """Free the job's slot when its work is over, before its end is published."""
        if job_id in self.tasks:
            self._let_go(self.tasks[job_id])

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        self._wake.set()  # start the next job now

    def _forget_ended(self) -> None:
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                self._begun.pop(job_id, None)
                task.result()  # an unexpected exception ends the worker

    async def finish_job(  # noqa: PLR0917 - arq's signature
        self,
        job_id: str,
        finish: bool,
        result_data: bytes | None,  # noqa: ARG002
        result_timeout_s: float | None,  # noqa: ARG002
        keep_result_forever: bool,  # noqa: ARG002
        incr_score: int | None,  # noqa: ARG002
        keep_in_progress: float | None,  # noqa: ARG002
    ) -> None:
        """Replaces arq's, which would remove the job from its queue."""
        self.free_slot(job_id)
        # The cell's queue knows whether the job is over; if not, it gives the job again.
        if finish:
            self._rest_ended[job_id] = time.monotonic() + ENDED_AGAIN_SECONDS
        else:
            self._rest_broken[job_id] = time.monotonic() + BROKEN_AGAIN_SECONDS


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
