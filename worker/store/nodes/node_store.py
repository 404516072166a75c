"""The nodes' side of the store.

Every call names the node and the owner of its lease. A worker whose lease was taken by another changes nothing.
The data in a node's call is a claim: the scripts check it against the service's records. A claim that contradicts
them changes nothing, is reported to operators, and raises `ClaimRefused`. Any error of Redis raises `StoreUnavailable`,
and a credential that has ended `CredentialEnded`.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from hashlib import sha256
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from worker.store import errors, records, written
from worker.store.arq_queue import queue_name, wake_key
from worker.store.calls import By, Scripts, as_json, given, redis_answers
from worker.store.connection import LATE_SECONDS
from worker.store.model import (
    NODE_SILENT_SECONDS,
    AccountId,
    Job,
    JobId,
    ServerId,
    SnapshotId,
    SnapshotStatus,
    Step,
)
from worker.store.nodes.bounds import NAME_MAX, bounded_facts, bounded_outcome
from worker.store.nodes.claims import (
    BeginRefused,
    BegunJob,
    ClaimRefused,
    CredentialEnded,
    Known,
    KnownSnapshot,
    LeaseHeld,
    LeaseLost,
    PublishedSnapshot,
    Reported,
    ReportedServer,
)
from worker.store.outcome import DELETE_RETRY_SECONDS, LEFT_ITS_NODE, STARTS_TOO_LATE, Outcome
from worker.store.reports import EMPTY_REPORT, JobReport, NodeFacts


class Placement(StrEnum):
    """Which servers a node may add to the service."""

    CLAIM = "claim"  # any that no other node has
    DECLARED = "declared"  # those that an operator or an orchestrator has declared


BATCH = 100  # deletes that one script queues; limits how long it blocks Redis
MOST_QUEUED = 1000  # jobs of a queue that one script reads; limits how long it blocks Redis
# results of jobs that end without being started
_ENDED = {"left": LEFT_ITS_NODE.for_script(), "late": STARTS_TOO_LATE.for_script()}
_SHORTEST = 0.01  # shortest blocking wait, because 0 means forever
_ENDS_BEFORE_MS = 20  # how long before the end of its wait a `take` is given no more started jobs: it must hear of them


class NodeStore(Scripts):
    """The store as one worker of one node sees it.

    `owner` identifies the worker process as holder of the lease. `machine` is the same for every worker of this
    node's lock file, so that a restarted one takes over at once. `who` describes for people where
    the worker runs. `node_silent_seconds`: how old a node's last heartbeat may be; after that, an operator can
    place its servers on another node. `placement`: which servers the node may add. `refused` is called with the call
    and the reason of each claim that is reported to operators. `remembers_reports`: a report that equals the last one
    is not processed completely, unless the node's servers were changed or a minute has passed. `waiting`: a client for
    `take`, whose commands may block longer than others. `starts_at_admission`: a job that is admitted while `take`
    waits is started by its admission, which does not wait for replicas of Redis. `credential`: the key of the node's
    credential, which each script checks; None: the node uses Redis itself.
    """

    def __init__(  # noqa: PLR0913 - each is named where it is given
        self,
        redis: Redis,
        *,
        node: str,
        machine: str,
        who: str,
        owner: str | None = None,
        node_silent_seconds: float = NODE_SILENT_SECONDS,
        placement: Placement = Placement.CLAIM,
        refused: Callable[[str, str], None] = lambda _call, _reason: None,
        remembers_reports: bool = False,
        waiting: Redis | None = None,
        starts_at_admission: bool = True,
        credential: str | None = None,
    ) -> None:
        super().__init__(redis)
        self.node = node
        self._refused = refused
        self._remembers_reports = remembers_reports
        self._placement = placement
        self._machine = machine[:NAME_MAX]
        self._who = who[:NAME_MAX]
        self._owner = owner or uuid4().hex
        self._waiting = waiting or redis
        self._starts_at_admission = starts_at_admission
        self._credential = credential
        self._silent_ms = round(node_silent_seconds * 1000)
        self._wakings: set[asyncio.Future[Any]] = set()  # blocked calls of `take`
        self._stops = 0

    @property
    def _us(self) -> dict[str, str]:
        """The caller's fields of an ask. A script changes nothing if another worker holds the node's lease, except
        `republish`."""
        return {"node": self.node, "owner": self._owner} | given(credential=self._credential)

    async def _call(self, name: str, ask: Mapping[str, Any], by: By | None = None) -> Any:
        answer = await super()._call(name, ask, by)
        if answer == [b"credential_ended"]:
            raise CredentialEnded
        return answer

    async def _claim(self, name: str, ask: Mapping[str, Any]) -> list[Any]:
        """Run the script `name` with a claim. Raises ClaimRefused or LeaseLost."""
        answer: list[Any] = await self._call(name, {**self._us, **ask})
        match answer:
            case [b"claim_refused", reason]:
                self._refused(name.removeprefix("nodes/"), reason.decode())
                raise ClaimRefused(reason.decode())
            case [b"not_here", reason]:
                raise ClaimRefused(reason.decode())
            case [b"lease_lost"]:
                raise LeaseLost
        return answer

    async def take_lease(self, *, seconds: float) -> LeaseHeld | None:
        """Take or renew the node's lease and record a heartbeat. Returns None, or who else holds the lease."""
        ask = self._us | {"machine": self._machine, "who": self._who, "lease_ms": round(seconds * 1000)}
        taken, left_ms, *who = await self._call("nodes/lease", ask)
        return None if taken else LeaseHeld(who=records.text(who[0]), seconds_left=left_ms / 1000)

    async def lease_holder(self) -> LeaseHeld | None:
        """The other holder of the node's lease, or None. Changes nothing."""
        left_ms, *who = await self._call("nodes/holder", self._us | {"machine": self._machine})
        return LeaseHeld(who=records.text(who[0]), seconds_left=left_ms / 1000) if who else None

    async def take(
        self, *, running: Sequence[JobId], free: int, seconds: float, begin: bool = False
    ) -> tuple[JobId | Job, ...]:
        """The jobs that the node must run now, oldest first: at most `free`, and none in `running`. Waits up to
        `seconds` for a job; returns none after that, or after `stop_taking`. A job is returned again until it is over
        or in `running`.

        With `begin`, jobs that have not begun are begun, as by `begin`, and returned as records. Jobs that had begun
        before are returned as IDs, because the node knows whether it has started them. Without the lease, no jobs are
        returned."""
        ask = self._us | {"running": running, "free": free, "limit": MOST_QUEUED, "begin": begin}
        ask |= _ENDED
        until, stops = time.monotonic() + seconds, self._stops
        wait = uuid4().hex if begin and self._starts_at_admission else ""
        try:
            while True:
                left_ms = round((until - time.monotonic()) * 1000) - _ENDS_BEFORE_MS
                noted = {"wait": {"id": wait, "ms": left_ms}} if wait and left_ms > 0 else {}
                due: list[list[Any]] = await self._call("nodes/take", ask | noted)
                left = until - time.monotonic()
                if due or left <= 0:
                    break
                woken = None if self._stops > stops else await self._woken(max(left, _SHORTEST), wait)
                if self._stops > stops:
                    await self._wait_no_longer(wait)
                elif woken == []:  # woken, but not given a job
                    continue
                due = woken or []
                break
        except asyncio.CancelledError:
            await self._wait_no_longer(wait)
            raise
        return tuple([await self._given(*one) for one in due])

    async def _given(self, job_id: bytes, *begun: list[bytes]) -> JobId | Job:
        with suppress(errors.RecordUnreadable):  # reported to operators; `begin` reports it to the node
            if begun:
                return await self._one(_job, [job_id, *begun], kind="job")
        return JobId(job_id.decode())

    async def _woken(self, seconds: float, wait: str) -> list[list[Any]] | None:
        """Wait until the node is woken or `stop_taking` is called, at most `seconds`; half a second more if Redis does
        not answer, because another one may be the primary by now. Returns the job that an admission has given to this
        wait, in the form of the script's answer; [] if the node was woken without one; otherwise None."""
        timeout: Any = seconds  # the type allows only whole seconds
        given = f"node:{self.node}:given:{wait}"
        # the type of its answer is also too narrow
        blpop: Any = self._waiting.blpop([given, wake_key(queue_name(self.node))], timeout=timeout)
        waking: asyncio.Future[Any] = asyncio.ensure_future(blpop)
        with redis_answers():
            self._wakings.add(waking)
            try:
                await asyncio.wait({waking}, timeout=seconds + LATE_SECONDS)
                woken = waking.result() if waking.done() and not waking.cancelled() else None
            finally:
                self._wakings.discard(waking)
                waking.cancel()
        if woken is None:
            return None
        return _started(woken[1]) if woken[0] == given.encode() else []

    async def _wait_no_longer(self, wait: str) -> None:
        """Make admissions start no job for this wait, which has ended. If that fails, they stop when it expires."""
        if not wait:
            return
        with suppress(errors.StoreUnavailable, CredentialEnded):
            await self._call("nodes/stop_waiting", self._us | {"wait": wait})

    async def stop_taking(self) -> None:
        """End each waiting `take`, because nobody would start its jobs."""
        self._stops += 1
        for waking in self._wakings:
            waking.cancel()

    async def begin(self, job_id: JobId) -> Job:
        """Record that this worker begins a job, for the first time or again. Raises LeaseLost or BeginRefused."""
        try:
            verdict, answer = await self._claim("nodes/begin", {"job": job_id, **_ENDED})
            if verdict == b"begun":
                return await self._one(_job, [job_id.encode(), answer], kind="job")
        except ClaimRefused as refused:
            raise BeginRefused(refused.reason) from refused
        except errors.RecordUnreadable as error:
            raise BeginRefused(error.code) from error
        if answer == b"lease_lost":
            raise LeaseLost
        raise BeginRefused(answer.decode())

    async def progress(self, job_id: JobId, step: Step, report: JobReport = EMPTY_REPORT) -> None:
        """Publish a job's progress; a job that is over is not changed. Raises LeaseLost or ClaimRefused."""
        with suppress(errors.RecordUnreadable):  # reported to operators
            await self._claim("nodes/progress", {"job": job_id, "step": step, "report": report.for_script()})

    async def finish(self, job_id: JobId, outcome: Outcome, report: JobReport = EMPTY_REPORT, power: str = "") -> str:
        """Publish a job's outcome and its server's current power state ('': unknown). Idempotent. Returns
        "published", or why nothing was changed: a code of `finish.lua`, or "record_unreadable". Raises LeaseLost or
        ClaimRefused."""
        result = bounded_outcome(outcome).for_script()
        ask = {"job": job_id, "result": result, "report": report.for_script(), "power": power}
        try:
            (answer,) = await self._claim("nodes/finish", ask)
        except errors.RecordUnreadable as error:
            return str(error.code)
        word: str = answer.decode()
        return word

    async def report(self, servers: Iterable[ReportedServer], about: NodeFacts | None = None) -> Reported:
        """Report the node's servers and facts; None: unchanged. Raises LeaseLost or ClaimRefused."""
        known = None if about is None else bounded_facts(about)
        listed = [{"id": str(s.id), "account": str(s.account_id), "name": s.name, "power": s.power} for s in servers]
        rule = {"silent_ms": self._silent_ms, "placement": self._placement}
        facts: dict[str, Any] = {
            "about": "" if known is None else known.model_dump_json(),
            "free_bytes": 0 if known is None else known.free_bytes,
            "boot": "" if known is None else known.boot,
            "digest": sha256(as_json([rule, listed])).hexdigest(),
        }
        if self._remembers_reports and (again := await self._claim("nodes/report_again", facts)):
            return Reported(reconcile_asked=records.text(again[0]))
        ask = {"servers": listed, "left": LEFT_ITS_NODE.for_script(), **rule, **facts}
        _, *lists, accounts, asked, left_out = await self._claim("nodes/report", ask)
        for reason in left_out:
            self._refused("report", reason.decode())
        conflicts, fresh, gone = (
            frozenset(ServerId(int(server)) for server in servers if server.isdigit()) for servers in lists
        )
        return Reported(
            conflicts=conflicts,
            fresh=fresh,
            gone=gone,
            reconcile_asked=records.text(asked),
            accounts={ServerId(int(k)): AccountId(int(v)) for k, v in records.pairs(accounts).items()},
        )

    async def publish(
        self, server_id: ServerId, snapshots: Iterable[PublishedSnapshot], begun: Iterable[BegunJob]
    ) -> tuple[SnapshotId, ...]:
        """Report a server's snapshots on disk and its unfinished jobs. Existing records are not changed, except
        that missing contents are added. Claims that contradict the records are left out. Returns the IDs of the
        snapshots that were unknown. Raises LeaseLost or ClaimRefused."""
        ask = {
            "server": str(server_id),
            "snapshots": [_snapshot_for_script(snapshot) for snapshot in snapshots],
            "jobs": [_job_for_script(job) for job in begun],
        }
        _, new, left_out = await self._claim("nodes/publish", ask)
        for reason in left_out:
            self._refused("publish", reason.decode())
        return tuple(SnapshotId(int(snapshot_id)) for snapshot_id in new)

    async def known(self, server_id: ServerId, on_disk: Sequence[SnapshotId]) -> Known:
        """The store's records of a server's snapshots, and of those that were found on its disks. Raises LeaseLost or
        ClaimRefused."""
        ask = {"server": str(server_id), "snapshots": [str(snapshot_id) for snapshot_id in on_disk]}
        _, holder, asked, listed, undoable = await self._claim("nodes/known", ask)
        elsewhere = frozenset(one for one, flat in zip(on_disk, asked, strict=True) if b"elsewhere" in flat[::2])
        rows = [(str(one).encode(), [] if one in elsewhere else flat) for one, flat in zip(on_disk, asked, strict=True)]
        statuses = zip(listed[::2], listed[1::2], strict=True)
        return Known(
            busy=bool(holder),
            on_disk=dict(await self._many(_on_disk, rows, kind="snapshot")),
            listed=dict(await self._many(_listed, statuses, kind="snapshot")),
            undoable=JobId(records.text(undoable)) if undoable else None,
            elsewhere=elsewhere,
        )

    async def lose(self, server_id: ServerId, snapshot_id: SnapshotId) -> bool:
        """Report that a listed snapshot is not on the disks. Returns whether it was marked as failed. Raises
        ClaimRefused."""
        return await self._claim("nodes/lose", {"server": str(server_id), "snapshot": str(snapshot_id)}) == [1]

    async def regain(self, server_id: ServerId, snapshot_id: SnapshotId, *, size_mb: int) -> bool:
        """Report that a lost snapshot is complete on the disks again. Returns whether it was marked as completed.
        Raises ClaimRefused."""
        ask = {"server": str(server_id), "snapshot": str(snapshot_id), "size_mb": str(size_mb)}
        return await self._claim("nodes/regain", ask) == [1]

    async def republish(self) -> int:
        """Make the node's worker publish the snapshots and jobs of each server again with its next report. Returns the
        number of servers."""
        servers: int = await self._call("nodes/republish", self._us)
        return servers

    async def tell_findings(self, server_id: ServerId, findings: Sequence[dict[str, str]]) -> None:
        """Set the findings of a server in the operators' list, or clear them. Raises ClaimRefused."""
        await self._claim("nodes/findings", {"server": str(server_id), "findings": list(findings)})

    async def retry_deletes(self) -> int:
        """Queue the deletes of this node that have not freed their space again. Returns their number."""
        ask = {
            "retry_ms": round(DELETE_RETRY_SECONDS * 1000),
            "job_ids": [uuid4().hex for _ in range(BATCH)],
        }
        return len(await self._call("nodes/retry_deletes", self._us | ask))


