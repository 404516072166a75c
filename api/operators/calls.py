"""The calls of the operators: the overview, nodes, findings, the audit log and tokens."""

from functools import partial

from aiohttp import web

from api.http import marks, reading
from api.http.answers import answer, cursor_answer, from_record
from api.http.callers import bearer
from api.http.calls import FOR_OPERATORS, OPS, Link, Phrase, Reply, Table, links
from api.http.fields import ACCOUNT_ID, NODE, PeriodQuery
from api.http.reading import in_path, operator_key
from api.jobs.examples import REASON
from api.operators import bodies, examples
from api.operators.audit_words import AuditWords
from api.operators.bodies import (
    TOKEN_ID,
    AuditCheckQuery,
    AuditQuery,
    LimitsBody,
    OpsNodesQuery,
    PauseBody,
    TokenBody,
    TokenList,
    TokensQuery,
)
from api.operators.overview import overview
from worker.store import errors
from worker.store.access.tokens import Token, Tokens
from worker.store.access.usage import TokenUses
from worker.store.calls import Cursor
from worker.store.model import JobState
from worker.store.operators.operator_store import JobFilter, OperatorStore

NODES = f"{OPS}nodes/"
ONE_ACCOUNT = f"{OPS}accounts/{{account_id}}/"
ONE_NODE = f"{NODES}{{node}}/"
NODE_ACTIONS = ("ops_pause_node", "ops_resume_node", "ops_reconcile_node")
RUNNING_JOBS = Cursor(limit=100)

call: Table[Token] = Table("operators", NODE, TOKEN_ID, ACCOUNT_ID, **FOR_OPERATORS)


