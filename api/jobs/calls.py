"""The calls of jobs: those of customers, and those of operators."""

from aiohttp import web

from api.http import reading
from api.http.answers import answer, cursor_answer, page_answer
from api.http.callers import Entering
from api.http.calls import API, FOR_OPERATORS, JOB_HEADERS, OPS, Link, Phrase, Reply, Table, links
from api.http.fields import JOB_ID
from api.http.marks import REASON, REQUEST_ID
from api.http.reading import in_path, operator_key
from api.jobs import bodies, bulk, examples
from api.jobs.bodies import BulkBody, BulkResults, DisksQuery, JobsQuery, OpsJobsQuery, RetryQuery
from worker.store import errors
from worker.store.access.tokens import Permission, Token
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import JobState
from worker.store.operators.operator_store import OperatorStore

JOBS = f"{API}jobs/"
ONE_JOB = f"{JOBS}{{job_id}}/"
OPS_JOBS = f"{OPS}jobs/"
ONE_OPS_JOB = f"{OPS_JOBS}{{job_id}}/"

JOB_OF_HEADER = {"job_id": "$response.header.X-Job-Id"}
FOLLOW = Link("show_job", JOB_OF_HEADER, "Follow the job.")
OPS_ACTIONS = ("ops_retry_job", "ops_cancel_job", "ops_resolve_job")
TO_CHANGE = (errors.NodeUnavailable, errors.ServerBusy, errors.ServerNotReady)
# refusals of the admission of a retry
RETRY = (
    *(errors.JobNotFound, errors.JobNotRetryable, errors.RetryNeedsForce),
    *(errors.ServerNotFound, errors.SnapshotNotFound, errors.SnapshotNotReady),
    *(errors.SnapshotProtected, errors.SnapshotLimitReached, errors.NameTaken),
    *(errors.UndoUnavailable, errors.StoreNearlyFull, *TO_CHANGE),
)

call: Table[Entering] = Table("jobs", JOB_ID, about="The work of the service: follow, cancel or undo it.")
ops_call: Table[Token] = Table("operators", JOB_ID, **FOR_OPERATORS)


class JobCalls:
    def __init__(self, store: CustomerStore) -> None:
        self._store = store

    @call(
        f"POST {API}restores/{{job_id}}/undo/",
        Reply(
            202,
            {"undo": examples.UNDO_WAITS},
            "The undo was accepted; follow the new job.",
            headers=JOB_HEADERS,
            links=(FOLLOW,),
        ),
        query=DisksQuery,
        refusals=(errors.JobNotFound, errors.UndoUnavailable, errors.StoreNearlyFull, *TO_CHANGE),
        permission=Permission.SNAPSHOTS_RESTORE,
        audit=Phrase("undid the restore {job}", "undo the restore {job}"),
    )
    async def undo_restore(self, request: web.Request, caller: Entering) -> web.Response:
        """Undo a restore.

        Brings back the data that the restore of that job overwrote. The data is kept for 24 hours, for the latest
        restore of each server. An undo is itself a restore and can be undone. Takes no body, or `{}`.
        """
        job = await self._store.undo(
            account_id=caller,
            job_id=in_path(request, JOB_ID),
            request_id=request[REQUEST_ID],
            present_only=reading.query(request, DisksQuery).present_only,
            idempotency=reading.idempotency(request),
        )
        return answer(bodies.job(job), status=202, headers=bodies.job_headers(job.id))

    @call(f"GET {JOBS}", Reply(200, {"one_job": examples.JOBS}, "One page of the list."), query=JobsQuery)
    async def list_jobs(self, request: web.Request, caller: Entering) -> web.Response:
        """List jobs.

        Lists the account's jobs of the last 30 days, newest first. Filter by server, state, or the time at which
        they were queued (`since`, `until`).
        """
        query = reading.query(request, JobsQuery)
        page = await self._store.jobs(
            account_id=caller,
            server_id=query.server_id,
            state=query.state and JobState(query.state),
            offset=query.offset,
            limit=query.page_size,
            since=query.since,
            until=query.until,
        )
        return page_answer(request, query, page, bodies.job)

    @call(
        f"GET {ONE_JOB}",
        Reply(
            200,
            {"completed": examples.COMPLETED, "failed": examples.FAILED},
            "The job.",
            links=(
                Link("undo_restore", {"job_id": "$response.body#/id"}, "Undo it, if it is a completed restore."),
                Link("show_snapshot", {"snapshot_id": "$response.body#/snapshot/id"}, "Show its snapshot."),
            ),
        ),
        refusals=(errors.JobNotFound,),
    )
    async def show_job(self, request: web.Request, caller: Entering) -> web.Response:
        """Show a job.

        Shows the progress of a job. `state` goes from `queued` to `in_progress`, then to `completed` or `failed`.
        """
        return answer(bodies.job(await self._store.job(account_id=caller, job_id=in_path(request, JOB_ID))))

    @call(
        f"POST {ONE_JOB}cancel/",
        Reply(200, {"cancelled": examples.CANCELLED}, "The job, which has ended."),
        refusals=(errors.JobNotFound, errors.JobNotCancellable),
        audit=Phrase("cancelled {job}", "cancel {job}"),
    )
    async def cancel_job(self, request: web.Request, caller: Entering) -> web.Response:
        """Cancel a job.

        Cancels a job that its node has not started. Its state is then `failed`, with the code `cancelled`. Takes no
        body, or `{}`.
        """
        cancelled = await self._store.cancel(
            account_id=caller, job_id=in_path(request, JOB_ID), idempotency=reading.idempotency(request)
        )
        return answer(bodies.job(cancelled))


