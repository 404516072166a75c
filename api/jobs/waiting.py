"""Why a queued job has not started, in words."""

from collections.abc import Callable
from datetime import datetime

from api.words import absolute, ago, plural, rough
from worker.store.operators.nodes import Pause
from worker.store.operators.waiting import Waiting, WaitReason


def why(waiting: Waiting, *, when: Callable[[datetime], str]) -> str:
    """A sentence or two for operators. `when`: a moment in words, such as "3 min ago"."""
    match waiting.reason:
        case WaitReason.SILENT:
            heartbeat = waiting.heartbeat_at
            last = f"its last heartbeat was {when(heartbeat)}" if heartbeat else "it has never sent a heartbeat"
            return f"{waiting.node} is not responding; {last}."
        case WaitReason.PAUSED if waiting.pause is not None:
            return f"{paused(waiting.node, waiting.pause, when=when)} Its jobs wait {pause_end(waiting.pause)}."
        case WaitReason.SERVER_BUSY if waiting.busy_with is not None:
            return f"The server is busy with job {waiting.busy_with[:8]}."
        case WaitReason.DISKS_BUSY:
            at_a_time = f"it runs {plural(waiting.slots, 'job')} at a time instead of {waiting.slots_max}"
            return f"The disks of {waiting.node} are busy; {at_a_time}."
        case WaitReason.SLOTS_FULL:
            return f"All slots of {waiting.node} are in use: it runs {plural(waiting.running, 'job')}."
    return f"{waiting.node} will start it within seconds."


def paused(node: str, pause: Pause, *, when: Callable[[datetime], str]) -> str:
    """A sentence about the pause."""
    return f"{pause.by} paused {node} {when(pause.since)}: {pause.reason.rstrip('.')}."


def at(moment: datetime) -> str:
    """An absolute time, which does not change as an age does."""
    return f"at {absolute(moment)}"


def pause_end(pause: Pause) -> str:
    """When the pause ends."""
    if pause.until_back:
        return "until its host has rebooted"
    return f"until {absolute(pause.until)}" if pause.until else "until it is resumed"


def place(waiting: Waiting) -> str:
    """The job's place in the queue, in words."""
    if waiting.queued <= 1:
        return f"It is the only job in the queue of {waiting.node}."
    return f"It is number {waiting.place} of {waiting.queued} in the queue of {waiting.node}."


def given_up(waiting: Waiting) -> str:
    """When the job will fail for waiting too long, in words."""
    if waiting.given_up_at is None:
        most = rough(waiting.given_up_after_seconds)
        return (
            f"It keeps waiting while {waiting.node} responds, and fails if {waiting.node} does not respond for {most}."
        )
    return f"It fails {ago(waiting.given_up_at)} unless the node responds first."
