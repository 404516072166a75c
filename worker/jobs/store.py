"""The customer's side of the store: what the front end asks of Redis.

Each call is one round trip. Admission is one Lua script, `scripts/admit.lua`: a request is accepted whole (records,
queue, wake-up) or refused and changes nothing. Any trouble with Redis is `StoreUnavailable`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from arq.connections import ArqRedis
from redis.exceptions import RedisError

from worker.jobs import errors, queue, records, scripts
from worker.jobs.model import (
    SNAPSHOTS_PER_SERVER,
    AccountId,
    Job,
    JobId,
    JobKind,
    Server,
    ServerId,
    Snapshot,
    SnapshotId,
)

NODE_SILENT_SECONDS = 60.0  # the contract: a node that was silent for over a minute gets no new job
ARQ_RECORD_KEPT_SECONDS = 30 * 86_400  # longer than any node may be away with a job waiting
DELETE_RETRY_SECONDS = 60.0  # until the node looks again at a delete that has not freed its space


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A create or restore that was accepted."""

    job: Job
    snapshot: Snapshot
    server: Server


@dataclass(frozen=True, kw_only=True)
class SnapshotPage:
    """One page of a list; `count` is the total over all pages."""

    count: int
    results: tuple[Snapshot, ...]


@contextmanager
def redis_answers() -> Iterator[None]:
    """Foreign errors stop here: Redis away, slow, full or read-only is one and the same to a caller."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise errors.StoreUnavailable("The store of the service does not answer.") from error


def queue_parameters() -> dict[str, Any]:
    """What the scripts need to put a job where arq finds it. They fill in the job's id and the moment."""
    return {
        "prefix": queue.QUEUE_PREFIX,
        "payload": queue.payload("JOB_ID", 0).decode(),
        "expires_ms": ARQ_RECORD_KEPT_SECONDS * 1000,
    }


class Store:
    """The store as the front end sees it. `node_silent_seconds`: how old a node's last heartbeat may be."""

    def __init__(self, redis: ArqRedis, *, node_silent_seconds: float = NODE_SILENT_SECONDS) -> None:
        self._redis = redis
        self._silent_ms = round(node_silent_seconds * 1000)
        self._admit = scripts.load(redis, "admit")
        self._list = scripts.load(redis, "list")
        self._find = scripts.load(redis, "find")

    async def create(
        self, *, account_id: AccountId, server_id: ServerId, name: str, description: str, request_id: str
    ) -> Admitted:
        """Accept a new snapshot. Raises ServerNotFound, NodeUnavailable, ServerBusy, ServerNotReady,
        SnapshotLimitReached, NameTaken or StoreUnavailable."""
        return _admitted(
            await self._ask(JobKind.CREATE, account_id, server_id, request_id, name=name, description=description)
        )

    async def restore(self, *, account_id: AccountId, snapshot_id: SnapshotId, request_id: str) -> Admitted:
        """Accept a restore. Raises SnapshotNotFound, SnapshotNotReady, NodeUnavailable, ServerBusy, ServerNotReady
        or StoreUnavailable."""
        return _admitted(await self._ask(JobKind.RESTORE, account_id, snapshot_id, request_id))

    async def check_create(self, *, account_id: AccountId, server_id: ServerId, name: str, request_id: str) -> Job:
        """A dry run: refused like a create, or a job that makes the node's own checks. Raises as `create` does."""
        return _job(await self._ask(JobKind.CREATE, account_id, server_id, request_id, name=name, dry_run=True))

    async def check_restore(self, *, account_id: AccountId, snapshot_id: SnapshotId, request_id: str) -> Job:
        """A dry run: refused like a restore, or a job that makes the node's own checks. Raises as `restore` does."""
        return _job(await self._ask(JobKind.RESTORE, account_id, snapshot_id, request_id, dry_run=True))

    async def undo(self, *, account_id: AccountId, job_id: JobId, request_id: str) -> Job:
        """Accept to bring a server back to what a completed restore (or undo) has overwritten. Raises JobNotFound,
        UndoUnavailable, NodeUnavailable, ServerBusy, ServerNotReady or StoreUnavailable."""
        return _job(await self._ask(JobKind.UNDO, account_id, job_id, request_id))

    async def delete(self, *, account_id: AccountId, snapshot_id: SnapshotId, request_id: str) -> None:
        """Make a snapshot be gone for the customer; its node frees the space next. Raises SnapshotNotFound,
        NodeUnavailable, ServerBusy or StoreUnavailable."""
        await self._ask(JobKind.DELETE, account_id, snapshot_id, request_id)

    async def snapshot(self, *, account_id: AccountId, snapshot_id: SnapshotId) -> Snapshot:
        """Raises SnapshotNotFound, also for another account's, or StoreUnavailable."""
        with redis_answers():
            found = await self._find(args=["snapshot", snapshot_id, account_id])
        if found is None:
            raise _not_found(JobKind.RESTORE, snapshot_id)
        flat, server_name = found
        return records.snapshot(snapshot_id, records.pairs(flat), server_name.decode())

    async def snapshots(
        self, *, account_id: AccountId, server_id: ServerId | None, offset: int, limit: int
    ) -> SnapshotPage:
        """An account's snapshots, newest first, of one server or of all. Another account's server has none.
        Raises StoreUnavailable."""
        with redis_answers():
            count, *rows = await self._list(args=[account_id, server_id or "", offset, limit])
        page = tuple(
            records.snapshot(SnapshotId(int(row)), records.pairs(flat), name.decode()) for row, name, flat in rows
        )
        return SnapshotPage(count=count, results=page)

    async def job(self, *, account_id: AccountId, job_id: JobId) -> Job:
        """Raises JobNotFound, also for another account's, or StoreUnavailable."""
        with redis_answers():
            found = await self._find(args=["job", job_id, account_id])
        if found is None:
            raise errors.JobNotFound(f"There is no job {job_id}.")
        flat, durations = found
        return records.job(job_id, records.pairs(flat), durations)

    async def ping(self) -> None:
        """Raises StoreUnavailable."""
        with redis_answers():
            await self._redis.ping()

    async def _ask(
        self,
        kind: JobKind,
        account_id: AccountId,
        target: ServerId | SnapshotId | JobId,
        request_id: str,
        **more: str | bool,
    ) -> list[Any]:
        """The job's id, and the records of the job, its snapshot and its server."""
        job_id = uuid4().hex
        ask = {
            "kind": kind,
            "account": str(account_id),
            "id": str(target),
            "request_id": request_id,
            "job_id": job_id,
            "limit": SNAPSHOTS_PER_SERVER,
            "silent_ms": self._silent_ms,
            "retry_ms": round(DELETE_RETRY_SECONDS * 1000),
            "queue": queue_parameters(),
            **more,
        }
        with redis_answers():
            verdict, *answer = await self._admit(args=[json.dumps(ask)])
        if verdict == b"refused":
            raise _refusal(kind, target, *[item.decode() for item in answer])
        return list(answer)


