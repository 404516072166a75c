"""The customers' side of the store, used by the front end.

Each call is one round trip. Admission is one Lua script, `admit.lua`: it writes everything (records, queue, wake-up),
or refuses the request and changes nothing. Every error of Redis becomes `StoreUnavailable` or a subclass.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from os import urandom
from typing import Any, Literal, NamedTuple, NotRequired, Self, TypedDict, Unpack

from redis.asyncio import Redis

from worker.store import errors, records
from worker.store.calls import (
    Actor,
    By,
    Idempotency,
    Page,
    Scripts,
    accepted,
    by_actor,
    flag,
    for_script,
    given,
    kind_of,
    shown_job,
)
from worker.store.model import (
    CANCELLED,
    NODE_SILENT_SECONDS,
    RETRY_WITHIN_SECONDS,
    Failure,
    Job,
    JobId,
    JobKind,
    JobState,
    ServerId,
    ServerState,
    ServerView,
    Snapshot,
    SnapshotId,
    SnapshotStatus,
)
from worker.store.outcome import DELETE_RETRY_SECONDS, Outcome


class Request(TypedDict):
    """Who requests work, and with which request. With an Idempotency-Key, a repeated request is admitted once."""

    account_id: By
    request_id: str
    idempotency: NotRequired[Idempotency | None]


@dataclass(frozen=True, kw_only=True)
class AdmittedJob:
    """A job that was admitted and is queued."""

    id: JobId

    @classmethod
    def of(cls, shown: list[bytes]) -> Self:
        return cls(id=JobId(shown[0].decode()))


class BriefSnapshot(NamedTuple):
    """What a list shows of a snapshot, and the answer to a create or a restore. A tuple, because a list may have
    hundreds, and a frozen dataclass takes twice as long to create."""

    id: SnapshotId
    server_id: ServerId
    server_name: str
    name: str
    status: SnapshotStatus
    size_mb: int | None
    created_at: datetime
    description: str


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A create or restore that was admitted."""

    job: AdmittedJob
    snapshot: BriefSnapshot


@dataclass(frozen=True, kw_only=True)
class SnapshotFilter:
    """Which snapshots to list, and in which order. A filter of None matches any."""

    server_id: ServerId | None = None
    status: SnapshotStatus | None = None
    name: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    sort: str = "-created_at"  # a field of the snapshot, with "-" in front for descending order

    @property
    def field(self) -> str:
        """The field to sort by."""
        return self.sort.removeprefix("-")

    @property
    def descending(self) -> bool:
        return self.sort.startswith("-")

    @property
    def is_in_order(self) -> bool:
        """Whether the list in Redis already has this order, and all entries between two times match."""
        return self.field == "created_at" and self.status is None and self.name is None

    def for_script(self) -> dict[str, str]:
        return given(
            server=self.server_id,
            status=self.status,
            name=self.name,
            from_ms=self.created_from and records.milliseconds(self.created_from),
            before_ms=self.created_before and records.milliseconds(self.created_before),
        )


