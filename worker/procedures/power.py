"""Power: how a guest is brought down and up again."""

import time
from contextlib import suppress
from dataclasses import replace

from drivers.base import Hypervisor, InvalidState, Power
from worker.procedures.work import Facts, Policy, Work
from worker.store.model import ServerId


async def ensure_off_gently(hypervisor: Hypervisor, server_id: ServerId, policy: Policy) -> None:
    """Ask the guest to shut down, again and again until the grace is over, then cut its power."""
    deadline = time.monotonic() + policy.grace_seconds
    while (left := deadline - time.monotonic()) > 0:
        if await hypervisor.power(server_id) is Power.OFF:
            break
        with suppress(InvalidState):  # it may just be going away by itself; one that can't be asked is cut off
            await hypervisor.press_power_button(server_id)
        if await hypervisor.wait_for_off(server_id, timeout_seconds=min(left, policy.press_again_seconds)):
            break
    await ensure_off(hypervisor, server_id)


async def claimed(work: Work) -> None:
    """Nobody else is at work on the server, and nobody can move it to another node until the job is over."""
    await work.hypervisor.hold(work.task.server_id)
    # What began in the same moment could not be seen before the hold.
    await work.hypervisor.refuse_if_in_use(work.task.server_id)


async def ensure_off(hypervisor: Hypervisor, server_id: ServerId) -> None:
    """Off at once, its disks released."""
    await hypervisor.cut_power(server_id)


async def as_found(work: Work) -> Facts:
    """On again where the guest was found running, else left off."""
    if not work.facts.was_running:
        return work.facts
    await work.hypervisor.start(work.task.server_id)
    return replace(work.facts, on_again=work.facts.on_again or time.time())


async def power_remembered(work: Work) -> Facts:
    """Whether the guest runs, before anything is done to it: this is how it will be left, and which domain it is."""
    domain = await work.hypervisor.identity(work.task.server_id)
    running = await work.hypervisor.power(work.task.server_id) is Power.ON
    off_since = time.time() if running else None
    return replace(work.facts, domain=domain, was_running=running, off_since=off_since)
