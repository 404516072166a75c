"""The operators' side of the store: all accounts, all nodes.

Each look is one script that follows a list kept for it, and looks at a bounded part of that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arq.connections import ArqRedis

from worker.program.configuration import NODE_SILENT_SECONDS
from worker.store import arq_queue as queue
from worker.store import errors, records, scripts
from worker.store.calls import Idempotency, for_script, redis_answers, shown_job
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import AccountId, Job, JobId, JobKind, JobState, ServerId
from worker.store.operators import records as ops_records
from worker.store.operators.overview import Counted, Overview, overview
from worker.store.operators.records import AuditEntry, CursorPage, Node, OpsJob, OpsServer, ServerFindings

SCRIPTS = (
    *("ops_jobs", "ops_job", "ops_nodes", "ops_servers", "ops_findings", "ops_audit", "ops_overview"),
    *("pause", "resolve", "ask_reconcile", "same_request"),
)


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """What is to be listed. None: whatever it is."""

    state: JobState | None = None
    kind: JobKind | None = None
    node: str | None = None
    account_id: AccountId | None = None
    server_id: ServerId | None = None
    error_code: str | None = None
    text: str | None = None  # within id, server's or snapshot's name, error's detail, request's id; in any case

    def for_script(self) -> dict[str, Any]:
        match = {
            "state": self.state,
            "kind": self.kind,
            "node": self.node,
            "account": self.account_id,
            "server": self.server_id,
            "failure_code": self.error_code,
        }
        ask: dict[str, Any] = {"match": {field: str(value) for field, value in match.items() if value is not None}}
        return ask | ({"text": self.text.lower()} if self.text else {})


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Which part of a list: so many, after a cursor."""

    limit: int
    after: str | None = None

    def for_script(self) -> dict[str, Any]:
        return {"limit": self.limit} | ({"after": self.after.split(":", 1)} if self.after else {})


