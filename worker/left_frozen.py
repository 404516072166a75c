"""Thaws guests outside of the steps of a job: after a failed job, or when a job cannot continue for now."""

import asyncio
from collections import defaultdict

import structlog

from drivers.base import DomainNotFound, DriverError, Hypervisor
from worker.journal import Entry, Journal
from worker.store.model import ServerId

THAW_SECONDS = 30.0  # limit for one attempt

log = structlog.stdlib.get_logger()


async def thaw_all(journal: Journal, hypervisor: Hypervisor, locks: defaultdict[ServerId, asyncio.Lock]) -> None:
    """Try once for each such guest. Busy servers wait for the next round. Raises JournalFailed."""
    for entry in journal.left_frozen():
        server_id = entry.task.server_id
        if locks[server_id].locked():
            continue
        async with locks[server_id]:
            were_frozen = await thaw(hypervisor, entry)
        if were_frozen is not None:
            journal.thawed(entry.task.job_id)
            log.warning("guest.thawed_late", server_id=server_id, job_id=entry.task.job_id, were_frozen=were_frozen)


async def thaw(hypervisor: Hypervisor, entry: Entry) -> bool | None:
    """Try once. Returns whether the guest was frozen until now; None if it may still be. The caller holds the server's
    lock."""
    server_id = entry.task.server_id
    try:
        async with asyncio.timeout(THAW_SECONDS):
            return await hypervisor.thaw(server_id)
    except DomainNotFound:
        return False
    except (DriverError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        log.error("guest.left_frozen", server_id=server_id, job_id=entry.task.job_id, reason=reason)  # noqa: TRY400 - the reason is enough
        return None