class OperatorCalls:
    def __init__(self, operators: OperatorStore, tokens: Tokens, uses: TokenUses, *, words: AuditWords) -> None:
        self._operators = operators
        self._tokens = tokens
        self._uses = uses
        self._words = words

    @call(f"GET {OPS}overview/", Reply(200, {"overview": examples.OVERVIEW}))
    async def ops_overview(self, _: web.Request, __: Token) -> web.Response:
        """Show the overview.

        Shows the current state of the cell, and the last 24 hours in intervals of 15 minutes.
        """
        return answer(overview(await self._operators.overview()))

    # --- nodes ---

    @call(
        f"GET {NODES}",
        Reply(200, {"nodes": examples.NODES}, links=links("ops_show_node", node="$response.body#/results/0/name")),
        query=OpsNodesQuery,
    )
    async def ops_list_nodes(self, request: web.Request, _: Token) -> web.Response:
        """List nodes.

        Sorted by name unless `sort` is given.
        """
        query = reading.query(request, OpsNodesQuery)
        page = await self._operators.nodes(state=query.state, sort=query.sort, cursor=query.cursor)
        return cursor_answer(request, page, bodies.OpsNodeList, bodies.node)

    @call(
        f"GET {ONE_NODE}",
        Reply(200, {"node_details": examples.NODE_DETAILS}, links=links(*NODE_ACTIONS, node="$response.body#/name")),
        refusals=(errors.NodeNotFound,),
    )
    async def ops_show_node(self, request: web.Request, _: Token) -> web.Response:
        """Show a node.

        Shows a node with its jobs in progress.
        """
        name = in_path(request, NODE)
        found = await self._operators.node(name)
        running = await self._operators.jobs(JobFilter(node=name, state=JobState.IN_PROGRESS), RUNNING_JOBS)
        return answer(bodies.node_details(found, running))

    @call(
        f"POST {ONE_NODE}pause/",
        Reply(200, {"paused": examples.PAUSED}),
        body={"for_an_upgrade": examples.PAUSE},
        refusals=(errors.NodeNotFound, errors.NodeBootUnknown),
        audit=Phrase("paused {node}", "pause {node}"),
    )
    async def ops_pause_node(self, request: web.Request, token: Token) -> web.Response:
        """Pause a node.

        The node starts no new jobs; running jobs finish. The service still accepts jobs, which stay `queued`. The pause
        ends with a resume, at `until`, or with `until_back` when the node's host has rebooted, for example with a
        new kernel. Pausing a paused node replaces its pause.
        """
        name, why = in_path(request, NODE), await reading.body(request, PauseBody)
        request[marks.REASON] = why.audited
        paused = await self._operators.pause(
            name,
            by=token.name,
            reason=why.reason,
            until=why.until,
            until_back=why.until_back,
            idempotency=operator_key(request, token, why),
        )
        return answer(bodies.node(paused))

    @call(
        f"POST {ONE_NODE}resume/",
        Reply(200, {"node": examples.NODE}),
        body={"reason": REASON},
        refusals=(errors.NodeNotFound,),
        audit=Phrase("resumed {node}", "resume {node}"),
    )
    async def ops_resume_node(self, request: web.Request, token: Token) -> web.Response:
        """Resume a node.

        Waiting jobs start immediately.
        """
        name, why = in_path(request, NODE), await reading.reason(request)
        resumed = await self._operators.resume(name, idempotency=operator_key(request, token, why))
        return answer(bodies.node(resumed))

    @call(
        f"POST {ONE_NODE}reconcile/",
        Reply(202, {"node": examples.NODE}),
        refusals=(errors.NodeNotFound,),
        audit=Phrase("had {node} reconciled", "have {node} reconciled"),
    )
    async def ops_reconcile_node(self, request: web.Request, token: Token) -> web.Response:
        """Reconcile a node.

        The node's worker compares all its servers with the service's records. It starts within seconds. Takes no body,
        or `{}`.
        """
        node = await self._operators.reconcile(in_path(request, NODE), idempotency=operator_key(request, token))
        return answer(bodies.node(node), status=202)

    # --- accounts ---

    @call(f"GET {ONE_ACCOUNT}", Reply(200, {"account": examples.ACCOUNT}), refusals=(errors.AccountNotFound,))
    async def ops_show_account(self, request: web.Request, _: Token) -> web.Response:
        """Show an account.

        Shows the account's limits. The service knows accounts from their servers; an unknown account has the default
        limits.
        """
        return answer(bodies.account(await self._operators.account(in_path(request, ACCOUNT_ID))))

    @call(
        f"PUT {ONE_ACCOUNT}",
        Reply(200, {"account": examples.ACCOUNT}),
        body={"limits": examples.LIMITS},
        refusals=(errors.AccountNotFound,),
        audit=Phrase("set {made} for {account}", "set the limits of {account}"),
    )
    async def ops_limit_account(self, request: web.Request, _: Token) -> web.Response:
        """Limit an account.

        Sets how many snapshots each of the account's servers may have. A lower limit deletes nothing by itself: creates
        are refused until enough snapshots are deleted, and the next run of a schedule deletes the oldest scheduled
        ones.
        """
        account_id, body = in_path(request, ACCOUNT_ID), await reading.body(request, LimitsBody)
        request[marks.ACCOUNT], request[marks.MADE] = account_id, f"snapshots_max {body.snapshots_max or 'default'}"
        return answer(bodies.account(await self._operators.limit_account(account_id, snapshots_max=body.snapshots_max)))

    # --- findings, audit ---

    @call(f"GET {OPS}findings/", Reply(200, {"findings": examples.FINDINGS}), query=PeriodQuery)
    async def ops_list_findings(self, request: web.Request, _: Token) -> web.Response:
        """List findings.

        Lists the differences that reconciliation found, by server, newest first, together with refused claims of
        nodes and unreadable records. A server is listed by the time of its latest findings.
        """
        page = await self._operators.findings(reading.query(request, PeriodQuery).cursor)
        others = {
            "refused_claims": tuple(map(bodies.refused_claim, await self._operators.refused_claims())),
            "unreadable_records": tuple(map(bodies.unreadable_record, await self._operators.unreadable())),
        }
        return cursor_answer(request, page, bodies.FindingsList, bodies.server_findings, **others)

    @call(f"GET {OPS}audit/", Reply(200, {"audit": examples.AUDIT}), query=AuditQuery)
    async def ops_list_audit(self, request: web.Request, _: Token) -> web.Response:
        """List the audit log.

        Lists who did what, newest first. With filters, a page can be short or empty even though more entries follow.
        """
        query = reading.query(request, AuditQuery)
        page = await self._operators.audit(query.filter, query.cursor)
        return cursor_answer(request, page, bodies.AuditList, partial(bodies.audit_entry, words=self._words))

    @call(f"GET {OPS}audit/check/", Reply(200, {"whole": examples.AUDIT_CHECK}), query=AuditCheckQuery)
    async def ops_check_audit(self, request: web.Request, _: Token) -> web.Response:
        """Check the audit log.

        Checks whether entries are missing, changed or forged: each entry has a number and a hash of the previous
        entry. One call checks 20,000 entries, oldest first; continue with `after`.
        """
        query = reading.query(request, AuditCheckQuery)
        found = await self._operators.check_audit(after=query.after)
        faults = tuple(from_record(bodies.AuditFault, fault) for fault in found.faults)
        return answer(from_record(bodies.AuditCheck, found, faults=faults))

    # --- tokens ---

    @call(f"GET {OPS}tokens/", Reply(200, {"tokens": examples.TOKENS}), query=TokensQuery)
    async def ops_list_tokens(self, request: web.Request, _: Token) -> web.Response:
        """List tokens.

        Lists the valid tokens, without their secrets.
        """
        account_id = reading.query(request, TokensQuery).account_id
        found = [token for token in await self._tokens.all() if account_id in {None, token.account_id}]
        used = await self._uses.all()
        return answer(TokenList(results=tuple(bodies.listed_token(one, used.get(one.id)) for one in found)))

    @call(
        f"POST {OPS}tokens/",
        Reply(
            201,
            {"new_token": examples.NEW_TOKEN},
            links=(Link("ops_revoke_token", {"token_id": "$response.body#/id"}),),
        ),
        body={"token": examples.CREATE_TOKEN},
        refusals=(errors.TokenLimitReached,),
        audit=Phrase("created {made}", "create a token"),
    )
    async def ops_create_token(self, request: web.Request, token: Token) -> web.Response:
        """Create a token.

        The secret is shown only in this response.
        """
        body = await reading.body(request, TokenBody)
        new = await self._tokens.create(
            name=body.name,
            account_id=body.account_id,
            permissions=body.granted,
            lifetime=body.lifetime,
            idempotency=operator_key(request, token, body),
            seed=bearer(request),
        )
        request[marks.MADE] = f"token {new.token.id}"
        return answer(bodies.new_token(new), status=201, headers={"Cache-Control": "no-store"})

    @call(
        f"DELETE {OPS}tokens/{{token_id}}/",
        Reply(204, text="The token is revoked."),
        refusals=(errors.TokenNotFound,),
        audit=Phrase("revoked {token}", "revoke {token}"),
    )
    async def ops_revoke_token(self, request: web.Request, _: Token) -> web.Response:
        """Revoke a token.

        Calls with the token are refused from now on.
        """
        token_id = in_path(request, TOKEN_ID)
        if not await self._tokens.revoke(token_id):
            raise errors.TokenNotFound.of(id=token_id)
        return web.Response(status=204)
