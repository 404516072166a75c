"""The operators' side of the store: all accounts, all nodes.

One script reads each list; a call reads a bounded number of entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from redis.asyncio import Redis

from worker.store import arq_queue as queue
from worker.store import errors, records
from worker.store.access import audit_check
from worker.store.access.audit import list_of
from worker.store.access.audit_check import AuditCheck
from worker.store.calls import Actor, Cursor, CursorPage, Idempotency, Scripts, accepted, for_script, given, shown_job
from worker.store.customers.customer_store import CustomerStore, RetryRule
from worker.store.model import (
    NODE_SILENT_SECONDS,
    RETRY_WITHIN_SECONDS,
    WAITING_SECONDS,
    AccountId,
    Job,
    JobId,
    JobKind,
    JobState,
    ServerId,
    SnapshotId,
)
from worker.store.operators import nodes
from worker.store.operators import records as ops_records
from worker.store.operators.finding import HITS_MOST, Hit, KnownSnapshot, asked, hit, key_of_hit, known_snapshot
from worker.store.operators.memory import Memory, memory_of
from worker.store.operators.nodes import Node
from worker.store.operators.overview import HOUR_MS, LAST_DAY, WEEK, Counted, Overview, Window, learned, overview
from worker.store.operators.records import (
    AccountLimits,
    AuditEntry,
    OpsJob,
    OpsServer,
    RefusedClaim,
    Retry,
    ServerFindings,
    UnreadableRecord,
)
from worker.store.outcome import LEFT_ITS_NODE
from worker.store.schedules.schedules import Schedule, shown_schedule

REFUSED_CLAIMS_SHOWN = 100
UNREADABLE_LISTED = 100


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs to list. A filter of None matches any."""

    state: JobState | None = None
    kind: JobKind | None = None
    node: str | None = None
    account_id: AccountId | None = None
    server_id: ServerId | None = None
    error_code: str | None = None
    cancelled: bool | None = None  # only cancelled jobs, or only others
    text: str | None = None  # part of the ID, server or snapshot name, error detail or request ID; case-insensitive
    ended_since: datetime | None = None
    ended_until: datetime | None = None  # exclusive

    def for_script(self) -> dict[str, Any]:
        match = given(
            state=self.state,
            kind=self.kind,
            node=self.node,
            account=self.account_id,
            server=self.server_id,
            failure_code=self.error_code,
        )
        ask: dict[str, Any] = {"match": match} | (_text(self.text) if self.text else {})
        ask |= given(
            ended_since_ms=self.ended_since and records.milliseconds(self.ended_since),
            ended_until_ms=self.ended_until and records.milliseconds(self.ended_until),
        )
        return ask | ({} if self.cancelled is None else {"cancelled": self.cancelled})


def _text(text: str) -> dict[str, Any]:
    """A text that is searched for in any case. Lua knows only the letters a to z."""
    lower = text.lower()
    others = {letter.upper(): letter for letter in lower if not letter.isascii()}
    return {"text": lower, "fold": {upper: low for upper, low in others.items() if upper != low and len(upper) == 1}}


@dataclass(frozen=True, kw_only=True)
class AuditFilter:
    """Which entries of the audit log to list. `about`: IDs that an entry must name, by `snapshot`, `server` or `node`.
    `what`: `changes` or `logins`; None: both."""

    fields: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    what: str | None = None

    def for_script(self) -> dict[str, Any]:
        return {"match": dict(self.fields), "about": dict(self.about)} | given(what=self.what, list=self._list)

    @property
    def _list(self) -> str | None:
        """The shortest list that contains all matching entries."""
        of_fields = {"request": "request_id", "job": "job", "token": "token", "server": "server", "account": "account"}
        named = {kind: self.fields[name] for kind, name in of_fields.items() if name in self.fields} | {**self.about}
        for kind in ("request", "job", "snapshot", "server", "node", "token", "account"):
            if kind in named:
                return list_of(kind, named[kind])
        return None


