"""One method per call of the operators: parse, one call of the store, render."""

from aiohttp import web
from pydantic import BaseModel

from api import bodies, ops_bodies, ops_requests
from api.events.streams import Streams, opened
from api.http import reading
from api.http.callers import EACH, MADE, REASON, Callers, bearer
from api.ops_requests import (
    AuditQuery,
    BulkBody,
    CursorQuery,
    OpsJobsQuery,
    OpsNodesQuery,
    OpsServersQuery,
    ReasonBody,
    TokenBody,
    TokensQuery,
)
from worker.store import errors
from worker.store.access.tokens import Permission, Token, Tokens
from worker.store.calls import Idempotency
from worker.store.customers.customer_store import CustomerStore, SnapshotFilter
from worker.store.model import SNAPSHOTS_PER_SERVER, JobId, JobState
from worker.store.operators.operator_store import Cursor, JobFilter, OperatorStore

SHOWN = Cursor(limit=100)  # of a list that stands within another answer
SNAPSHOTS_SHOWN = 20 * SNAPSHOTS_PER_SERVER  # the failed ones come on top of the five


class OpsHandlers:
    """The calls of the operators. `body_seconds`: how long a client may take to send a body; `runbook_url`: of the page
    that the errors of jobs point into."""

    def __init__(
        self,
        operators: OperatorStore,
        store: CustomerStore,
        tokens: Tokens,
        streams: Streams,
        callers: Callers,
        *,
        body_seconds: float,
        runbook_url: str,
    ) -> None:
        self._operators = operators
        self._store = store
        self._tokens = tokens
        self._streams = streams
        self._callers = callers
        self._body_seconds = body_seconds
        self._runbook_url = runbook_url

    async def ops_overview(self, _: web.Request, __: Token) -> web.Response:
        return bodies.answer(ops_bodies.glance(await self._operators.overview()))

    # --- nodes ---

    async def ops_list_nodes(self, request: web.Request, _: Token) -> web.Response:
        query = reading.query(request, OpsNodesQuery)
        part = await self._operators.nodes(state=query.state, sort=query.sort, cursor=query.cursor)
        return bodies.answer(ops_bodies.nodes(part), headers=ops_bodies.follow(request.rel_url, part.after))

    async def ops_show_node(self, request: web.Request, _: Token) -> web.Response:
        name = ops_requests.node(request)
        found = await self._operators.node(name)
        running = await self._operators.jobs(JobFilter(node=name, state=JobState.IN_PROGRESS), SHOWN)
        return bodies.answer(ops_bodies.node_details(found, running))

    async def ops_pause_node(self, request: web.Request, token: Token) -> web.Response:
        name, why = ops_requests.node(request), await self._reason(request)
        paused = await self._operators.pause(
            name, by=token.name, reason=why.reason, idempotency=_once(request, token, why)
        )
        return bodies.answer(ops_bodies.node(paused))

    async def ops_resume_node(self, request: web.Request, token: Token) -> web.Response:
        name, why = ops_requests.node(request), await self._reason(request)
        resumed = await self._operators.resume(name, idempotency=_once(request, token, why))
        return bodies.answer(ops_bodies.node(resumed))

    async def ops_reconcile_node(self, request: web.Request, token: Token) -> web.Response:
        asked = await self._operators.reconcile(ops_requests.node(request), idempotency=_once(request, token))
        return bodies.answer(ops_bodies.node(asked), status=202)

    # --- jobs ---

    async def ops_list_jobs(self, request: web.Request, _: Token) -> web.Response:
        query = reading.query(request, OpsJobsQuery)
        part = await self._operators.jobs(query.wanted, query.cursor)
        return bodies.answer(ops_bodies.jobs(part), headers=ops_bodies.follow(request.rel_url, part.after))

    async def ops_show_job(self, request: web.Request, _: Token) -> web.Response:
        found = await self._operators.job(reading.job_id(request))
        return bodies.answer(ops_bodies.job(found, runbook_url=self._runbook_url))

    async def ops_retry_job(self, request: web.Request, token: Token) -> web.Response:
        job = await self._operators.retry(
            reading.job_id(request), request_id=request[reading.REQUEST_ID], idempotency=_once(request, token)
        )
        return bodies.answer(ops_bodies.job_summary(job), status=202, headers=ops_bodies.place(job))

    async def ops_cancel_job(self, request: web.Request, token: Token) -> web.Response:
        cancelled = await self._operators.cancel(reading.job_id(request), idempotency=_once(request, token))
        return bodies.answer(ops_bodies.job_summary(cancelled))

    async def ops_resolve_job(self, request: web.Request, token: Token) -> web.Response:
        job_id, why = reading.job_id(request), await self._reason(request)
        resolved = await self._operators.resolve(
            job_id, by=token.name, reason=why.reason, idempotency=_once(request, token, why)
        )
        return bodies.answer(ops_bodies.job(resolved, runbook_url=self._runbook_url))

    async def ops_bulk_jobs(self, request: web.Request, token: Token) -> web.Response:
        body = await reading.body(request, BulkBody, timeout_seconds=self._body_seconds)
        once = _once(request, token, body)
        if once is not None:
            await self._operators.once(once)
        results: list[ops_bodies.BulkResult] = []
        each = request[EACH] = []  # as it goes: it may be broken off
        for job_id in body.ids:
            results.append(await self._one_of_many(request, body.action, job_id, once))
            made = results[-1].job_id
            told = {"job": job_id, "reason": body.action, "code": results[-1].code or ""}
            each.append(told | ({"made": f"job {made}"} if made else {}))
        return bodies.answer(ops_bodies.BulkResults(results=tuple(results)))

    async def _one_of_many(
        self, request: web.Request, action: str, job_id: JobId, once: Idempotency | None
    ) -> ops_bodies.BulkResult:
        made, own = None, once and once.of_one(job_id)
        try:
            if action == "retry":
                request_id = request[reading.REQUEST_ID]
                retried = await self._operators.retry(job_id, request_id=request_id, in_bulk=True, idempotency=own)
                made = retried.id
            else:
                await self._operators.cancel(job_id, idempotency=own)
        except errors.Refused as refusal:
            return ops_bodies.BulkResult(id=job_id, done=False, job_id=None, code=refusal.code, detail=refusal.detail)
        return ops_bodies.BulkResult(id=job_id, done=True, job_id=made, code=None, detail=None)

    # --- servers, findings, audit ---

    async def ops_list_servers(self, request: web.Request, _: Token) -> web.Response:
        query = reading.query(request, OpsServersQuery)
        part = await self._operators.servers(
            node=query.node, account_id=query.account_id, stranded=query.stranded, cursor=query.cursor
        )
        return bodies.answer(ops_bodies.servers(part), headers=ops_bodies.follow(request.rel_url, part.after))

    async def ops_show_server(self, request: web.Request, _: Token) -> web.Response:
        server_id = reading.server_id(request)
        found = await self._operators.server(server_id)
        snapshots = await self._store.snapshots(
            account_id=found.view.server.account_id,
            wanted=SnapshotFilter(server_id=server_id),
            offset=0,
            limit=SNAPSHOTS_SHOWN,
        )
        latest = await self._operators.jobs(JobFilter(server_id=server_id), SHOWN)
        return bodies.answer(ops_bodies.server_details(found, snapshots, latest))

    async def ops_list_findings(self, request: web.Request, _: Token) -> web.Response:
        part = await self._operators.findings(reading.query(request, CursorQuery).cursor)
        return bodies.answer(ops_bodies.findings(part), headers=ops_bodies.follow(request.rel_url, part.after))

    async def ops_list_audit(self, request: web.Request, _: Token) -> web.Response:
        query = reading.query(request, AuditQuery)
        part = await self._operators.audit(query.wanted, since=query.since, until=query.until, cursor=query.cursor)
        return bodies.answer(ops_bodies.audit(part), headers=ops_bodies.follow(request.rel_url, part.after))

    # --- tokens ---

    async def ops_list_tokens(self, request: web.Request, _: Token) -> web.Response:
        wanted = reading.query(request, TokensQuery).account_id
        found = [one for one in await self._tokens.all() if wanted in {None, one.account_id}]
        return bodies.answer(ops_bodies.TokenList(results=tuple(map(ops_bodies.token, found))))

    async def ops_create_token(self, request: web.Request, token: Token) -> web.Response:
        body = await reading.body(request, TokenBody, timeout_seconds=self._body_seconds)
        new = await self._tokens.create(
            name=body.name,
            account_id=body.account_id,
            permissions=body.granted,
            lifetime=body.lifetime,
            idempotency=_once(request, token, body),
            seed=bearer(request),
        )
        request[MADE] = f"token {new.token.id}"
        return bodies.answer(ops_bodies.new_token(new), status=201, headers={"Cache-Control": "no-store"})

    async def ops_revoke_token(self, request: web.Request, _: Token) -> web.Response:
        token_id = ops_requests.token_id(request)
        if not await self._tokens.revoke(token_id):
            raise errors.TokenNotFound(f"There is no token {token_id}.")
        return web.Response(status=204)

    async def ops_follow_events(self, request: web.Request, _: Token) -> web.StreamResponse:
        return await self._streams.send(
            request,
            opened(),
            None,
            last_event_id=reading.last_event_id(request),
            still_allowed=lambda: self._callers.still(request, Permission.OPERATOR),
        )

    async def _reason(self, request: web.Request) -> ReasonBody:
        """Why it is done, for the audit too. Raises Problem."""
        body = await reading.body(request, ReasonBody, timeout_seconds=self._body_seconds)
        request[REASON] = body.reason
        return body


def _once(request: web.Request, token: Token, content: BaseModel | None = None) -> Idempotency | None:
    """The operator's mark on a POST: an operator has no account, so that its keys are its token's. Raises Problem."""
    return reading.idempotency(request, content, owner=f"token:{token.id}")
