"""Publishes job progress and outcomes to the store.

Nothing here can delay or change the work on a VM. A step that could not be published is sent with the next one; an
outcome is retried until the store has accepted it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from worker.program.loop import Outage, guarded
from worker.store.errors import RecordUnreadable, StoreUnavailable
from worker.store.model import JobId, ServerId, Step
from worker.store.nodes.claims import ClaimRefused, LeaseLost
from worker.store.nodes.port import NodePort
from worker.store.outcome import Outcome
from worker.store.reports import EMPTY_REPORT, JobReport, StepBegun

RETRY_SECONDS = (0.2, 2.0)  # between two attempts to publish: the first wait, and the limit up to which it doubles
# attempts for an outcome whose job the store does not know: its server may have left the node permanently
UNKNOWN_TRIES = 6
# Limit up to which attempts do not count while the store does not know the server, and the wait between two: after a
# loss of the store's data, a node with 2,000 servers reports and publishes them in about a minute.
SERVER_UNKNOWN_SECONDS, SERVER_UNKNOWN_AGAIN_SECONDS = 300.0, 5.0

log = structlog.stdlib.get_logger()


class Publisher:
    """`publish_again` publishes all jobs and snapshots of a server again. `log_of` returns a job's new log lines."""

    def __init__(
        self,
        store: NodePort,
        publish_again: Callable[[ServerId], Awaitable[None]],
        *,
        log_of: Callable[[JobId], tuple[str, ...]] = lambda _: (),
    ) -> None:
        self._store = store
        self._publish_again = publish_again
        self._log_of = log_of
        self._unpublished: dict[JobId, JobReport] = {}
        self._steps: dict[JobId, Step] = {}
        self._news = asyncio.Event()

    def step(self, job_id: JobId, step: Step, *, attempt: int = 1) -> None:
        """Publish soon that the step has started; returns at once."""
        self._add(job_id, JobReport(steps=(StepBegun(step=step, at=time.time(), attempt=attempt),)))
        self._steps[job_id] = step
        self._news.set()

    def resumed(self, job_id: JobId) -> None:
        """Publish with the job's next step that this process has resumed the job."""
        self._add(job_id, JobReport(resumed=1))

    async def outcome(self, job_id: JobId, server_id: ServerId, outcome: Outcome, *, power: str = "") -> None:
        """Publish the outcome. Returns once the store has it, however long that takes. `power`: the server's power
        state now, or ""."""
        self._steps.pop(job_id, None)  # the outcome supersedes it
        self._add(job_id, JobReport(steps=(StepBegun(step=None, at=time.time(), attempt=1),)))
        report = self._taken(job_id)
        wait, longest = RETRY_SECONDS
        outage = Outage()
        tries, counts_from = UNKNOWN_TRIES, time.monotonic() + SERVER_UNKNOWN_SECONDS
        while True:
            try:
                answer = await self._store.finish(job_id, outcome, report, power)
            except (StoreUnavailable, LeaseLost) as error:
                outage.tell("outcome.not_published", reason=type(error).__name__)
                answer, power = "", ""  # the power may have changed by the next attempt
            except ClaimRefused as refused:
                answer = refused.reason
            if answer and not (answer == "job_unknown" and (tries := tries - 1)):
                if answer not in {"published", "job_over"}:  # job_over: published by a process that died right after
                    log.warning("outcome.refused", reason=answer)
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)
            if answer:  # the store lost its data: it accepts the outcome once it knows the job again
                await self._publish_again(server_id)
                if time.monotonic() < counts_from and await self._is_unknown(server_id):
                    tries, wait = UNKNOWN_TRIES, SERVER_UNKNOWN_AGAIN_SECONDS

    async def _is_unknown(self, server_id: ServerId) -> bool:
        """Whether the store does not know the server yet."""
        try:
            await self._store.known(server_id, [])
        except ClaimRefused as refused:
            return refused.reason == "server_unknown"
        except (StoreUnavailable, LeaseLost, RecordUnreadable):
            pass
        return False

    async def publish_steps(self) -> None:
        """Run until cancelled: publish the latest step of each job."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._steps:
                job_id, step = self._steps.popitem()
                report = self._taken(job_id)
                try:
                    with guarded("step", StoreUnavailable, LeaseLost, ClaimRefused, job_id=job_id):
                        await self._store.progress(job_id, step, report)
                except (StoreUnavailable, LeaseLost):  # a worker that has just started may not hold the lease yet
                    self._unpublished[job_id] = report + self._unpublished.get(job_id, EMPTY_REPORT)
                    log.info("step.not_published", job_id=job_id, step=step)
                except ClaimRefused as refused:
                    log.warning("step.refused", job_id=job_id, step=step, reason=refused.reason)

    def _add(self, job_id: JobId, news: JobReport) -> None:
        self._unpublished[job_id] = self._unpublished.get(job_id, EMPTY_REPORT) + news

    def _taken(self, job_id: JobId) -> JobReport:
        return self._unpublished.pop(job_id, EMPTY_REPORT) + JobReport(log=self._log_of(job_id))