def _started(given: bytes) -> list[list[Any]]:
    """The job that an admission has given, in the form of an answer of `take`; none if it cannot be read."""
    try:
        job_id, flat = json.loads(given)
        return [[job_id.encode(), [text.encode() for text in flat]]]
    except (ValueError, TypeError, AttributeError):
        return []


def _job(shown: list[Any]) -> Job:
    job_id, flat = shown
    return records.job(JobId(job_id.decode()), records.pairs(flat))


def _on_disk(shown: tuple[bytes, list[bytes]]) -> tuple[SnapshotId, KnownSnapshot | None]:
    snapshot_id, flat = shown
    return SnapshotId(int(snapshot_id)), _known(records.pairs(flat)) if flat else None


def _listed(shown: tuple[bytes, bytes]) -> tuple[SnapshotId, SnapshotStatus]:
    snapshot_id, status = shown
    return SnapshotId(int(snapshot_id)), SnapshotStatus(status.decode())


def _known(record: records.Hash) -> KnownSnapshot:
    return KnownSnapshot(
        status=SnapshotStatus(record["status"]),
        lost="lost" in record,
        name=record["name"],
        description=record["description"],
        created_at=records.moment(record["created_ms"]),
        contents=written.read_contents(record.get("contents", "")),
        failed_deletes=records.whole(record.get("failed_deletes", "0")),
    )


def _snapshot_for_script(snapshot: PublishedSnapshot) -> dict[str, str]:
    return {
        "id": str(snapshot.id),
        "name": snapshot.name,
        "description": snapshot.description,
        "created_ms": records.milliseconds(snapshot.created_at),
        "size_mb": "" if snapshot.size_mb is None else str(snapshot.size_mb),
        "status": snapshot.status,
        "contents": written.contents(snapshot.contents),
    }


def _job_for_script(job: BegunJob) -> dict[str, str]:
    return {
        "id": job.id,
        "kind": job.kind,
        "snapshot": str(job.snapshot_id),
        "snapshot_name": job.snapshot_name,
        "snapshot_description": job.snapshot_description,
        "snapshot_created_ms": records.milliseconds(job.snapshot_created_at),
        "request_id": job.request_id,
        "undoes": job.undoes or "",
        "present_only": "1" if job.present_only else "",
        "live": "1" if job.live else "",
    }
