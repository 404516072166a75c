"""Reconciliation: compares the store with the disks, the domains' metadata and the journal.

Snapshots that are on the disks but not in the store are published, so a store that lost its data is rebuilt. Orphaned
tags that are provably ours are deleted. Snapshots that the store lists but no disk has are marked as failed. Missing
metadata is written again. Tags that are not ours are never touched.
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
from worker.program.loop import guarded
from worker.runner import Runner
from worker.store.errors import RecordUnreadable, StoreUnavailable
from worker.store.model import Contents, JobKind, ServerId, SnapshotId, SnapshotStatus, snapshot_id_of, snapshot_tag
from worker.store.nodes.claims import (
    BegunJob,
    ClaimRefused,
    Known,
    KnownSnapshot,
    LeaseLost,
    PublishedSnapshot,
)
from worker.store.nodes.port import NodePort

ROUND_SECONDS = 300.0  # interval between rounds over all servers of the node
UNDELETED_AFTER = 3  # failed deletes, over at least three minutes, until it is a finding: the cause may be temporary
RECHECK_SECONDS = 3.0  # before a busy server is checked again
RECHECKS = 5  # after that, the server waits for the next round: a job may be queued for hours

log = structlog.stdlib.get_logger()


class FindingKind(StrEnum):
    """The kinds of differences, and how reconciliation handles each."""

    UNKNOWN_SNAPSHOT = "unknown_snapshot"  # on the disks, not in the store: published
    UNLISTED_SNAPSHOT = "unlisted_snapshot"  # complete, but without metadata: metadata written again
    FOUND_SNAPSHOT = "found_snapshot"  # was lost and is complete on the disks again: marked completed
    STRAY_TAG = "stray_tag"  # named like ours, but matches no record, or part of a lost snapshot: only reported
    ORPHANED_TAG = "orphaned_tag"  # left by a failed create and owned by no job: deleted
    LOST_SNAPSHOT = "lost_snapshot"  # in the store, on no disk: marked failed
    TORN_SNAPSHOT = "torn_snapshot"  # in the store, but only on some disks (a disk was added?): only reported
    REVERTED_SNAPSHOT = "reverted_snapshot"  # someone reverted the server to it outside the service: only reported
    SHARED_DISK = "shared_disk"  # another domain uses it or is based on it: reported; the server's jobs are refused
    UNDELETED_SNAPSHOT = "undeleted_snapshot"  # deleted for the customer, but still on a disk: reported, retried
    UNTRACKED_SAFETY = "untracked_safety"  # a safety snapshot missing in the journal: added with the usual retention


@dataclass(frozen=True, kw_only=True)
class Finding:
    kind: FindingKind
    tag: str  # for SHARED_DISK: the disk's target
    reason: str = ""  # logged only


class Reconciler:
    """Compares and corrects the servers of one node.

    `safety_kept_seconds`: retention of an untracked safety snapshot. `look_seconds`: time limit per server.
    """

    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        store: NodePort,
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
        self._shared: Mapping[int, tuple[SkippedDisk, ...]] = {}  # as of the last round
        self._pending: dict[ServerId, int] = {}  # busy servers -> rechecks left

    def soon(self) -> None:
        """Start a round now."""
        self._asked.set()

    async def keep_reconciling(self) -> None:
        """Run until cancelled: check every server now and every ROUND_SECONDS."""
        while True:
            self._asked.clear()
            with guarded("reconcile"):
                await self._round()
            await self._recheck_until(time.monotonic() + ROUND_SECONDS)

    async def _round(self) -> None:
        try:
            async with asyncio.timeout(self._look_seconds):
                domains = await self._hypervisor.domains()
                await self._find_shared_disks()
            for domain in domains:
                await self.server(ServerId(domain.server_id))
        except (DriverError, TimeoutError) as error:
            log.warning("reconcile.put_off", reason=str(error) or type(error).__name__)

    async def _find_shared_disks(self) -> None:
        """Find disks that several domains use. If this fails, the last result stays, because hung storage of one server
        must not stop the checks of the others."""
        try:
            self._shared = await self._hypervisor.shared_disks()
        except DriverError as error:
            log.warning("reconcile.shared_unknown", reason=str(error))

    async def _recheck_until(self, round_ends: float) -> None:
        """Check the busy servers again. A store restored from a backup may show a server as busy with a job that ended
        long ago; its outcome is published within seconds, and then the server can be compared."""
        while not self._asked.is_set() and time.monotonic() < round_ends:
            with suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_SECONDS):
                    await self._asked.wait()
            for server_id, tries in list(self._pending.items()):
                self._pending[server_id] = tries - 1
                await self.server(server_id)
                if self._pending.get(server_id) == 0:
                    del self._pending[server_id]
            # repeated until it succeeds, because the server cannot be migrated before
            for server_id in sorted(self._runner.still_held):
                await self.server(server_id)

    async def server(self, server_id: ServerId) -> None:
        """Check one server. If a job is working on it, only publish its snapshots and jobs, and compare it later."""
        try:
            lock = self._runner.lock_of(server_id)
            if lock.locked():
                self._pending.setdefault(server_id, RECHECKS)
                async with asyncio.timeout(self._look_seconds):
                    await self._publish(server_id, await self._found(server_id))
                return
            async with lock, asyncio.timeout(self._look_seconds):
                await self._compare(server_id)
        except (
            DriverError,
            StoreUnavailable,
            RecordUnreadable,
            LeaseLost,
            ClaimRefused,
            TimeoutError,
            JournalFailed,
        ) as error:
            log.warning("reconcile.put_off", server_id=server_id, reason=str(error) or type(error).__name__)
        except Exception:  # one unusual server must not crash the worker repeatedly
            log.exception("reconcile.broke", server_id=server_id)

    async def _found(self, server_id: ServerId) -> list[FoundSnapshot]:
        """The snapshots on the server's disks. If they cannot be read (a disk is missing), the server is published
        without snapshots, so that the customer's jobs reach the node and fail there with the reason."""
        try:
            return await self._hypervisor.snapshots(server_id)
        except UnsupportedServer as error:
            log.warning("reconcile.unreadable", server_id=server_id, reason=str(error))
            await self._store.publish(server_id, [], [])
            raise

    async def _publish(self, server_id: ServerId, found: Iterable[FoundSnapshot]) -> list[Finding]:
        """Publish the snapshots and jobs that the store does not know."""
        making_or_deleting = {JobKind.CREATE, JobKind.DELETE}
        at_work = {task.snapshot_id for task in self._open_tasks(server_id) if task.kind in making_or_deleting}
        # A create writes the metadata last, so a snapshot with metadata was complete and belongs to a customer.
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
            _published(
                snapshot_id,
                spec,
                SnapshotStatus.COMPLETED,
                size_mb=await self._size_mb(server_id, tag),
                contents=held.get(snapshot_id),
            )
            for snapshot_id, (tag, spec) in taken.items()
            if snapshot_id in known.on_disk
            and known.on_disk[snapshot_id] is None
            and snapshot_id not in known.elsewhere
            and snapshot_id not in at_work
            and tag not in safety
        ]
        described = [  # for a known snapshot, the store writes only the contents
            _published(snapshot_id, record, record.status, contents=contents)
            for snapshot_id, contents in held.items()
            if (record := known.on_disk.get(snapshot_id)) is not None and record.contents is None
        ]
        open_tasks = self._open_tasks(server_id)  # read again, because a job that has ended meanwhile must not reappear
        begun = [_begun(task) for task in open_tasks]
        creates = [task for task in open_tasks if task.kind is JobKind.CREATE]
        made = [_published(task.snapshot_id, task, SnapshotStatus.IN_PROGRESS) for task in creates]
        new = await self._store.publish(server_id, [*missing, *described, *made], begun)
        return [Finding(kind=FindingKind.UNKNOWN_SNAPSHOT, tag=taken[new_id][0]) for new_id in new if new_id in taken]

    async def _size_mb(self, server_id: ServerId, tag: str) -> int | None:
        """The snapshot's size, or None if it cannot be measured, for example because a new disk lacks the tag."""
        try:
            return await self._hypervisor.size_mb(server_id, tag)
        except (SnapshotNotFound, DiskFailed) as error:
            log.warning("snapshot.unmeasured", server_id=server_id, tag=tag, reason=str(error))
            return None

    async def _compare(self, server_id: ServerId) -> None:
        try:
            found = await self._found(server_id)
        except DriverError:
            await self._let_go_if_idle(server_id)  # an operator may have to move or repair an unreadable server
            raise
        findings = await self._publish(server_id, found)
        ids = {found_id: snapshot for snapshot in found if (found_id := snapshot_id_of(snapshot.tag)) is not None}
        known = await self._store.known(server_id, list(ids))
        is_busy = known.busy or bool(self._open_tasks(server_id)) or await self._is_in_use(server_id)
        if is_busy:
            self._pending.setdefault(server_id, RECHECKS)
        else:
            self._pending.pop(server_id, None)
            safety = self._journal.safety_tags(server_id)
            # leave what the store cannot read unchanged
            ours = {
                found_id: one for found_id, one in ids.items() if one.tag not in safety and found_id in known.on_disk
            }
            whole = {found_id: one for found_id, one in ours.items() if one.complete}
            await self._runner.let_go(server_id)  # a worker that died at the end of a job may have left the hold
            await self._settle(server_id, found)
            findings += await self._rewrite_metadata(server_id, whole, known)
            findings += await self._regain(server_id, whole, known)
            findings += await self._delete_orphans(server_id, ours, known)
            findings += _strays(ours, known)
            findings += _undeleted(ours, known)
            findings += _reverted(found)
            shared = self._shared.get(server_id, ())
            findings += [Finding(kind=FindingKind.SHARED_DISK, tag=disk.target, reason=disk.reason) for disk in shared]
            findings += await self._mark_lost(server_id, ids, known)
            findings += self._track_safeties(server_id, found, safety, known)
        for finding in findings:
            why = {"reason": finding.reason} if finding.reason else {}
            log.warning("reconcile.finding", finding=finding.kind, server_id=server_id, tag=finding.tag, **why)
            self._metrics.found(finding.kind)
        if is_busy:
            return  # earlier findings stay listed until the server is compared again
        listed = [{"finding": str(one.kind), "tag": one.tag, "at": f"{time.time():.0f}"} for one in findings]
        await self._store.tell_findings(server_id, listed)

    async def _let_go_if_idle(self, server_id: ServerId) -> None:
        known = await self._store.known(server_id, [])
        if not known.busy and not self._open_tasks(server_id):
            await self._runner.let_go(server_id)

    async def _is_in_use(self, server_id: ServerId) -> bool:
        """Whether another tool is working on the server, which is then left alone."""
        try:
            await self._hypervisor.refuse_if_in_use(server_id)
        except ServerInUse as error:
            log.info("reconcile.in_use", server_id=server_id, reason=str(error))
            return True
        return False

    async def _settle(self, server_id: ServerId, found: Iterable[FoundSnapshot]) -> None:
        """Move snapshots from libvirt's own list to the domain's metadata: a listed snapshot blocks migration.

        Older versions put them there, or an operator for virsh. The current snapshot stays listed: someone has reverted
        to it outside the service.
        """
        for snapshot in found:
            if not snapshot.settled and not snapshot.current and snapshot.spec is not None:
                await self._hypervisor.list_snapshot(server_id, snapshot.spec, snapshot.contents)
                log.info("reconcile.settled", server_id=server_id, tag=snapshot.tag)

    async def _rewrite_metadata(
        self, server_id: ServerId, whole: dict[SnapshotId, FoundSnapshot], known: Known
    ) -> list[Finding]:
        """Write lost metadata again: if the store loses its data, only the metadata has the snapshots' names."""
        findings = []
        for snapshot_id, snapshot in whole.items():
            record = known.on_disk[snapshot_id]
            if snapshot.spec is not None or record is None:
                continue
            if record.status is not SnapshotStatus.COMPLETED and not record.lost:
                continue
            spec = SnapshotSpec(
                tag=snapshot.tag, name=record.name, description=record.description, created_at=record.created_at
            )
            await self._hypervisor.list_snapshot(server_id, spec, contents_to_write(record.contents))
            findings.append(Finding(kind=FindingKind.UNLISTED_SNAPSHOT, tag=snapshot.tag))
        return findings

    async def _regain(self, server_id: ServerId, whole: dict[SnapshotId, FoundSnapshot], known: Known) -> list[Finding]:
        """Mark lost snapshots that are complete again as completed. A live backup, for example, hides snapshots while
        its overlay is on top of each disk."""
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
        """Delete the tags that failed creates could not clean up."""
        orphans = [
            snapshot.tag
            for snapshot_id, snapshot in ours.items()
            if snapshot.spec is None
            and (record := known.on_disk[snapshot_id])
            and record.status is SnapshotStatus.FAILED
            and not record.lost
        ]
        for tag in orphans:
            self._journal.change(server_id)
            await without(self._hypervisor, server_id, tag)
            self._journal.changed(server_id)
        return [Finding(kind=FindingKind.ORPHANED_TAG, tag=tag) for tag in orphans]

    async def _mark_lost(
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
        """Add untracked safety snapshots to the journal: a migrated server brings its own. A safety snapshot that was
        being deleted may have only a record."""
        safeties = [snapshot for snapshot in found if snapshot.tag.startswith(SAFETY_PREFIX)]
        untracked = [snapshot.tag for snapshot in safeties if snapshot.tag not in safety]
        for tag in untracked:
            self._journal.track_safety_tag(server_id, tag, kept_seconds=self._safety_kept_seconds)
        # The server's former nodes ended the retention of older ones only in their own journals.
        if older := _before(f"{SAFETY_PREFIX}{known.undoable}", safeties):
            self._journal.supersede(server_id, older)
        return [Finding(kind=FindingKind.UNTRACKED_SAFETY, tag=tag) for tag in untracked]

    def _open_tasks(self, server_id: ServerId) -> list[Task]:
        """The server's jobs whose outcome the store does not have: running, or ended and not yet published."""
        return [entry.task for entry in self._journal.owed() if entry.task.server_id == server_id]


def _before(tag: str, safeties: Iterable[FoundSnapshot]) -> list[str]:
    """The tags of the safety snapshots that were taken before the one with that tag."""
    taken = {snapshot.tag: snapshot.spec.created_at for snapshot in safeties if snapshot.spec}
    return [one for one, moment in taken.items() if tag in taken and moment < taken[tag]]


def _strays(ours: dict[SnapshotId, FoundSnapshot], known: Known) -> list[Finding]:
    """Tags that may be the only trace of a customer's snapshot, for example if its server was moved and the store
    lost its data."""
    return [
        Finding(kind=FindingKind.STRAY_TAG, tag=snapshot.tag)
        for snapshot_id, snapshot in ours.items()
        if (
            (record := known.on_disk[snapshot_id]) is None
            and snapshot.spec is None
            and snapshot_id not in known.elsewhere
        )
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
    """Snapshots that someone has reverted to outside the service: the guest's data is older than our jobs explain."""
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
        live=task.live,
    )


def _published(
    snapshot_id: SnapshotId,
    about: SnapshotSpec | KnownSnapshot | Task,
    status: SnapshotStatus,
    *,
    size_mb: int | None = None,
    contents: Contents | None = None,
) -> PublishedSnapshot:
    return PublishedSnapshot(
        id=snapshot_id,
        name=about.name,
        description=about.description,
        created_at=about.created_at,
        size_mb=size_mb,
        status=status,
        contents=contents,
    )
