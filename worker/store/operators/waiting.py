"""Why a queued job has not started."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from worker.store import records
from worker.store.model import JobId
from worker.store.operators.nodes import Pause, read_facts, read_pause


class WaitReason(StrEnum):
    """The reason why a queued job waits."""

    SILENT = "node_silent"
    PAUSED = "node_paused"
    DISKS_BUSY = "disks_busy"  # all slots are taken, and the node has fewer than usual
    SLOTS_FULL = "slots_full"
    SERVER_BUSY = "server_busy"
    NODE = "node"  # the node will start it within seconds


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why a queued job has not started."""

    reason: WaitReason
    place: int  # position in its node's queue; 1: it is next
    queued: int  # jobs in that queue
    running: int  # jobs that its node runs
    slots: int  # how many jobs its node runs at a time now; 0: not reported
    slots_max: int  # how many while its disks are not busy
    node: str
    heartbeat_at: datetime | None  # None: the node has never reported
    pause: Pause | None
    busy_with: JobId | None  # another job that holds the server
    given_up_at: datetime | None  # None: never while the node responds
    given_up_after_seconds: float  # how long the node must be silent


def waiting(at_node: str, shown: list[Any], waiting_seconds: float) -> Waiting:
    place, queued, running, flat, silent, waits_ms, holder = shown
    record = records.pairs(flat)
    facts = records.part(read_facts, record.get("about", ""), key=f"node:{at_node}", otherwise=None)
    paused, slots = read_pause(record), facts.slots if facts else 0
    reasons = {
        WaitReason.SILENT: silent,
        WaitReason.PAUSED: paused,
        WaitReason.DISKS_BUSY: running >= slots and facts and facts.has_fewer_slots,
        WaitReason.SLOTS_FULL: running >= slots if slots else running,
        WaitReason.SERVER_BUSY: holder,
    }
    return Waiting(
        reason=next((reason for reason, holds in reasons.items() if holds), WaitReason.NODE),
        place=place,
        queued=queued,
        running=running,
        slots=slots,
        slots_max=facts.slots_max if facts else 0,
        node=at_node,
        heartbeat_at=records.moment(record["heartbeat_ms"]) if record.get("heartbeat_ms") else None,
        pause=paused,
        busy_with=JobId(holder.decode()) if holder else None,
        given_up_at=records.moment(waits_ms) + timedelta(seconds=waiting_seconds) if silent else None,
        given_up_after_seconds=waiting_seconds,
    )
