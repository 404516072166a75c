"""The customer's side of the store: what the front end asks of Redis.

Each call is one round trip. Admission is one Lua script, `admit.lua`: a request is accepted whole (records, queue,
wake-up) or refused and changes nothing. Any trouble with Redis is `StoreUnavailable`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

from arq.connections import ArqRedis

from worker.program.configuration import NODE_SILENT_SECONDS
from worker.store import errors, records
from worker.store.arq_queue import queue_parameters
from worker.store.calls import Idempotency, Page, Scripts, accepted, for_script, kind_of, redis_answers, shown_job
from worker.store.model import (
    SNAPSHOTS_PER_SERVER,
    AccountId,
    Failure,
    Job,
    JobId,
    JobKind,
    JobState,
    ServerId,
    ServerView,
    Snapshot,
    SnapshotId,
    SnapshotStatus,
)
from worker.store.outcome import DELETE_RETRY_SECONDS, Outcome

CANCELLED = "cancelled"  # code of the failure of a job that was cancelled


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A create or restore that was accepted."""

    job: Job
    snapshot: Snapshot


@dataclass(frozen=True, kw_only=True)
class SnapshotFilter:
    """What is to be listed, and in which order. None: whatever it is."""

    server_id: ServerId | None = None
    status: SnapshotStatus | None = None
    name: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    sort: str = "-created_at"  # a field of the snapshot; "-": the other way round

    def for_script(self) -> dict[str, str]:
        fields = {
            "server": self.server_id,
            "status": self.status,
            "name": self.name,
            "from_ms": self.created_from and records.milliseconds(self.created_from),
            "before_ms": self.created_before and records.milliseconds(self.created_before),
            "sort": self.sort,
        }
        return {field: str(value) for field, value in fields.items() if value is not None}