def _job(answer: list[Any]) -> Job:
    return records.job(JobId(answer[0].decode()), records.pairs(answer[1]))


def _admitted(answer: list[Any]) -> Admitted:
    job, snapshot, server_record = _job(answer), answer[2], records.pairs(answer[3])
    return Admitted(
        job=job,
        snapshot=records.snapshot(job.snapshot_id, records.pairs(snapshot), server_record["name"]),
        server=records.server(job.server_id, server_record, job.kind),
    )


def _not_found(kind: JobKind, target: int | str) -> errors.Refused:
    if kind is JobKind.CREATE:
        return errors.ServerNotFound(f"There is no server {target}.")
    if kind is JobKind.UNDO:
        return errors.JobNotFound(f"There is no job {target}.")
    return errors.SnapshotNotFound(f"There is no snapshot {target}.")


def _refusal(kind: JobKind, target: int | str, code: str, fact: str = "") -> errors.Refused:
    """The script's answer as the error that says it. `fact` is what the script found in the way."""
    if code in {errors.ServerNotFound.code, errors.SnapshotNotFound.code, errors.JobNotFound.code}:
        return _not_found(kind, target)
    if code == errors.ServerBusy.code:
        return errors.ServerBusy(f"The server is held by job {fact}, which has not ended yet.", job_id=fact)
    details: dict[type[errors.Refused], str] = {
        errors.NodeUnavailable: "The hypervisor node of the server does not answer; nothing was queued.",
        errors.ServerNotReady: "The server is suspended or gone; it can be neither snapshotted nor restored.",
        errors.SnapshotLimitReached: f"The server has its {SNAPSHOTS_PER_SERVER} snapshots; delete one first.",
        errors.NameTaken: f"Snapshot {fact} of the server has this name.",
        errors.UndoUnavailable: "What the job has overwritten is not kept any more, or a later restore came over it.",
        errors.SnapshotNotReady: f"Snapshot {target} is {fact}; only a completed one can be restored.",
    }
    return next(refusal(text) for refusal, text in details.items() if refusal.code == code)
