"""One action on several jobs, each of which succeeds or fails on its own."""

from collections.abc import Sequence

from aiohttp import web

from api.http.marks import EACH, REQUEST_ID, TOKEN
from api.jobs.bodies import BulkAction, BulkResult, would_retry
from worker.store import errors
from worker.store.calls import Idempotency
from worker.store.model import JobId
from worker.store.operators.operator_store import OperatorStore


async def act(
    operators: OperatorStore,
    request: web.Request,
    action: BulkAction,
    job_ids: Sequence[JobId],
    *,
    force: bool = False,
    idempotency: Idempotency | None = None,
) -> list[BulkResult]:
    """Retry or cancel the jobs one by one, and add each result to the audit entries. `force`: for a retry."""
    results: list[BulkResult] = []
    entries = request[EACH] = []  # filled job by job, because the request may be interrupted
    for job_id in job_ids:
        new_job, own = None, idempotency and idempotency.of_one(job_id)
        try:
            if action == "retry":
                new_job = (
                    await operators.retry(
                        job_id,
                        request_id=request[REQUEST_ID],
                        force=force,
                        in_bulk=True,
                        by=request[TOKEN].actor,
                        idempotency=own,
                    )
                ).id
            else:
                await operators.cancel(job_id, idempotency=own)
            result = BulkResult(id=job_id, done=True, job_id=new_job, code=None, detail=None)
        except errors.Refused as refusal:
            result = BulkResult(id=job_id, done=False, job_id=None, code=refusal.code, detail=refusal.detail)
        results.append(result)
        entry = {"job": job_id, "reason": f"{action}, forced" if force else action, "code": result.code or ""}
        entries.append(entry | ({"made": f"job {new_job}"} if new_job else {}))
    return results


async def preview(operators: OperatorStore, job_ids: Sequence[JobId], *, force: bool) -> list[BulkResult]:
    """Show what a retry of the jobs would do."""
    found = {one.job.id: one for one in await operators.retries(job_ids, force=force)}
    return [would_retry(job_id, found.get(job_id)) for job_id in job_ids]
