"""Fails jobs that have waited too long for a silent node, so that their servers are free again."""

from collections.abc import Callable

import structlog
from arq.connections import ArqRedis

from worker.store import errors
from worker.store.calls import Scripts
from worker.store.model import Failure, JobId, JobState, SnapshotStatus
from worker.store.outcome import Outcome

BATCH = 100  # jobs per script call, to bound how long it blocks Redis

log = structlog.stdlib.get_logger()


class StaleJobReaper(Scripts):
    """Runs in every worker and front end. `seconds`: how long a job may wait for a silent node; `given_up` is called
    for each job that has waited longer."""

    def __init__(self, redis: ArqRedis, *, seconds: float, given_up: Callable[[], None] = lambda: None) -> None:
        super().__init__(redis)
        self._seconds = seconds
        self._given_up = given_up

    async def fail(self) -> tuple[JobId, ...]:
        """Fail the jobs of any node that have waited longer; returns them. Raises StoreUnavailable."""
        detail = f"The server's node was silent for {self._seconds:.0f} seconds; the job was not begun."
        outcome = Outcome(
            state=JobState.FAILED,
            failure=Failure(code=errors.NodeUnavailable.code, detail=detail),
            snapshot_status=SnapshotStatus.FAILED,
        )
        ask = {"silent_ms": round(self._seconds * 1000), "limit": BATCH, "result": outcome.for_script()}
        answer: list[bytes] = await self._call("chores/fail_stale_jobs", ask)
        failed = tuple(JobId(job_id.decode()) for job_id in answer)
        for job_id in failed:
            log.warning("job.failed", job_id=job_id, code=errors.NodeUnavailable.code, waited_seconds=self._seconds)
            self._given_up()
        return failed
