"""Power: stopping a guest and starting it again."""

import time
from contextlib import suppress
from dataclasses import replace

from drivers.base import Hypervisor, InvalidState, Power
from worker.procedures.work import Facts, Policy, Work
from worker.store.model import ServerId


async def ensure_off_gently(hypervisor: Hypervisor, server_id: ServerId, policy: Policy) -> bool:
    """Ask the guest to shut down, repeatedly until the grace period ends, then cut its power.

    Returns whether it shut down without a power cut.
    """
    deadline = time.monotonic() + policy.grace_seconds
    while (left := deadline - time.monotonic()) > 0:
        if await hypervisor.power(server_id) is Power.OFF:
            return True
        with suppress(InvalidState):  # it may be shutting down already; if it cannot be asked, its power is cut
            await hypervisor.press_power_button(server_id)
        if await hypervisor.wait_for_off(server_id, timeout_seconds=min(left, policy.press_again_seconds)):
            return True
    await ensure_off(hypervisor, server_id)
    return False


async def claimed(work: Work) -> None:
    """Hold the server on this node until the job has ended. Raises ServerInUse if another tool is working on it."""
    await work.hypervisor.hold(work.task.server_id)
    # Another tool may have started between the check in `hold` and the hold itself.
    await work.hypervisor.refuse_if_in_use(work.task.server_id)


async def ensure_off(hypervisor: Hypervisor, server_id: ServerId, *, in_a_hurry: bool = False) -> None:
    """Cut the guest's power; returns once its disks are released. `in_a_hurry`: see `Hypervisor.cut_power`."""
    await hypervisor.cut_power(server_id, in_a_hurry=in_a_hurry)


async def as_found(work: Work) -> Facts:
    """Start the guest if it was running when the job started; leave it off otherwise."""
    if not work.facts.was_running:
        return work.facts
    await work.hypervisor.start(work.task.server_id)
    return replace(work.facts, on_again=work.facts.on_again or time.time())


async def power_remembered(work: Work) -> Facts:
    """Record the identity of the domain and whether the guest runs; the job restores that power state at its end."""
    domain = await work.hypervisor.identity(work.task.server_id)
    running = await work.hypervisor.power(work.task.server_id) is Power.ON
    off_since = time.time() if running else None
    return replace(work.facts, domain=domain, was_running=running, off_since=off_since)