EVERY = SnapshotFilter()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is to change of a snapshot; None leaves it as it is."""

    description: str | None = None
    labels: Mapping[str, str] | None = None
    protected: bool | None = None
    expires_at: datetime | Literal["never"] | None = None

    def for_script(self) -> dict[str, str]:
        expires = self.expires_at
        fields = {
            "description": self.description,
            "labels": None if self.labels is None else json.dumps(dict(self.labels)),
            "protected": None if self.protected is None else "1" if self.protected else "",
            "expires_ms": records.milliseconds(expires) if isinstance(expires, datetime) else expires and "",
        }
        return {field: text for field, text in fields.items() if text is not None}


class CustomerStore(Scripts):
    """The store as the front end sees it. `node_silent_seconds`: how old a node's last heartbeat may be.

    A call that takes an `Idempotency` answers as it did the first time, or raises IdempotencyKeyReused.
    """

    def __init__(self, redis: ArqRedis, *, node_silent_seconds: float = NODE_SILENT_SECONDS) -> None:
        super().__init__(redis)
        self._silent_ms = round(node_silent_seconds * 1000)

    # --- asking for work ---

    async def create(
        self,
        *,
        account_id: AccountId,
        server_id: ServerId,
        name: str,
        description: str,
        request_id: str,
        idempotency: Idempotency | None = None,
    ) -> Admitted:
        """Accept a new snapshot. Raises ServerNotFound, NodeUnavailable, ServerBusy, ServerNotReady,
        SnapshotLimitReached, NameTaken or StoreUnavailable."""
        more = {"name": name, "description": description}
        return await self._admitted(
            await self._ask(JobKind.CREATE, account_id, server_id, request_id, idempotency, **more)
        )

    async def restore(
        self,
        *,
        account_id: AccountId,
        snapshot_id: SnapshotId,
        request_id: str,
        present_only: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Admitted:
        """Accept a restore; `present_only`: of the disks that are there. Raises SnapshotNotFound, SnapshotNotReady,
        NodeUnavailable, ServerBusy, ServerNotReady or StoreUnavailable."""
        more = {"present_only": present_only}
        return await self._admitted(
            await self._ask(JobKind.RESTORE, account_id, snapshot_id, request_id, idempotency, **more)
        )

    async def check_create(
        self,
        *,
        account_id: AccountId,
        server_id: ServerId,
        name: str,
        request_id: str,
        idempotency: Idempotency | None = None,
    ) -> Job:
        """A dry run: refused like a create, or a job that makes the node's own checks. Raises as `create` does."""
        more: dict[str, str | bool] = {"name": name, "dry_run": True}
        return await self._job(await self._ask(JobKind.CREATE, account_id, server_id, request_id, idempotency, **more))

    async def check_restore(
        self,
        *,
        account_id: AccountId,
        snapshot_id: SnapshotId,
        request_id: str,
        present_only: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Job:
        """A dry run: refused like a restore, or a job that makes the node's own checks. Raises as `restore` does."""
        more = {"dry_run": True, "present_only": present_only}
        return await self._job(
            await self._ask(JobKind.RESTORE, account_id, snapshot_id, request_id, idempotency, **more)
        )

    async def undo(
        self,
        *,
        account_id: AccountId,
        job_id: JobId,
        request_id: str,
        present_only: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Job:
        """Accept to bring a server back to what a completed restore (or undo) has overwritten; `present_only`: as of a
        restore, and not taken over from the job that is undone. Raises JobNotFound, UndoUnavailable, NodeUnavailable,
        ServerBusy, ServerNotReady or StoreUnavailable."""
        more = {"present_only": present_only}
        return await self._job(await self._ask(JobKind.UNDO, account_id, job_id, request_id, idempotency, **more))

    async def delete(self, *, account_id: AccountId, snapshot_id: SnapshotId, request_id: str) -> Job | None:
        """Delete a snapshot for the customer; its node then frees the space, with this job. None: the server is gone,
        and there is no space to free. Raises SnapshotNotFound, SnapshotProtected, NodeUnavailable, ServerBusy or
        StoreUnavailable."""
        answer = await self._ask(JobKind.DELETE, account_id, snapshot_id, request_id, None)
        return await self._job(answer) if answer else None

    async def cancel(self, *, account_id: AccountId, job_id: JobId, idempotency: Idempotency | None = None) -> Job:
        """End a job that its node has not begun. Raises JobNotFound, JobNotCancellable or StoreUnavailable."""
        cancelled = Outcome(
            state=JobState.FAILED,
            failure=Failure(code=CANCELLED, detail="The job was cancelled before its node began it."),
            snapshot_status=SnapshotStatus.FAILED,
        )
        ask = {
            "account": str(account_id),
            "id": job_id,
            "result": cancelled.for_script(),
            "idempotency": for_script(idempotency),
        }
        return await self._job(accepted(await self._call("customers/cancel", ask), id=job_id))

    async def again(
        self, job: Job, *, request_id: str, in_bulk: bool = False, idempotency: Idempotency | None = None
    ) -> Job:
        """Accept once more what a failed job was to do, as a new job. `in_bulk`: nobody has looked at this one; if it
        was cancelled, or its server has had a later job, it is refused. Raises JobNotRetryable, or as its kind does.
        """
        asked: dict[JobKind, tuple[ServerId | SnapshotId | JobId | None, dict[str, str | bool]]] = {
            JobKind.CREATE: (job.server_id, {"name": job.snapshot_name, "description": job.snapshot_description}),
            JobKind.RESTORE: (job.snapshot_id, {"present_only": job.present_only}),
            JobKind.DELETE: (job.snapshot_id, {"again": True}),
            JobKind.UNDO: (job.undoes, {"present_only": job.present_only}),
        }
        target, more = asked.get(job.kind, (None, {}))
        if target is None:
            raise errors.JobNotRetryable(f"A job of the kind {job.kind} cannot be retried.")
        more |= {"retries": job.id, "in_bulk": in_bulk}
        answer = await self._ask(job.kind, job.account_id, target, request_id, idempotency, **more)
        if not answer:
            raise errors.SnapshotNotFound("The snapshot went with its server: nothing is left to delete.")
        return await self._job(answer)

    async def edit(self, *, account_id: AccountId, snapshot_id: SnapshotId, edit: Edit) -> Snapshot:
        """Change what the customer says about a snapshot. Raises SnapshotNotFound or StoreUnavailable."""
        ask = {"account": str(account_id), "id": str(snapshot_id), "fields": edit.for_script()}
        found = await self._call("customers/edit", ask)
        if found is None:
            raise errors.SnapshotNotFound.of(id=snapshot_id)
        return await self._one(_snapshot, found, kind="snapshot")

    # --- looking ---

    async def snapshot(self, *, account_id: AccountId, snapshot_id: SnapshotId) -> Snapshot:
        """Raises SnapshotNotFound, also for another account's, or StoreUnavailable."""
        found = await self._found("snapshot", snapshot_id, account_id)
        if found is None:
            raise errors.SnapshotNotFound.of(id=snapshot_id)
        return await self._one(_snapshot, found, kind="snapshot")

    async def snapshots(
        self, *, account_id: AccountId, wanted: SnapshotFilter = EVERY, offset: int, limit: int
    ) -> Page[Snapshot]:
        """An account's snapshots. Another account's server has none. Raises StoreUnavailable."""
        ask = {"account": str(account_id), **wanted.for_script(), "offset": offset, "limit": limit}
        count, *rows = await self._call("customers/list_snapshots", ask)
        return Page(count=count, results=await self._many(_snapshot, rows, kind="snapshot"))

    async def job(self, *, account_id: AccountId, job_id: JobId) -> Job:
        """Raises JobNotFound, also for another account's, or StoreUnavailable."""
        found = await self._found("job", job_id, account_id)
        if found is None:
            raise errors.JobNotFound.of(id=job_id)
        return await self._job([found])

    async def jobs(
        self, *, account_id: AccountId, server_id: ServerId | None, state: JobState | None, offset: int, limit: int
    ) -> Page[Job]:
        """An account's jobs of the last 30 days, newest first. Another account's server has none. Raises
        StoreUnavailable."""
        ask: dict[str, str | int] = {"account": str(account_id), "offset": offset, "limit": limit}
        if server_id is not None:
            ask["server"] = str(server_id)
        if state is not None:
            ask["state"] = state
        count, *rows = await self._call("customers/list_jobs", ask)
        return Page(count=count, results=await self._many(shown_job, rows, kind="job"))

    async def server(self, *, account_id: AccountId, server_id: ServerId) -> ServerView:
        """Raises ServerNotFound, also for another account's, or StoreUnavailable."""
        found = await self._found("server", server_id, account_id)
        if found is None:
            raise errors.ServerNotFound.of(id=server_id)
        return await self._one(_server, [str(server_id).encode(), *found], kind="server")

    async def ping(self) -> None:
        """Raises StoreUnavailable."""
        with redis_answers():
            await self._redis.ping()

    # --- how ---

    async def _job(self, answer: list[Any]) -> Job:
        return await self._one(shown_job, answer[0], kind="job")

    async def _admitted(self, answer: list[Any]) -> Admitted:
        snapshot = await self._one(_snapshot, answer[1], kind="snapshot")
        return Admitted(job=await self._job(answer), snapshot=snapshot)

    async def _found(self, what: str, key: int | str, account_id: AccountId) -> Any:
        ask = {"what": what, "id": str(key), "account": str(account_id), "silent_ms": self._silent_ms}
        return await self._call("customers/find", ask)

    async def _ask(
        self,
        kind: JobKind,
        account_id: AccountId,
        target: ServerId | SnapshotId | JobId,
        request_id: str,
        idempotency: Idempotency | None,
        **more: str | bool,
    ) -> list[Any]:
        """The records of the job and of its snapshot, as they are shown."""
        ask = {
            "kind": kind,
            "account": str(account_id),
            "id": str(target),
            "request_id": request_id,
            "job_id": uuid4().hex,
            "limit": SNAPSHOTS_PER_SERVER,
            "silent_ms": self._silent_ms,
            "retry_ms": round(DELETE_RETRY_SECONDS * 1000),
            "queue": queue_parameters(),
            "idempotency": for_script(idempotency),
            **more,
        }
        answer = await self._admit(ask)
        if answer[:2] == [b"refused", errors.JobNotFound.code.encode()] and "retries" in more:
            target = JobId(str(more["retries"]))  # the job that is to be retried has expired
        return accepted(answer, id=target, limit=SNAPSHOTS_PER_SERVER)


def _snapshot(shown: list[Any]) -> Snapshot:
    snapshot_id, flat, server_name = shown
    return records.snapshot(SnapshotId(int(snapshot_id)), records.pairs(flat), records.text(server_name))


def _server(shown: list[Any]) -> ServerView:
    server_id, flat, holding, counted, reachable = shown
    return ServerView(
        server=records.server(ServerId(int(server_id)), records.pairs(flat), kind_of(holding)),
        counted=counted,
        reachable=bool(reachable),
    )