EVERY = SnapshotFilter()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What to change of a snapshot; None leaves a field unchanged."""

    description: str | None = None
    labels: Mapping[str, str] | None = None
    protected: bool | None = None
    expires_at: datetime | Literal["never"] | None = None

    def for_script(self) -> dict[str, str]:
        expires = self.expires_at
        return given(
            description=self.description,
            labels=None if self.labels is None else json.dumps(dict(self.labels)),
            protected=flag(self.protected),
            expires_ms=records.milliseconds(expires) if isinstance(expires, datetime) else expires and "",
        )


@dataclass(frozen=True, kw_only=True)
class RetryRule:
    """When a failed job is retried. `in_bulk`: nobody has checked the individual job, so cancelled jobs are left
    out, and all but the last job of each server. `force`: also if the server has had a later job, the job failed more
    than `within_seconds` ago, or it would overwrite data that the server has written since."""

    in_bulk: bool = False
    force: bool = False
    within_seconds: float = RETRY_WITHIN_SECONDS

    def for_script(self) -> dict[str, bool | int]:
        return {"in_bulk": self.in_bulk, "force": self.force, "within_ms": round(self.within_seconds * 1000)}


CHECKED = RetryRule()  # a retry of one job


class CustomerStore(Scripts):
    """The store for the front end. `node_silent_seconds`: how old a node's last heartbeat may be.

    A repeated call with the same `Idempotency` returns the first one's result, or raises IdempotencyKeyReused.
    `account_id`: the calling account, or the HTTP call whose caller the script checks first.
    """

    def __init__(
        self, redis: Redis, *, node_silent_seconds: float = NODE_SILENT_SECONDS, live_by_default: bool = False
    ) -> None:
        super().__init__(redis)
        self._live_by_default = live_by_default
        self._silent_ms = round(node_silent_seconds * 1000)

    # --- requests for work ---

    async def create(
        self,
        *,
        server_id: ServerId,
        name: str,
        description: str,
        live: bool | None = None,
        **request: Unpack[Request],
    ) -> Admitted:
        """Admit a new snapshot. `live`: without stopping the server; None: the server's or else the provider's
        default. Raises ServerNotFound, NodeUnavailable, ServerBusy, ServerNotReady, SnapshotLimitReached, NameTaken or
        StoreUnavailable."""
        about: dict[str, str | bool] = {"name": name, "description": description, **self._stopping(live)}
        return await self._admitted(JobKind.CREATE, server_id, request, **about)

    async def restore(
        self, *, snapshot_id: SnapshotId, present_only: bool = False, **request: Unpack[Request]
    ) -> Admitted:
        """Admit a restore. `present_only`: restore only the disks that are present. Raises SnapshotNotFound,
        SnapshotNotReady, NodeUnavailable, ServerBusy, ServerNotReady or StoreUnavailable."""
        return await self._admitted(JobKind.RESTORE, snapshot_id, request, present_only=present_only)

    async def check_create(
        self, *, server_id: ServerId, name: str, live: bool | None = None, **request: Unpack[Request]
    ) -> Job:
        """A dry run of `create`: has the same refusals, and a job with the node's checks."""
        return await self._job(JobKind.CREATE, server_id, request, name=name, **self._stopping(live), dry_run=True)

    async def check_restore(
        self, *, snapshot_id: SnapshotId, present_only: bool = False, **request: Unpack[Request]
    ) -> Job:
        """A dry run of `restore`: has the same refusals, and a job with the node's checks."""
        return await self._job(JobKind.RESTORE, snapshot_id, request, present_only=present_only, dry_run=True)

    async def undo(self, *, job_id: JobId, present_only: bool = False, **request: Unpack[Request]) -> Job:
        """Admit an undo, which brings back the data that a completed restore (or undo) overwrote. `present_only` is
        as for a restore, and is not inherited from the undone job. Raises JobNotFound, UndoUnavailable,
        NodeUnavailable, ServerBusy, ServerNotReady or StoreUnavailable."""
        return await self._job(JobKind.UNDO, job_id, request, present_only=present_only)

    async def delete(self, *, account_id: By, snapshot_id: SnapshotId, request_id: str) -> AdmittedJob | None:
        """Delete a snapshot for the customer; its node then frees the space, with this job. None: the server is gone,
        so there is no space to free. Raises SnapshotNotFound, SnapshotProtected, NodeUnavailable, ServerBusy or
        StoreUnavailable."""
        answer = await self._ask(JobKind.DELETE, snapshot_id, {"account_id": account_id, "request_id": request_id})
        return AdmittedJob.of(answer[0]) if answer else None

    async def cancel(self, *, account_id: By, job_id: JobId, idempotency: Idempotency | None = None) -> Job:
        """Cancel a job that its node has not started. Raises JobNotFound, JobNotCancellable or StoreUnavailable."""
        cancelled = Outcome(
            state=JobState.FAILED,
            failure=Failure(code=CANCELLED, detail="The job was cancelled before its node started it."),
            snapshot_status=SnapshotStatus.FAILED,
        )
        ask = {
            "id": job_id,
            "result": cancelled.for_script(),
            "idempotency": for_script(idempotency),
        }
        return await self._shown(
            accepted(await self._call("customers/cancel", ask, account_id), idempotency, id=job_id)[0]
        )

    async def again(
        self,
        job: Job,
        *,
        request_id: str,
        rule: RetryRule = CHECKED,
        by: Actor | None = None,
        idempotency: Idempotency | None = None,
    ) -> Job:
        """Admit a new job that does the same as a failed one. `by`: the caller. Raises JobNotRetryable,
        RetryNeedsForce, or the errors of its kind."""
        asked: dict[JobKind, tuple[ServerId | SnapshotId | JobId | None, dict[str, str | bool]]] = {
            JobKind.CREATE: (
                job.server_id,
                {"name": job.snapshot_name, "description": job.snapshot_description, "live": job.live},
            ),
            JobKind.RESTORE: (job.snapshot_id, {"present_only": job.present_only}),
            JobKind.DELETE: (job.snapshot_id, {"again": True}),
            JobKind.UNDO: (job.undoes, {"present_only": job.present_only}),
        }
        target, more = asked.get(job.kind, (None, {}))
        if target is None:
            raise errors.JobNotRetryable(f"A job of kind {job.kind} cannot be retried.")
        request: Request = {"account_id": job.account_id, "request_id": request_id, "idempotency": idempotency}
        retry = {"retries": job.id, "rule": rule.for_script(), **by_actor(by)}
        answer = await self._ask(job.kind, target, request, **more, **retry, whole_job=True)
        if not answer:
            raise errors.SnapshotNotFound("The snapshot was deleted with its server: nothing is left to delete.")
        return await self._shown(answer[0])

    async def edit(self, *, account_id: By, snapshot_id: SnapshotId, edit: Edit, request_id: str = "") -> Snapshot:
        """Change a snapshot's fields. Raises SnapshotNotFound, StoreNearlyFull or StoreUnavailable."""
        ask = {"id": str(snapshot_id), "fields": edit.for_script(), "request_id": request_id}
        found = await self._call("customers/edit", ask, account_id)
        if found is None:
            raise errors.SnapshotNotFound.of(id=snapshot_id)
        if found[0] == b"refused":
            raise errors.refusal(found[1].decode())
        return await self._changed(_snapshot, found, kind="snapshot")

    async def edit_server(
        self,
        *,
        account_id: By,
        server_id: ServerId,
        consistency: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> ServerView:
        """Set the fields that are not None. `consistency`: whether creates stop the server by default: "stop", "live",
        or "" for the provider's default. `labels` replaces all labels. Raises ServerNotFound or StoreUnavailable."""
        text = None if labels is None else json.dumps(dict(labels))
        ask = {"id": str(server_id), "fields": given(consistency=consistency, labels=text)}
        if await self._call("customers/edit_server", ask, account_id) is None:
            raise errors.ServerNotFound.of(id=server_id)
        return await self._after_change(self.server(account_id=account_id, server_id=server_id))

    # --- reads ---

    async def snapshot(self, *, account_id: By, snapshot_id: SnapshotId) -> Snapshot:
        """Raises SnapshotNotFound, also for another account's, or StoreUnavailable."""
        found = await self._find("customers/snapshot", snapshot_id, account_id, errors.SnapshotNotFound)
        return await self._one(_snapshot, found, kind="snapshot")

    async def snapshots(
        self, *, account_id: By, wanted: SnapshotFilter = EVERY, offset: int, limit: int
    ) -> Page[Snapshot]:
        """An account's snapshots. Another account's server has none. Raises StoreUnavailable."""
        count, rows = await self._rows(account_id, wanted, offset, limit)
        return Page(count=count, results=await self._many(_snapshot, rows, kind="snapshot"))

    async def listed(
        self, *, account_id: By, wanted: SnapshotFilter = EVERY, offset: int, limit: int
    ) -> Page[BriefSnapshot]:
        """Like `snapshots`, with only the fields that a list shows."""
        count, rows = await self._rows(account_id, wanted, offset, limit, brief=True)
        return Page(count=count, results=await self._many(_listed, rows, kind="snapshot"))

    async def job(self, *, account_id: By, job_id: JobId) -> Job:
        """Raises JobNotFound, also for another account's, or StoreUnavailable."""
        found = await self._find("customers/job", job_id, account_id, errors.JobNotFound)
        return await self._one(_job, [job_id.encode(), *found], kind="job")

    async def jobs(
        self,
        *,
        account_id: By,
        server_id: ServerId | None,
        state: JobState | None,
        offset: int,
        limit: int,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Page[Job]:
        """An account's jobs of the last 30 days, newest first; only those that were queued between `since` (inclusive)
        and `until` (exclusive). Another account's server has none. Raises StoreUnavailable."""
        bounds = given(since_ms=since and records.milliseconds(since), until_ms=until and records.milliseconds(until))
        ask = {**given(server=server_id, state=state), **bounds, "offset": offset, "limit": limit}
        count, *found = await self._call("customers/list_jobs", ask, account_id)
        return Page(count=count, results=await self._read(lambda: _jobs(*found)))

    async def server(self, *, account_id: By, server_id: ServerId) -> ServerView:
        """Raises ServerNotFound, also for another account's, or StoreUnavailable."""
        found = await self._find(
            "customers/server", server_id, account_id, errors.ServerNotFound, silent_ms=self._silent_ms
        )
        return await self._one(_server, [str(server_id).encode(), *found], kind="server")

    # --- helpers ---

    def _stopping(self, live: bool | None) -> dict[str, str | bool]:
        return {"live_by_default": self._live_by_default} if live is None else {"live": live}

    async def _rows(
        self, account_id: By, wanted: SnapshotFilter, offset: int, limit: int, **more: bool
    ) -> tuple[int, list[Any]]:
        """How many snapshots match, and the rows of one page from the scripts."""
        ask: dict[str, Any] = wanted.for_script()
        if wanted.is_in_order:
            ask |= {"descending": wanted.descending, "offset": offset, "limit": limit}
            count, *rows = await self._call("customers/list_snapshots", ask | more, account_id)
            return count, rows
        found = await self._matching(ask, wanted, account_id)
        ids = found[offset : offset + limit]
        return len(found), await self._call("customers/show_snapshots", {"ids": ids, **more}, account_id) if ids else []

    async def _shown(self, shown: list[Any]) -> Job:
        return await self._changed(shown_job, shown, kind="job")

    async def _matching(self, ask: dict[str, Any], wanted: SnapshotFilter, account_id: By) -> list[str]:
        """The IDs of the snapshots that match, in order. The list is read in parts, to limit how long each call blocks
        Redis."""
        found: list[list[bytes]] = []
        while True:
            after, *part = await self._call("customers/find_snapshots", ask, account_id)
            found += part
            if not after:
                break
            ask = ask | {"after": [item.decode() for item in after]}
        keys: dict[str, Callable[[list[bytes]], bytes | int]] = {
            "created_at": lambda _: 0,  # already in this order
            "name": lambda one: one[1],
            "size_mb": lambda one: int(one[2]),
        }
        places = sorted(range(len(found)), key=lambda n: (keys[wanted.field](found[n]), n), reverse=wanted.descending)
        return [found[n][0].decode() for n in places]

    async def _job(
        self, kind: JobKind, target: ServerId | SnapshotId | JobId, request: Request, **more: str | bool
    ) -> Job:
        return await self._shown((await self._ask(kind, target, request, **more, whole_job=True))[0])

    async def _admitted(
        self, kind: JobKind, target: ServerId | SnapshotId, request: Request, **more: str | bool
    ) -> Admitted:
        job, snapshot = await self._ask(kind, target, request, **more)
        made = await self._changed(_brief, snapshot, kind="snapshot")
        return Admitted(job=AdmittedJob.of(job), snapshot=made)

    async def _ask(
        self, kind: JobKind, target: ServerId | SnapshotId | JobId, request: Request, **more: Any
    ) -> list[Any]:
        """Request a job. Returns the job and its snapshot's record, as the script returns them."""
        ask = {
            "kind": str(kind),  # pydantic takes 1 us to write an enum's member
            "id": str(target),
            "request_id": request["request_id"],
            "job_id": urandom(16).hex(),
            "silent_ms": self._silent_ms,
            "retry_ms": round(DELETE_RETRY_SECONDS * 1000),
            "idempotency": for_script(request.get("idempotency")),
            **more,
        }
        answer = await self._admit(ask, request["account_id"])
        if answer[:2] == [b"refused", errors.JobNotFound.code.encode()] and "retries" in more:
            target = JobId(str(more["retries"]))  # the job to be retried has expired
        return accepted(answer, request.get("idempotency"), id=target)


def _snapshot(shown: list[Any]) -> Snapshot:
    snapshot_id, flat, server_name = shown
    return records.snapshot(SnapshotId(int(snapshot_id)), records.pairs(flat), records.text(server_name))


def _brief(shown: list[Any]) -> BriefSnapshot:
    snapshot_id, flat, server_name = shown
    record = records.known(records.pairs(flat))
    return BriefSnapshot(
        id=SnapshotId(int(snapshot_id)),
        server_id=ServerId(records.whole(record["server"])),
        server_name=records.text(server_name),
        name=record["name"],
        status=SnapshotStatus(record["status"]),
        size_mb=records.whole(record["size_mb"]) if record["size_mb"] else None,
        created_at=records.moment(record["created_ms"]),
        description=record["description"],
    )


def _listed(shown: list[Any]) -> BriefSnapshot:
    snapshot_id, server, name, status, size_mb, created_ms, description, server_name = shown
    return BriefSnapshot(
        id=SnapshotId(int(snapshot_id)),
        server_id=ServerId(records.whole(server)),
        server_name=records.text(server_name),
        name=name.decode(),
        status=SnapshotStatus(status.decode()),
        size_mb=records.whole(size_mb) if size_mb else None,
        created_at=records.moment(created_ms),
        description=description.decode(),
    )


def _server(shown: list[Any]) -> ServerView:
    server_id, flat, holding, counted, reachable, snapshots_max = shown
    return ServerView(
        server=records.server(ServerId(int(server_id)), records.pairs(flat), kind_of(holding)),
        counted=counted,
        snapshots_max=snapshots_max,
        reachable=bool(reachable),
    )


def _job(row: list[Any]) -> Job:
    """Parse the answer of `customers/job`, with the job's ID in front."""
    job_id, flat, durations, server = row
    record = records.pairs(flat)
    estimated = records.estimated_seconds(durations, node=record["node"])
    state = _server_state(record["server"], server)
    return records.job(JobId(job_id.decode()), record, estimated_seconds=estimated, server_state=state)


def _jobs(durations: list[Any], servers: list[Any], *rows: list[Any]) -> tuple[Job, ...]:
    """Parse the answer of `customers/list_jobs`, which has the durations by node and kind, and the states of servers,
    once for all jobs."""
    keys = map(records.text, durations[::2])
    estimated = {
        key: records.estimated_seconds(found, node=key.rpartition(" ")[0])
        for key, found in zip(keys, durations[1::2], strict=True)
    }
    names = map(records.text, servers[::2])
    states = {server: _server_state(server, found) for server, found in zip(names, servers[1::2], strict=True)}

    def read(row: list[Any]) -> Job:
        job_id, flat = row
        record = records.pairs(flat)
        return records.job(
            JobId(job_id.decode()),
            record,
            estimated_seconds=estimated[f"{record['node']} {record['kind']}"],
            server_state=states[record["server"]],
        )

    return records.many(read, rows, kind="job")


def _server_state(server: str, shown: list[bytes]) -> ServerState | None:
    """None: the server is gone, has a new owner, or its state cannot be read."""
    if not shown[0]:
        return None

    def read(shown: list[bytes]) -> ServerState:
        power, holding = shown
        return records.server_state({"power": power.decode()}, kind_of(holding))

    return records.part(read, shown, key=f"server:{server}", otherwise=None)
