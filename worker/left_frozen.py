"""Thaws guests that a failed job has left frozen: the job has waited as long as it may, the guest still waits."""

import asyncio
from collections import defaultdict

import structlog

from drivers.base import DomainNotFound, DriverError, Hypervisor
from worker.journal import Journal
from worker.store.model import ServerId

THAW_SECONDS = 30.0  # limit for one attempt

log = structlog.stdlib.get_logger()


async def thaw_all(journal: Journal, hypervisor: Hypervisor, locks: defaultdict[ServerId, asyncio.Lock]) -> None:
    """Try once for each such guest. A busy server is left to the next round. Raises JournalFailed."""
    for entry in journal.left_frozen():
        server_id = entry.task.server_id
        if locks[server_id].locked():
            continue
        async with locks[server_id]:
            try:
                async with asyncio.timeout(THAW_SECONDS):
                    were_frozen = await hypervisor.thaw(server_id)
            except DomainNotFound:
                were_frozen = False
            except (DriverError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
                log.error("guest.left_frozen", server_id=server_id, job_id=entry.task.job_id, reason=reason)  # noqa: TRY400 - the reason is enough
                continue
            journal.thawed(entry.task.job_id)
            log.warning("guest.thawed_late", server_id=server_id, job_id=entry.task.job_id, were_frozen=were_frozen)
