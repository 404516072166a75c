"""Safety snapshots: the data that a restore has overwritten, kept on the disks for some time so that it can be undone.

The journal lists their tags, and tags that a failed job could not delete. They are deleted when their retention ends,
or earlier if the storage is nearly full.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress

import structlog

from drivers.base import DomainNotFound, DriverError, Hypervisor
from worker.journal import Journal, JournalFailed, SafetyTag
from worker.procedures.disks import whole, without
from worker.procedures.work import Task
from worker.store.model import ServerId

log = structlog.stdlib.get_logger()


class SafetySnapshots:
    """The safety snapshots of one node. `locks`: the lock to hold while touching a server's disks.
    `free_floor_bytes`: storage that is kept free for the guests' writes. `step_seconds`: limit for one change of the
    disks."""

    def __init__(
        self,
        *,
        journal: Journal,
        hypervisor: Hypervisor,
        locks: defaultdict[ServerId, asyncio.Lock],
        free_floor_bytes: int,
        step_seconds: float,
    ) -> None:
        self._journal = journal
        self._hypervisor = hypervisor
        self._locks = locks
        self._free_floor_bytes = free_floor_bytes
        self._step_seconds = step_seconds

    async def drop_due(self) -> None:
        """Repair disks whose change was interrupted; delete the tags whose retention has ended."""
        # Busy servers wait for the next round, so that this one does not wait for their jobs.
        for server_id in self._journal.changing():
            if not self._locks[server_id].locked():
                async with self._locks[server_id]:
                    await self.repair_interrupted(server_id)
        for due in self._journal.due_safety_tags():
            if not self._locks[due.server_id].locked():
                async with self._locks[due.server_id]:
                    await self._drop(due)

    async def make_room(self) -> None:
        """Delete safety snapshots early if the storage has too little space for the guests' writes, because a
        running guest matters more than an undo."""
        for server_id in self._journal.with_droppable_tags():
            if not self._locks[server_id].locked():
                async with self._locks[server_id]:
                    await self._make_room(server_id)

    async def make_room_for(self, task: Task) -> bool:
        """Delete the server's safety snapshots early; returns whether there were any. The caller holds its lock."""
        if task.kind.only_looks:
            return False
        tags = self._journal.droppable_tags(task.server_id) - {task.tag}  # an undo reverts to one of them
        await self._give_up(task.server_id, tags)
        return bool(tags - self._journal.safety_tags(task.server_id))

    async def repair_interrupted(self, server_id: ServerId) -> None:
        """Repair the disks if a process died while it changed them outside of a job. Call it before anything else
        touches them; the caller holds the server's lock."""
        if server_id in self._journal.changing():
            try:
                async with asyncio.timeout(self._step_seconds):
                    await whole(self._hypervisor, server_id)
            except DomainNotFound:  # migrated; the jobs of the other node check the disks first
                self._journal.changed(server_id)
            except (DriverError, TimeoutError) as error:  # the checks of the job decide
                log.warning("disks.not_mended", server_id=server_id, reason=_reason(error))
            else:
                self._journal.changed(server_id)

    async def _make_room(self, server_id: ServerId) -> None:
        try:
            async with asyncio.timeout(self._step_seconds):
                free_bytes = await self._hypervisor.free_space(server_id)
        except DomainNotFound:  # migrated; its tags are dropped when they are due
            return
        except (DriverError, TimeoutError) as error:
            log.warning("storage.unknown", server_id=server_id, reason=_reason(error))
            return
        if free_bytes < self._free_floor_bytes:
            await self._give_up(server_id, self._journal.droppable_tags(server_id))

    async def _give_up(self, server_id: ServerId, tags: Iterable[str]) -> None:
        for tag in tags:
            log.warning("spare_tag.given_up", tag=tag, server_id=server_id)
            await self._drop(SafetyTag(tag=tag, server_id=server_id))

    async def _drop(self, safety: SafetyTag) -> None:
        try:
            async with asyncio.timeout(self._step_seconds):
                self._journal.change(safety.server_id)
                await without(self._hypervisor, safety.server_id, safety.tag)
                self._journal.changed(safety.server_id)
        except DomainNotFound:  # migrated; its new node tracks the tag
            with suppress(JournalFailed):
                self._journal.changed(safety.server_id)
                self._journal.dropped(safety.tag)
            log.info("spare_tag.gone_with_server", tag=safety.tag, server_id=safety.server_id)
        except (DriverError, TimeoutError, JournalFailed) as error:
            log.warning("spare_tag.kept", tag=safety.tag, server_id=safety.server_id, reason=_reason(error))
        else:
            with suppress(JournalFailed):  # it will be deleted again the next time
                self._journal.dropped(safety.tag)
            log.info("spare_tag.deleted", tag=safety.tag, server_id=safety.server_id)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
