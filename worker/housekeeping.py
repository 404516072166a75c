"""What has to happen sooner or later without anyone asking for it."""

import asyncio
from contextlib import suppress

import structlog

from worker.jobs import errors
from worker.jobs.errors import StoreUnavailable
from worker.jobs.model import Failure, JobState, SnapshotStatus
from worker.jobs.node_store import NodeStore
from worker.jobs.outcome import Outcome
from worker.journal import Journal, JournalFailed
from worker.metrics import Metrics
from worker.runner import Runner

ROUND_SECONDS = 30.0

log = structlog.stdlib.get_logger()


class Housekeeping:
    """`waiting_seconds`: how long a job may wait for a silent node, this one or any other, before it fails."""

    def __init__(
        self,
        *,
        store: NodeStore,
        journal: Journal,
        runner: Runner,
        waiting_seconds: float,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._runner = runner
        self._waiting_seconds = waiting_seconds
        self._metrics = metrics or Metrics()

    async def keep_house(self) -> None:
        """Run until cancelled. A round that fails is tried again with the next one."""
        while True:
            await self.round()
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        with suppress(JournalFailed):  # on a full disk: the next time
            self._journal.forget_old()
        await self._runner.drop_spare_tags()
        try:
            deletes = await self._store.retry_deletes()
            failed = await self._store.fail_waiting(
                _never_begun(self._waiting_seconds), silent_seconds=self._waiting_seconds
            )
            await self._store.forget_failed()
        except StoreUnavailable as error:
            log.warning("housekeeping.store_unavailable", cause=str(error.__cause__))
            return
        if deletes:
            log.warning("delete.queued_again", jobs=deletes)
        for job_id in failed:
            log.warning("job.failed", job_id=job_id, code="node_unavailable", waited_seconds=self._waiting_seconds)
            self._metrics.gave_up()


def _never_begun(seconds: float) -> Outcome:
    detail = f"The server's node was silent for {seconds:.0f} seconds; the job was not begun."
    return Outcome(
        state=JobState.FAILED,
        failure=Failure(code=errors.NodeUnavailable.code, detail=detail),
        snapshot_status=SnapshotStatus.FAILED,
    )
