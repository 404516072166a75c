"""Reconciliation: compares the store with the disks, with what is written down on the node, and with the journal.

What is on the disks and nobody knows is told to the store (so a store that lost its data is built up again). What is
provably ours and an orphan is deleted. What the store lists and no disk has is told as failed. What is no longer
written down in the domain's metadata is written there again. A snapshot without a tag of ours is never touched.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import structlog

from drivers.base import (
    DiskFailed,
    DriverError,
    FoundSnapshot,
    Hypervisor,
    ServerInUse,
    SkippedDisk,
    SnapshotNotFound,
    SnapshotSpec,
    UnsupportedServer,
)
from worker.journal import Journal, JournalFailed
from worker.metrics import Metrics
from worker.procedures.disks import without
from worker.procedures.notes import contents_held, contents_to_write
from worker.procedures.work import SAFETY_PREFIX, Task
from worker.runner import Runner
from worker.store.errors import StoreUnavailable
from worker.store.model import Contents, JobKind, ServerId, SnapshotId, SnapshotStatus, snapshot_id_of, snapshot_tag
from worker.store.nodes.node_store import BegunJob, Known, KnownSnapshot, LeaseLost, NodeStore, PublishedSnapshot

ROUND_SECONDS = 300.0  # between two looks at every server of the node
UNDELETED_AFTER = 3  # failures of a delete, over three minutes at least: what passes by itself is none to look at
AGAIN_SECONDS = 3.0  # until a server is looked at again that was being worked on
AGAIN_TRIES = 5  # then it is judged with the next round: a job may wait for hours

log = structlog.stdlib.get_logger()


class FindingKind(StrEnum):
    """What can differ, and what is done about it."""

    UNKNOWN_SNAPSHOT = "unknown_snapshot"  # on the disks and not in the store: published
    UNLISTED_SNAPSHOT = "unlisted_snapshot"  # whole, and nothing is written down of it: written again
    FOUND_SNAPSHOT = "found_snapshot"  # had been lost, and is whole on the disks again: completed as it was
    STRAY_TAG = "stray_tag"  # ours by its name, of nobody that is known, or a part of a lost one: told, nothing else
    ORPHANED_TAG = "orphaned_tag"  # of a create that has failed, and no job owns it: deleted
    LOST_SNAPSHOT = "lost_snapshot"  # in the store and on no disk: told as failed
    TORN_SNAPSHOT = "torn_snapshot"  # in the store, and on some disks only (a disk was added?): told, nothing else
    REVERTED_SNAPSHOT = "reverted_snapshot"  # someone took the server back to it past us (virsh?): told, nothing else
    SHARED_DISK = "shared_disk"  # another domain has it, or is based on it: told; jobs of the server are refused
    UNDELETED_SNAPSHOT = "undeleted_snapshot"  # gone for its customer; each try to free its space failed: tried again
    UNTRACKED_SAFETY = "untracked_safety"  # a safety snapshot that the journal does not know: given its usual time


@dataclass(frozen=True, kw_only=True)
class Finding:
    kind: FindingKind
    tag: str  # of a shared disk: its target
    reason: str = ""  # for the log


class Reconciler:
    """`safety_kept_seconds`: how long a safety snapshot that was found is kept. `look_seconds`: bound on one server."""

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        store: NodeStore,
        journal: Journal,
        runner: Runner,
        safety_kept_seconds: float,
        look_seconds: float,
        metrics: Metrics | None = None,
    ) -> None:
        self._hypervisor = hypervisor
        self._store = store
        self._journal = journal
        self._runner = runner
        self._safety_kept_seconds = safety_kept_seconds
        self._look_seconds = look_seconds
        self._metrics = metrics or Metrics()
        for finding in FindingKind:
            self._metrics.found(finding, times=0)
        self._asked = asyncio.Event()
        self._shared: Mapping[int, tuple[SkippedDisk, ...]] = {}  # as last seen
        self._unjudged: dict[ServerId, int] = {}  # tries that are left

    def soon(self) -> None:
        """Look at every server at once, not only when the round comes."""
        self._asked.set()

    async def keep_reconciling(self) -> None:
        """Run until cancelled: look at every server at once, and every few minutes."""
        while True:
            self._asked.clear()
            try:
                async with asyncio.timeout(self._look_seconds):
                    domains = await self._hypervisor.domains()
                    await self._look_for_shared_disks()
                for domain in domains:
                    await self.server(ServerId(domain.server_id))
            except (DriverError, TimeoutError) as error:
                log.warning("reconcile.put_off", reason=str(error) or type(error).__name__)
            await self._look_again_until(time.monotonic() + ROUND_SECONDS)

    async def _look_for_shared_disks(self) -> None:
        """Storage of one server that does not answer keeps no other server from being looked at."""
        try:
            self._shared = await self._hypervisor.shared_disks()
        except DriverError as error:
            log.warning("reconcile.shared_unknown", reason=str(error))

    async def _look_again_until(self, round_ends: float) -> None:
        """A store that came back from an older copy may hold a server for a job that ended long ago: its end is told
        within moments, and then what differs is to be judged."""
        while not self._asked.is_set() and time.monotonic() < round_ends:
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS):
                    await self._asked.wait()
            for server_id, tries in list(self._unjudged.items()):
                self._unjudged[server_id] = tries - 1
                await self.server(server_id)
                if self._unjudged.get(server_id) == 0:
                    del self._unjudged[server_id]

    async def server(self, server_id: ServerId) -> None:
        """Look at one server. One that is being worked on has its view published, and is judged the next time."""
        try:
            lock = self._runner.lock_of(server_id)
            if lock.locked():
                self._unjudged.setdefault(server_id, AGAIN_TRIES)
                async with asyncio.timeout(self._look_seconds):
                    await self._publish(server_id, await self._found(server_id))
                return
            async with lock, asyncio.timeout(self._look_seconds):
                await self._judge(server_id)
        except (DriverError, StoreUnavailable, LeaseLost, TimeoutError, JournalFailed) as error:
            log.warning("reconcile.put_off", server_id=server_id, reason=str(error) or type(error).__name__)
        except Exception:  # one odd server must not end the worker, again and again
            log.exception("reconcile.broke", server_id=server_id)

    async def _found(self, server_id: ServerId) -> list[FoundSnapshot]:
        """What is on the server's disks. Of one that can't be read (a disk is missing), the store hears of no snapshot:
        what the customer asks for must reach the node, and fail there with the reason."""
        try:
            return await self._hypervisor.snapshots(server_id)
        except UnsupportedServer as error:
            log.warning("reconcile.unreadable", server_id=server_id, reason=str(error))
            await self._store.publish(server_id, [], [])
            raise

    async def _publish(self, server_id: ServerId, found: Iterable[FoundSnapshot]) -> list[Finding]:
        """Tell the store of the snapshots and jobs that it does not know."""
        making_or_deleting = {JobKind.CREATE, JobKind.DELETE}
        at_work = {task.snapshot_id for task in self._open_tasks(server_id) if task.kind in making_or_deleting}
        # A create writes a snapshot down last: what is written down was whole, and is a customer's.
        taken = {
            snapshot_id: (snapshot.tag, snapshot.spec)
            for snapshot in found
            if snapshot.targets and snapshot.spec and (snapshot_id := snapshot_id_of(snapshot.tag)) is not None
        }
        held = {
            snapshot_id: contents_held(snapshot.contents)
            for snapshot in found
            if snapshot.contents and (snapshot_id := snapshot_id_of(snapshot.tag)) in taken
        }
        known = await self._store.known(server_id, list(taken))
        safety = self._journal.safety_tags(server_id)
        missing = [
            PublishedSnapshot(
                id=snapshot_id,
                name=spec.name,
                description=spec.description,
                created_at=spec.created_at,
                size_mb=await self._size_mb(server_id, tag),
                status=SnapshotStatus.COMPLETED,
                contents=held.get(snapshot_id),
            )
            for snapshot_id, (tag, spec) in taken.items()
            if known.on_disk[snapshot_id] is None and snapshot_id not in at_work and tag not in safety
        ]
        described = [
            _described(snapshot_id, record, contents)
            for snapshot_id, contents in held.items()
            if (record := known.on_disk[snapshot_id]) is not None and record.contents is None
        ]
        open_tasks = self._open_tasks(server_id)  # as it is now: one that ended meanwhile must not come back
        begun = [_begun(task) for task in open_tasks]
        made = [_in_the_making(task) for task in open_tasks if task.kind is JobKind.CREATE]
        new = await self._store.publish(server_id, [*missing, *described, *made], begun)
        return [Finding(kind=FindingKind.UNKNOWN_SNAPSHOT, tag=taken[new_id][0]) for new_id in new if new_id in taken]

    async def _size_mb(self, server_id: ServerId, tag: str) -> int | None:
        """None: not told, as of a snapshot that a disk of today lacks. It is the customer's all the same."""
        try:
            return await self._hypervisor.size_mb(server_id, tag)
        except (SnapshotNotFound, DiskFailed) as error:
            log.warning("snapshot.unmeasured", server_id=server_id, tag=tag, reason=str(error))
            return None

    async def _judge(self, server_id: ServerId) -> None:
        try:
            found = await self._found(server_id)
        except DriverError:
            await self._let_go_if_idle(server_id)  # what can't be read now may have to be moved, or taken apart
            raise
        findings = await self._publish(server_id, found)
        ids = {found_id: snapshot for snapshot in found if (found_id := snapshot_id_of(snapshot.tag)) is not None}
        known = await self._store.known(server_id, list(ids))
        is_busy = known.busy or bool(self._open_tasks(server_id)) or await self._is_in_use(server_id)
        if is_busy:
            self._unjudged.setdefault(server_id, AGAIN_TRIES)
        else:
            self._unjudged.pop(server_id, None)
            safety = self._journal.safety_tags(server_id)
            ours = {found_id: one for found_id, one in ids.items() if one.tag not in safety}
            whole = {found_id: one for found_id, one in ours.items() if one.complete}
            await self._hypervisor.let_go(server_id)  # a process that died in a job's last moment has not
            await self._settle(server_id, found)
            findings += await self._list_again(server_id, whole, known)
            findings += await self._regain(server_id, whole, known)
            findings += await self._delete_orphans(server_id, ours, known)
            findings += _strays(ours, known)
            findings += _undeleted(ours, known)
            findings += _reverted(found)
            shared = self._shared.get(server_id, ())
            findings += [Finding(kind=FindingKind.SHARED_DISK, tag=disk.target, reason=disk.reason) for disk in shared]
            findings += await self._tell_lost(server_id, ids, known)
            findings += self._track_safeties(server_id, found, safety, known)
        for finding in findings:
            why = {"reason": finding.reason} if finding.reason else {}
            log.warning("reconcile.finding", finding=finding.kind, server_id=server_id, tag=finding.tag, **why)
            self._metrics.found(finding.kind)
        if is_busy:
            return  # what was found before stays in the list until it is judged again
        listed = [{"finding": str(d.kind), "tag": d.tag, "at": f"{time.time():.0f}"} for d in findings]
        await self._store.tell_findings(server_id, listed)

    async def _let_go_if_idle(self, server_id: ServerId) -> None:
        known = await self._store.known(server_id, [])
        if not known.busy and not self._open_tasks(server_id):
            await self._hypervisor.let_go(server_id)

    async def _is_in_use(self, server_id: ServerId) -> bool:
        """Whether another tool is at work on the server: it is left alone then."""
        try:
            await self._hypervisor.refuse_if_in_use(server_id)
        except ServerInUse as error:
            log.info("reconcile.in_use", server_id=server_id, reason=str(error))
            return True
        return False

    async def _settle(self, server_id: ServerId, found: Iterable[FoundSnapshot]) -> None:
        """Write down where it stays what older versions, or an operator who wanted to see it in virsh, have put into
        libvirt's list: it would keep the server from being migrated. What someone has gone back to past us stays."""
        for snapshot in found:
            if not snapshot.settled and not snapshot.current and snapshot.spec is not None:
                await self._hypervisor.list_snapshot(server_id, snapshot.spec, snapshot.contents)
                log.info("reconcile.settled", server_id=server_id, tag=snapshot.tag)

    async def _list_again(
        self, server_id: ServerId, whole: dict[SnapshotId, FoundSnapshot], known: Known
    ) -> list[Finding]:
        """Write down again what was lost: should the store lose its data, the names are there alone."""
        findings = []
        for snapshot_id, snapshot in whole.items():
            record = known.on_disk[snapshot_id]
            if snapshot.spec is not None or record is None or record.server_id != server_id:
                continue
            if record.status is not SnapshotStatus.COMPLETED and not record.lost:
                continue
            spec = SnapshotSpec(
                tag=snapshot.tag,
                name=record.name,
                description=record.description,
                created_at=record.created_at,
            )
            await self._hypervisor.list_snapshot(server_id, spec, contents_to_write(record.contents))
            findings.append(Finding(kind=FindingKind.UNLISTED_SNAPSHOT, tag=snapshot.tag))
        return findings

    async def _regain(self, server_id: ServerId, whole: dict[SnapshotId, FoundSnapshot], known: Known) -> list[Finding]:
        """What a live backup has hidden, for example, under an overlay that it put over each disk for a while."""
        findings = []
        for snapshot_id, snapshot in whole.items():
            record = known.on_disk[snapshot_id]
            if record is not None and record.lost:
                size_mb = await self._hypervisor.size_mb(server_id, snapshot.tag)
                if await self._store.regain(server_id, snapshot_id, size_mb=size_mb):
                    findings.append(Finding(kind=FindingKind.FOUND_SNAPSHOT, tag=snapshot.tag))
        return findings

    async def _delete_orphans(
        self, server_id: ServerId, ours: dict[SnapshotId, FoundSnapshot], known: Known
    ) -> list[Finding]:
        """Delete what creates have left that failed, though not all could be cleaned then."""
        orphans = [
            snapshot.tag
            for snapshot_id, snapshot in ours.items()
            if snapshot.spec is None
            and (record := known.on_disk[snapshot_id])
            and record.status is SnapshotStatus.FAILED
            and record.server_id == server_id
            and not record.lost
        ]
        for tag in orphans:
            self._journal.change(server_id)
            await without(self._hypervisor, server_id, tag)
            self._journal.changed(server_id)
        return [Finding(kind=FindingKind.ORPHANED_TAG, tag=tag) for tag in orphans]

    async def _tell_lost(
        self, server_id: ServerId, ids: dict[SnapshotId, FoundSnapshot], known: Known
    ) -> list[Finding]:
        findings = []
        for snapshot_id, status in known.listed.items():
            held = ids.get(snapshot_id)
            if status in {SnapshotStatus.FAILED, SnapshotStatus.DELETING} or (held and held.complete):
                continue
            kind = FindingKind.TORN_SNAPSHOT if held and held.targets else FindingKind.LOST_SNAPSHOT
            reason = "; ".join(held.missing) if held else "no disk of the server holds the snapshot"
            if kind is FindingKind.TORN_SNAPSHOT or await self._store.lose(server_id, snapshot_id):
                findings.append(Finding(kind=kind, tag=snapshot_tag(snapshot_id), reason=reason))
        return findings

    def _track_safeties(
        self, server_id: ServerId, found: Iterable[FoundSnapshot], safety: frozenset[str], known: Known
    ) -> list[Finding]:
        """A migrated server brings its own along, and of those that were about to be deleted perhaps the name alone."""
        safeties = [snapshot for snapshot in found if snapshot.tag.startswith(SAFETY_PREFIX)]
        untracked = [snapshot.tag for snapshot in safeties if snapshot.tag not in safety]
        for tag in untracked:
            self._journal.track_safety_tag(server_id, tag, kept_seconds=self._safety_kept_seconds)
        # The nodes that it was on have made the older ones due, each in its own journal.
        if older := _before(f"{SAFETY_PREFIX}{known.undoable}", safeties):
            self._journal.supersede(server_id, older)
        return [Finding(kind=FindingKind.UNTRACKED_SAFETY, tag=tag) for tag in untracked]

    def _open_tasks(self, server_id: ServerId) -> list[Task]:
        """The jobs of which the store does not know the end: under way, or over and not yet published."""
        return [entry.task for entry in self._journal.owed() if entry.task.server_id == server_id]


