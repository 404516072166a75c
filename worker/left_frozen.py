"""Thaws guests outside of the steps of a job: after a failed job, or when it is in doubt whether a job may continue."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from drivers.base import DomainNotFound, DriverError, Hypervisor
from worker.journal import Entry, Journal, JournalFailed
from worker.procedures import live
from worker.store.model import JobId, ServerId, Step

THAW_SECONDS = 30.0  # limit for one attempt

log = structlog.stdlib.get_logger()


async def thaw_all(
    left: dict[JobId, Entry],
    journal: Journal,
    hypervisor: Hypervisor,
    locks: defaultdict[ServerId, asyncio.Lock],
    *,
    thawed: Callable[[ServerId], Awaitable[None]],
) -> None:
    """Try once for each guest that one of the jobs in `left` has left frozen. Busy servers wait for the next round.

    `left` is updated. An entry without `frozen` is of a guest that was thawed, which the journal does not show yet; it
    is not thawed again, because another tool may have frozen it since. `thawed`: awaited after each thaw is recorded,
    under the server's lock. Raises JournalFailed, but only after it has tried for all: a thaw needs no disk.
    """
    failed: JournalFailed | None = None
    for job_id, entry in list(left.items()):
        server_id = entry.task.server_id
        if locks[server_id].locked():
            continue
        async with locks[server_id]:
            if entry.facts.frozen:
                were_frozen = await thaw(hypervisor, entry)
                if were_frozen is None:
                    continue
                log.warning("guest.thawed_late", server_id=server_id, job_id=job_id, were_frozen=were_frozen)
                left[job_id] = replace(entry, facts=replace(entry.facts, frozen=False))
            try:
                journal.thawed(job_id)
            except JournalFailed as error:
                failed = failed or error
                continue
            del left[job_id]
            await thawed(server_id)
    if failed is not None:
        raise failed


async def thaw_first(hypervisor: Hypervisor, entry: Entry, *, interrupted: bool = True) -> Entry:
    """Thaw the guest of a job that may no longer continue: its process died, or the lease ran out. Call it before
    anything that can take time. Returns the job as it continues, without a freeze; `frozen` stays set if the guest may
    still be frozen.

    `interrupted`: as in `Work`.
    """
    facts = entry.facts
    if not facts.frozen:
        return entry
    if entry.step is Step.FREEZING and not interrupted:
        return replace(entry, facts=replace(facts, frozen=False))  # recorded, but not begun
    were_frozen = await thaw(hypervisor, entry)
    return entry if were_frozen is None else replace(entry, facts=live.thawed(facts, were_frozen=were_frozen))


async def thaw(hypervisor: Hypervisor, entry: Entry) -> bool | None:
    """Try once. Returns whether the guest was frozen until now; None if it may still be. The caller holds the server's
    lock, except at the exit of the process: a hung call that holds it must not delay the thaw."""
    server_id = entry.task.server_id
    if entry.facts.domain is not None:
        hypervisor.recall(server_id, entry.facts.domain)
    try:
        async with asyncio.timeout(THAW_SECONDS):
            return await hypervisor.thaw(server_id)
    except DomainNotFound:  # removed: libvirt does not migrate a server that is held
        return False
    except (DriverError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        log.error("guest.left_frozen", server_id=server_id, job_id=entry.task.job_id, reason=reason)  # noqa: TRY400 - the reason is enough
        return None