class OpsJobCalls:
    """`runbook_url`: URL of the page with a section for each error of a job."""

    def __init__(self, operators: OperatorStore, *, runbook_url: str) -> None:
        self._operators = operators
        self._runbook_url = runbook_url

    @ops_call(
        f"GET {OPS_JOBS}",
        Reply(
            200,
            {"jobs": examples.OPS_JOBS},
            links=links("ops_show_job", *OPS_ACTIONS, job_id="$response.body#/results/0/id"),
        ),
        query=OpsJobsQuery,
    )
    async def ops_list_jobs(self, request: web.Request, _: Token) -> web.Response:
        """List all jobs.

        Lists the jobs of the last 30 days, newest first by the time at which they were queued. With several filters, a
        page can be short or empty even though more entries follow.
        """
        query = reading.query(request, OpsJobsQuery)
        page = await self._operators.jobs(query.filter, query.cursor)
        return cursor_answer(request, page, bodies.OpsJobList, bodies.ops_job_summary)

    @ops_call(
        f"POST {OPS_JOBS}bulk/", Reply(200, {"bulk_results": examples.BULK_RESULTS}), body={"bulk": examples.BULK}
    )
    async def ops_bulk_jobs(self, request: web.Request, token: Token) -> web.Response:
        """Retry or cancel several jobs.

        Each job succeeds or fails on its own. A bulk retry follows the rules of a single retry. It also leaves
        out, with `job_not_retryable`, jobs that were cancelled or whose server has had a later job: retry these
        individually. With `dry_run`, nothing is changed: `done` shows which jobs would be retried.
        """
        body = await reading.body(request, BulkBody)
        if body.dry_run:
            request[REASON] = "retry, dry run"
            results = await bulk.preview(self._operators, body.ids, force=body.force)
            return answer(BulkResults(results=tuple(results)))
        key = operator_key(request, token, body)
        if key is not None:
            await self._operators.once(key)
        results = await bulk.act(self._operators, request, body.action, body.ids, force=body.force, idempotency=key)
        return answer(BulkResults(results=tuple(results)))

    @ops_call(
        f"GET {ONE_OPS_JOB}",
        Reply(200, {"failed": examples.OPS_FAILED}, links=links(*OPS_ACTIONS, job_id="$response.body#/id")),
        refusals=(errors.JobNotFound,),
    )
    async def ops_show_job(self, request: web.Request, _: Token) -> web.Response:
        """Show any job.

        Shows the job with the times of its steps and its last log lines.
        """
        found = await self._operators.job(in_path(request, JOB_ID))
        return answer(bodies.ops_job(found, runbook_url=self._runbook_url))

    @ops_call(
        f"POST {ONE_OPS_JOB}retry/",
        Reply(
            202, {"retried": examples.OPS_RETRIED}, headers=JOB_HEADERS, links=(Link("ops_show_job", JOB_OF_HEADER),)
        ),
        query=RetryQuery,
        refusals=RETRY,
        audit=Phrase("retried {job}", "retry {job}"),
    )
    async def ops_retry_job(self, request: web.Request, token: Token) -> web.Response:
        """Retry a failed job.

        Creates a new job that does the same again, if the limits allow it. A job can be retried once; `retried_by`
        is then the ID of the new job. While its server is stranded, it cannot be retried. A retry that would override
        something newer is refused with `retry_needs_force`: the server has had a later job, the job failed more than an
        hour ago (`retry_within_seconds`), or a restore or undo would overwrite data that the server has written since.
        Takes no body, or `{}`.
        """
        job_id, force = in_path(request, JOB_ID), reading.query(request, RetryQuery).force
        if force:
            request[REASON] = "forced"
        job = await self._operators.retry(
            job_id,
            request_id=request[REQUEST_ID],
            force=force,
            by=token.actor,
            idempotency=operator_key(request, token),
        )
        return answer(bodies.ops_job_summary(job), status=202, headers=bodies.job_headers(job.id, base=OPS))

    @ops_call(
        f"POST {ONE_OPS_JOB}cancel/",
        Reply(200, {"cancelled": examples.OPS_CANCELLED}),
        refusals=(errors.JobNotFound, errors.JobNotCancellable),
        audit=Phrase("cancelled {job}", "cancel {job}"),
    )
    async def ops_cancel_job(self, request: web.Request, token: Token) -> web.Response:
        """Cancel any job.

        Cancels a `queued` job, as its owner can. Takes no body, or `{}`.
        """
        cancelled = await self._operators.cancel(in_path(request, JOB_ID), idempotency=operator_key(request, token))
        return answer(bodies.ops_job_summary(cancelled))

    @ops_call(
        f"POST {ONE_OPS_JOB}resolve/",
        Reply(200, {"resolved": examples.OPS_RESOLVED}),
        body={"reason": examples.REASON},
        refusals=(errors.JobNotFound, errors.JobNotStranded),
        audit=Phrase("resolved {job}", "resolve {job}"),
    )
    async def ops_resolve_job(self, request: web.Request, token: Token) -> web.Response:
        """Resolve a stranded server.

        Marks the server that the job stranded as repaired.
        """
        job_id, why = in_path(request, JOB_ID), await reading.reason(request)
        resolved = await self._operators.resolve(
            job_id, by=token.name, reason=why.reason, idempotency=operator_key(request, token, why)
        )
        return answer(bodies.ops_job(resolved, runbook_url=self._runbook_url))