def _before(tag: str, safeties: Iterable[FoundSnapshot]) -> list[str]:
    """The tags of those that were taken before the one with that tag."""
    taken = {snapshot.tag: snapshot.spec.created_at for snapshot in safeties if snapshot.spec}
    return [one for one, moment in taken.items() if tag in taken and moment < taken[tag]]


def _strays(ours: dict[SnapshotId, FoundSnapshot], known: Known) -> list[Finding]:
    """What may be all that is left of a customer's snapshot: its server was moved, say, and the store lost its data."""
    return [
        Finding(kind=FindingKind.STRAY_TAG, tag=snapshot.tag)
        for snapshot_id, snapshot in ours.items()
        if ((record := known.on_disk[snapshot_id]) is None and snapshot.spec is None)
        or (record and record.lost and not snapshot.complete)
    ]


def _undeleted(ours: dict[SnapshotId, FoundSnapshot], known: Known) -> list[Finding]:
    return [
        Finding(kind=FindingKind.UNDELETED_SNAPSHOT, tag=snapshot.tag)
        for snapshot_id, snapshot in ours.items()
        if (record := known.on_disk[snapshot_id])
        and record.status is SnapshotStatus.DELETING
        and record.failed_deletes >= UNDELETED_AFTER
    ]


def _reverted(found: Iterable[FoundSnapshot]) -> list[Finding]:
    """The guest's data are older than any job of ours says: whoever looks for the newer ones must find out why."""
    return [
        Finding(kind=FindingKind.REVERTED_SNAPSHOT, tag=snapshot.tag)
        for snapshot in found
        if snapshot.current and (snapshot_id_of(snapshot.tag) is not None or snapshot.tag.startswith(SAFETY_PREFIX))
    ]


def _begun(task: Task) -> BegunJob:
    return BegunJob(
        id=task.job_id,
        kind=task.kind,
        snapshot_id=task.snapshot_id,
        snapshot_name=task.name,
        snapshot_description=task.description,
        snapshot_created_at=task.created_at,
        request_id=task.request_id,
        undoes=task.undoes,
        present_only=task.present_only,
    )


def _described(snapshot_id: SnapshotId, record: KnownSnapshot, contents: Contents) -> PublishedSnapshot:
    """A snapshot that the store knows, with what it holds: nothing else of it is written."""
    return PublishedSnapshot(
        id=snapshot_id,
        name=record.name,
        description=record.description,
        created_at=record.created_at,
        size_mb=None,
        status=record.status,
        contents=contents,
    )


def _in_the_making(task: Task) -> PublishedSnapshot:
    return PublishedSnapshot(
        id=task.snapshot_id,
        name=task.name,
        description=task.description,
        created_at=task.created_at,
        size_mb=None,
        status=SnapshotStatus.IN_PROGRESS,
    )