class OperatorStore(Scripts):
    """Every call may raise StoreUnavailable, and a call with an `Idempotency` also IdempotencyKeyReused."""

    def __init__(
        self,
        redis: Redis,
        store: CustomerStore,
        *,
        node_silent_seconds: float = NODE_SILENT_SECONDS,
        retry_within_seconds: float = RETRY_WITHIN_SECONDS,
        waiting_seconds: float = WAITING_SECONDS,
    ) -> None:
        """`retry_within_seconds`: how long after its failure a job can be retried without force. `waiting_seconds`: how
        long a job waits for a silent node."""
        super().__init__(redis)
        self._rule = RetryRule(within_seconds=retry_within_seconds)
        self._store = store
        self._silent_ms = round(node_silent_seconds * 1000)
        self._waiting_seconds = waiting_seconds
        self._counted = Counted()
        self._counted_by_hour = Counted(period_ms=HOUR_MS, kept=WEEK)

    async def _do(self, name: str, idempotency: Idempotency | None, *, about: str = "", **ask: Any) -> None:
        """Run a script that changes something, unless it already ran with this key. Raises its refusals. `about`: the
        ID of the changed object."""
        accepted(await self._call(name, {**ask, "idempotency": for_script(idempotency)}), idempotency, id=about)

    async def overview(self, window: Window = LAST_DAY) -> Overview:
        """`window`: the time window of the charts."""
        ask = {"silent_ms": self._silent_ms, "since": self._counted.last}
        answer = await self._call("operators/overview", ask)
        by_hour = await self._hours() if window.period_ms == HOUR_MS else None
        return await self._read(lambda: overview(answer, self._counted, window, by_hour))

    async def _hours(self) -> Counted:
        hours = await self._call("operators/hours", {"since": self._counted_by_hour.last})
        return await self._read(lambda: learned(self._counted_by_hour, hours))

    async def memory(self) -> Memory:
        return await memory_of(self._redis)

    # --- jobs ---

    async def jobs(self, wanted: JobFilter, cursor: Cursor) -> CursorPage[Job]:
        """Newest first."""
        count, after, *rows = await self._call(
            "operators/jobs", wanted.for_script() | cursor.for_script() | {"silent_ms": self._silent_ms}
        )
        return CursorPage.of(count, after, await self._many(shown_job, rows, kind="job"))

    async def job(self, job_id: JobId) -> OpsJob:
        """Raises JobNotFound."""
        ask = {"job": job_id, "rule": self._rule.for_script(), "silent_ms": self._silent_ms}
        found = await self._call("operators/job", ask)
        if found is None:
            raise errors.JobNotFound.of(id=job_id)
        read = partial(ops_records.job, waiting_seconds=self._waiting_seconds)
        return await self._one(read, [job_id.encode(), *found], kind="job")

    async def once(self, idempotency: Idempotency) -> None:
        """Record a bulk request under its key, before its parts are executed one by one."""
        await self._do("operators/same_request", idempotency)

    async def retries(self, job_ids: Sequence[JobId], *, force: bool) -> tuple[Retry, ...]:
        """What a bulk retry of these jobs would do; jobs that do not exist are left out. The retry itself may refuse
        more, because of limits."""
        ask = {"jobs": job_ids, "rule": replace(self._rule, in_bulk=True, force=force).for_script()}
        rows = await self._call("operators/retries", ask)
        return await self._many(
            ops_records.retry, rows, kind="job", key_of=lambda row: f"job:{records.text(row[0][0])}"
        )

    async def retry(
        self,
        job_id: JobId,
        *,
        request_id: str,
        force: bool = False,
        in_bulk: bool = False,
        by: Actor | None = None,
        idempotency: Idempotency | None = None,
    ) -> Job:
        """Admit a new job that does the same as a failed one. `force` and `in_bulk`: see `RetryRule`. Raises
        JobNotFound, JobNotRetryable, RetryNeedsForce, or what the admission of its kind raises."""
        job, rule = (await self.job(job_id)).job, replace(self._rule, force=force, in_bulk=in_bulk)
        return await self._store.again(job, request_id=request_id, rule=rule, by=by, idempotency=idempotency)

    async def cancel(self, job_id: JobId, *, idempotency: Idempotency | None = None) -> Job:
        """Raises JobNotFound or JobNotCancellable."""
        job = (await self.job(job_id)).job
        return await self._store.cancel(account_id=job.account_id, job_id=job_id, idempotency=idempotency)

    async def resolve(self, job_id: JobId, *, by: str, reason: str, idempotency: Idempotency | None = None) -> OpsJob:
        """Mark a stranded job as resolved. Raises JobNotFound or JobNotStranded."""
        await self._do("operators/resolve", idempotency, about=job_id, job=job_id, by=by, reason=reason)
        return await self._after_change(self.job(job_id))

    # --- search, snapshots ---

    async def search(self, text: str) -> tuple[Hit, ...]:
        """Find objects by ID, the first digits of a job's ID (at least 8), or a name or its beginning. Returns at most
        20 of each kind, exact matches first. A request is found by its entry in the audit log."""
        kind, wanted = asked(text)
        if not wanted:
            return ()
        lists = {"requests": list_of("request", wanted), "uses": list_of("token", wanted.lower())}
        rows = await self._call("operators/search", {"text": wanted, "limit": HITS_MOST, **lists})
        hits = await self._many(hit, rows, kind="hit", key_of=key_of_hit)
        return tuple(sorted((one for one in hits if kind in {"", one.kind}), key=lambda one: not one.exact))

    async def snapshot(self, snapshot_id: SnapshotId) -> KnownSnapshot:
        """A snapshot, or a deleted one while its history is kept. Raises SnapshotNotFound."""
        found = await self._call("operators/snapshot", {"id": str(snapshot_id)})
        if found is None:
            raise errors.SnapshotNotFound.of(id=snapshot_id)
        return await self._one(known_snapshot, [str(snapshot_id).encode(), *found], kind="snapshot")

    # --- nodes ---

    async def nodes(self, *, state: str | None, sort: str, cursor: Cursor) -> CursorPage[Node]:
        """`state`: alive, silent, paused or failing; `sort`: name, heartbeat, queued, free or failed, with "-" in front
        for descending order."""
        ask = {"sort": sort.lstrip("-"), "descending": sort.startswith("-"), "silent_ms": self._silent_ms}
        ask |= cursor.for_script() | ({"state": state} if state else {})
        after, *rows = await self._call("operators/nodes", ask)
        return CursorPage.of(-1, after, await self._many(nodes.node, rows, kind="node"))

    async def node(self, name: str) -> Node:
        """Raises NodeNotFound."""
        _, *rows = await self._call("operators/nodes", {"node": name, "silent_ms": self._silent_ms})
        if not rows:
            raise errors.NodeNotFound.of(id=name)
        return await self._one(nodes.node, rows[0], kind="node")

    async def pause(
        self,
        name: str,
        *,
        by: str,
        reason: str,
        until: datetime | None = None,
        until_back: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Node:
        """The node starts no new job; running jobs continue, waiting jobs wait. The pause ends at `until`, or with
        `until_back` when the node's host has rebooted. Raises NodeNotFound or NodeBootUnknown."""
        until_ms = records.milliseconds(until) if until else ""
        pausing = {"reason": reason, "by": by, "until_ms": until_ms, "until_back": until_back}
        return await self._turn(name, idempotency, pausing)

    async def resume(self, name: str, *, idempotency: Idempotency | None = None) -> Node:
        """Raises NodeNotFound."""
        return await self._turn(name, idempotency, {"reason": "", "by": "", "until_ms": "", "until_back": False})

    async def _turn(self, name: str, idempotency: Idempotency | None, ask: Mapping[str, Any]) -> Node:
        wake = queue.wake_key(queue.queue_name(name))
        await self._do("operators/pause", idempotency, about=name, node=name, wake=wake, **ask)
        return await self._after_change(self.node(name))

    async def reconcile(self, name: str, *, idempotency: Idempotency | None = None) -> Node:
        """Make a node reconcile all its servers; it starts within seconds. Raises NodeNotFound."""
        await self._do("operators/ask_reconcile", idempotency, about=name, node=name)
        return await self._after_change(self.node(name))

    # --- servers, findings, audit ---

    async def servers(
        self,
        *,
        node: str | None,
        account_id: AccountId | None,
        stranded: bool,
        off: bool = False,
        cursor: Cursor,
        without_snapshot_of: timedelta | None = None,
    ) -> CursorPage[OpsServer]:
        """Sorted by ID; stranded servers and those whose guest is `off` for a job, longest first.
        `without_snapshot_of`: only servers without a completed snapshot that is younger than this."""
        ask: dict[str, Any] = given(node=node, account=account_id, stranded=stranded or None, off=off or None)
        ask |= cursor.for_script() | {"silent_ms": self._silent_ms}
        if without_snapshot_of is not None:
            ask["no_snapshot_ms"] = round(without_snapshot_of.total_seconds() * 1000)
        count, after, *rows = await self._call("operators/servers", ask)
        return CursorPage.of(count, after, await self._many(ops_records.server, rows, kind="server"))

    async def server(self, server_id: ServerId) -> OpsServer:
        """Raises ServerNotFound."""
        _, _, *rows = await self._call("operators/servers", {"server": str(server_id), "silent_ms": self._silent_ms})
        if not rows:
            raise errors.ServerNotFound.of(id=server_id)
        return await self._one(ops_records.server, rows[0], kind="server")

    async def schedules(
        self, *, account_id: AccountId | None, server_id: ServerId | None, cursor: Cursor, target: str = "all"
    ) -> CursorPage[Schedule]:
        """The enabled schedules, sorted by their next run, to which the cursor's bounds apply. `target`: those of one
        "server", those by "labels", or "all"."""
        ask = given(account=account_id, server=server_id, target=target) | cursor.for_script()
        count, after, *rows = await self._call("operators/schedules", ask)
        return CursorPage.of(count, after, await self._many(shown_schedule, rows, kind="schedule"))

    async def place(
        self, server_id: ServerId, *, node: str | None = None, account_id: AccountId | None = None
    ) -> OpsServer:
        """Set a server's node, its account, or both. An unknown server is declared, which needs both. Raises
        ServerNotFound, NodeNotFound, ServerOnLiveNode, or ServerBusy, if the account changes during a job.
        """
        ask: dict[str, Any] = {
            "server": str(server_id),
            "silent_ms": self._silent_ms,
            "left": LEFT_ITS_NODE.for_script(),
        }
        ask |= {"node": node} if node else {}
        ask |= {"account": str(account_id)} if account_id else {}
        answer = await self._call("operators/place_server", ask)
        about = node if answer[:2] == [b"refused", errors.NodeNotFound.code.encode()] else server_id
        accepted(answer, id=about)
        return await self._after_change(self.server(server_id))

    async def account(self, account_id: AccountId) -> AccountLimits:
        """The account's limits. The account need not exist, because the service knows accounts only from their
        servers."""
        snapshots_max, is_set, servers = await self._call("operators/account", {"account": str(account_id)})
        return AccountLimits(account_id=account_id, snapshots_max=snapshots_max, is_default=not is_set, servers=servers)

    async def limit_account(self, account_id: AccountId, *, snapshots_max: int | None) -> AccountLimits:
        """Set how many snapshots each of its servers may have; None: SNAPSHOTS_PER_SERVER. Deletes no snapshots."""
        most = "" if snapshots_max is None else str(snapshots_max)
        await self._call("operators/limit_account", {"account": str(account_id), "snapshots_max": most})
        return await self._after_change(self.account(account_id))

    async def take(self, server_id: ServerId, *, by: str, idempotency: Idempotency | None = None) -> OpsServer:
        """Record who repairs a stranded server, instead of whoever took it before. Raises ServerNotFound or
        ServerNotStranded."""
        return await self._taken(server_id, by, idempotency)

    async def release(self, server_id: ServerId, *, idempotency: Idempotency | None = None) -> OpsServer:
        """Record that nobody is repairing the stranded server. Raises ServerNotFound or ServerNotStranded."""
        return await self._taken(server_id, "", idempotency)

    async def _taken(self, server_id: ServerId, by: str, idempotency: Idempotency | None) -> OpsServer:
        await self._do("operators/take_server", idempotency, about=str(server_id), server=str(server_id), by=by)
        return await self._after_change(self.server(server_id))

    async def findings(self, cursor: Cursor) -> CursorPage[ServerFindings]:
        """Newest first."""
        count, after, *rows = await self._call("operators/findings", cursor.for_script())
        read, key_of = ops_records.server_findings, ops_records.key_of_findings
        return CursorPage.of(count, after, await self._many(read, rows, kind="findings", key_of=key_of))

    async def unreadable(self) -> tuple[UnreadableRecord, ...]:
        """The records that could not be read in the last 24 hours, latest first; at most 100."""
        rows = await self._call("operators/unreadable", {"limit": UNREADABLE_LISTED})
        return await self._many(ops_records.unreadable, rows, kind="unreadable", key_of=lambda _: "unreadable")

    async def refused_claims(self) -> tuple[RefusedClaim, ...]:
        """The refused claims of the last 30 days, newest first; at most 100."""
        rows = await self._call("operators/refused_claims", {"limit": REFUSED_CLAIMS_SHOWN})
        return await self._many(
            ops_records.refused_claim, rows, kind="refused_claim", key_of=lambda _: "refused_claims"
        )

    async def audit(self, wanted: AuditFilter | Mapping[str, str], cursor: Cursor) -> CursorPage[AuditEntry]:
        """The entries, newest first. If the filter is a mapping: only entries with these fields."""
        if not isinstance(wanted, AuditFilter):
            wanted = AuditFilter(fields=wanted)
        # a stream has no IDs before 1970
        since, until = cursor.since, cursor.until
        before = str(max(0, int(records.milliseconds(until)) - 1)) if until else "+"
        ask = {
            **wanted.for_script(),
            "from": str(max(0, int(records.milliseconds(since)))) if since else "-",
            "to": f"({cursor.after}" if cursor.after else before,
            "limit": cursor.limit,
        }
        after, *rows = await self._call("operators/audit", ask)
        results = await self._many(ops_records.audit_entry, rows, kind="audit", key_of=ops_records.key_of_audit)
        return CursorPage(count=None, after=after.decode() or None, results=results)

    async def check_audit(self, *, after: str | None) -> AuditCheck:
        """Check the audit log from the entry `after`, or from its beginning."""
        return await audit_check.check(self._redis, after=after)