class OperatorStore:
    """Every call may raise StoreUnavailable, and one that takes an `Idempotency` IdempotencyKeyReused."""

    def __init__(
        self, redis: ArqRedis, store: CustomerStore, *, node_silent_seconds: float = NODE_SILENT_SECONDS
    ) -> None:
        self._store = store
        self._silent_ms = round(node_silent_seconds * 1000)
        self._counted = Counted()
        self._scripts = {name: scripts.load(redis, f"operators/{name}") for name in SCRIPTS}

    async def _call(self, name: str, *arguments: Any) -> Any:
        with redis_answers():
            return await self._scripts[name](args=list(arguments))

    async def _do(self, name: str, idempotency: Idempotency | None, **ask: str) -> None:
        """What the script does, unless it was done before with that key. Raises what it refuses."""
        verdict, *code = await self._call(name, json.dumps({**ask, "idempotency": for_script(idempotency)}))
        if verdict == b"admitted":
            return
        refused = (
            errors.NodeNotFound(f"There is no node {ask.get('node')}."),
            errors.JobNotFound(f"There is no job {ask.get('job')}."),
            errors.JobNotStranded("The job has stranded no server, or that was resolved before."),
            errors.IdempotencyKeyReused(errors.KEY_REUSED),
        )
        raise next(refusal for refusal in refused if refusal.code == code[0].decode())

    async def overview(self) -> Overview:
        return overview(await self._call("ops_overview", self._silent_ms, self._counted.last), self._counted)

    # --- jobs ---

    async def jobs(self, wanted: JobFilter, cursor: Cursor) -> CursorPage[Job]:
        """Newest first."""
        count, after, *rows = await self._call("ops_jobs", json.dumps(wanted.for_script() | cursor.for_script()))
        return _slice(count, after, tuple(map(shown_job, rows)))

    async def job(self, job_id: JobId) -> OpsJob:
        """Raises JobNotFound."""
        found = await self._call("ops_job", job_id)
        if found is None:
            raise errors.JobNotFound(f"There is no job {job_id}.")
        return ops_records.job(found)

    async def once(self, idempotency: Idempotency) -> None:
        """Note what is asked with that key, before it is done in parts."""
        await self._do("same_request", idempotency)

    async def retry(
        self, job_id: JobId, *, request_id: str, in_bulk: bool = False, idempotency: Idempotency | None = None
    ) -> Job:
        """Admit a failed job anew, as a job of its own. `in_bulk`: as one of many, see `CustomerStore.again`. Raises
        JobNotFound, JobNotRetryable, and whatever the admission of its kind raises."""
        job = (await self.job(job_id)).job
        if job.state is not JobState.FAILED:
            raise errors.JobNotRetryable(f"The job is {job.state}; only a failed one can be tried again.")
        return await self._store.again(job, request_id=request_id, in_bulk=in_bulk, idempotency=idempotency)

    async def cancel(self, job_id: JobId, *, idempotency: Idempotency | None = None) -> Job:
        """Raises JobNotFound or JobNotCancellable."""
        job = (await self.job(job_id)).job
        return await self._store.cancel(account_id=job.account_id, job_id=job_id, idempotency=idempotency)

    async def resolve(self, job_id: JobId, *, by: str, reason: str, idempotency: Idempotency | None = None) -> OpsJob:
        """Note that the server which a job has stranded was put right. Raises JobNotFound or JobNotStranded."""
        await self._do("resolve", idempotency, job=job_id, by=by, reason=reason)
        return await self.job(job_id)

    # --- nodes ---

    async def nodes(self, *, state: str | None, sort: str, cursor: Cursor) -> CursorPage[Node]:
        """`state`: alive, silent or paused; `sort`: name, heartbeat, queued or free, "-": the other way round."""
        ask = {"sort": sort.lstrip("-"), "descending": sort.startswith("-"), "silent_ms": self._silent_ms}
        ask |= cursor.for_script() | ({"state": state} if state else {})
        after, *rows = await self._call("ops_nodes", json.dumps(ask))
        return _slice(-1, after, tuple(map(ops_records.node, rows)))

    async def node(self, name: str) -> Node:
        """Raises NodeNotFound."""
        _, *rows = await self._call("ops_nodes", json.dumps({"node": name, "silent_ms": self._silent_ms}))
        if not rows:
            raise errors.NodeNotFound(f"There is no node {name}.")
        return ops_records.node(rows[0])

    async def pause(self, name: str, *, by: str, reason: str, idempotency: Idempotency | None = None) -> Node:
        """Have a node take no new job; those that run go on, those that wait wait. Raises NodeNotFound."""
        return await self._turn(name, reason, by, idempotency)

    async def resume(self, name: str, *, idempotency: Idempotency | None = None) -> Node:
        """Raises NodeNotFound."""
        return await self._turn(name, "", "", idempotency)

    async def _turn(self, name: str, reason: str, by: str, idempotency: Idempotency | None) -> Node:
        wake = queue.wake_key(queue.queue_name(name))
        await self._do("pause", idempotency, node=name, reason=reason, by=by, wake=wake)
        return await self.node(name)

    async def reconcile(self, name: str, *, idempotency: Idempotency | None = None) -> Node:
        """Have a node reconcile all its servers; it hears of it within seconds. Raises NodeNotFound."""
        await self._do("ask_reconcile", idempotency, node=name)
        return await self.node(name)

    # --- servers, findings, audit ---

    async def servers(
        self, *, node: str | None, account_id: AccountId | None, stranded: bool, cursor: Cursor
    ) -> CursorPage[OpsServer]:
        """In the order of their ids; the stranded ones in that in which they stranded."""
        match = {"node": node, "account": account_id and str(account_id), "stranded": stranded or None}
        ask = {field: value for field, value in match.items() if value is not None} | cursor.for_script()
        count, after, *rows = await self._call("ops_servers", json.dumps(ask))
        return _slice(count, after, tuple(map(ops_records.server, rows)))

    async def server(self, server_id: ServerId) -> OpsServer:
        """Raises ServerNotFound."""
        _, _, *rows = await self._call("ops_servers", json.dumps({"server": str(server_id)}))
        if not rows:
            raise errors.ServerNotFound(f"There is no server {server_id}.")
        return ops_records.server(rows[0])

    async def findings(self, cursor: Cursor) -> CursorPage[ServerFindings]:
        """Newest first."""
        count, after, *rows = await self._call("ops_findings", json.dumps(cursor.for_script()))
        return _slice(count, after, tuple(map(ops_records.server_findings, rows)))

    async def audit(
        self, wanted: Mapping[str, str], *, since: datetime | None, until: datetime | None, cursor: Cursor
    ) -> CursorPage[AuditEntry]:
        """Newest first; `wanted`: entries with these fields."""
        # the stream knows no moment before 1970
        before = str(max(0, int(records.milliseconds(until)) - 1)) if until else "+"
        ask = {
            "match": dict(wanted),
            "from": str(max(0, int(records.milliseconds(since)))) if since else "-",
            "to": f"({cursor.after}" if cursor.after else before,
            "limit": cursor.limit,
        }
        after, *rows = await self._call("ops_audit", json.dumps(ask))
        return CursorPage(count=None, after=after.decode() or None, results=tuple(map(ops_records.audit_entry, rows)))


def _slice(count: int, after: list[bytes], results: tuple[Any, ...]) -> CursorPage[Any]:
    return CursorPage(count=None if count < 0 else count, after=ops_records.cursor(after), results=results)
