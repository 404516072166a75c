"""Nodes as operators see them, parsed from the scripts' answers."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.store import records
from worker.store.reports import NodeFacts


@dataclass(frozen=True, kw_only=True)
class Pause:
    since: datetime
    reason: str
    by: str  # name of the operator's token
    until: datetime | None = None  # when it ends automatically
    until_back: bool = False  # it ends when the node's host has rebooted


@dataclass(frozen=True, kw_only=True)
class EndedLately:
    """Numbers of jobs that ended in the last hour, to within five minutes. Stranded ones are included in the failed
    ones."""

    completed: int
    failed: int
    stranded: int


@dataclass(frozen=True, kw_only=True)
class Node:
    name: str
    alive: bool
    heartbeat_at: datetime
    worker_at: str  # its worker's process and machine, as text
    pause: Pause | None
    facts: NodeFacts | None  # None: not reported yet
    queued: int
    running: int
    servers: int
    findings: int  # servers with findings
    ended: EndedLately
    failing: bool  # at least two jobs ended in the last hour, and all failed


def node(shown: list[Any]) -> Node:
    name, flat, silent, queued, running, servers, findings, ended, failing = shown
    record = records.pairs(flat)
    return Node(
        name=name.decode(),
        alive=not silent,
        heartbeat_at=records.moment(record["heartbeat_ms"]),
        worker_at=record["who"],
        pause=read_pause(record),
        facts=records.part(read_facts, record.get("about", ""), key=f"node:{name.decode()}", otherwise=None),
        queued=queued,
        running=running,
        servers=servers,
        findings=findings,
        ended=EndedLately(completed=ended[0], failed=ended[1], stranded=ended[2]),
        failing=bool(failing),
    )


def read_pause(record: records.Hash) -> Pause | None:
    since, until_ms = record.get("paused_ms"), record.get("paused_until_ms")
    if not since:
        return None
    return Pause(
        since=records.moment(since),
        reason=record["paused_reason"],
        by=record["paused_by"],
        until=records.moment(until_ms) if until_ms else None,
        until_back=bool(record.get("paused_boot")),
    )


def read_facts(text: str) -> NodeFacts | None:
    return NodeFacts.model_validate_json(text) if text else None
