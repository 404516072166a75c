"""Counts and ages over the whole cell, for its metrics. Each script call blocks Redis for a bounded time."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from worker.store import records
from worker.store.access.audit import NEW
from worker.store.calls import LAST_BACKUP, Scripts
from worker.store.operators.memory import Memory, memory_of

NEVER = 1 << 50  # a period after all others, so that no counts are read
PAGE = 200  # nodes per script call
GONE_SECONDS = 86_400.0  # a node that is silent for longer and has no servers or jobs counts as removed


@dataclass(frozen=True, kw_only=True)
class NodeNumbers:
    """Ages in seconds by Redis's clock; the age of an empty queue is 0."""

    name: str
    heartbeat_age: float
    paused: bool
    queued: int
    queue_age: float
    running: int
    servers: int

    @property
    def gone(self) -> bool:
        return self.heartbeat_age > GONE_SECONDS and not (self.servers or self.queued or self.running)


@dataclass(frozen=True, kw_only=True)
class CellNumbers:
    queued: int
    queue_age: float
    running: int
    servers: int
    stranded: int
    with_findings: int  # servers
    webhooks_due: int
    unreadable: int  # records
    audit_waiting: int  # entries that no keeper has moved to the audit log
    backup_made: float  # time of the last backup, in Unix seconds; 0: never
    memory: Memory
    nodes: tuple[NodeNumbers, ...]


class Cell(Scripts):
    async def numbers(self) -> CellNumbers:
        """Raises StoreUnavailable."""
        totals = await self._call("operators/overview", {"silent_ms": 0, "since": NEVER})
        now, queued, running, oldest, stranded, _, _, _, _, findings, servers, webhooks, unreadable, _ = totals
        waits_since = oldest[1] if oldest else b""
        return CellNumbers(
            queued=queued,
            queue_age=await self._read(
                lambda: records.part(partial(_age, now), waits_since, key="jobs:state:queued", otherwise=0.0)
            ),
            running=running,
            servers=servers,
            stranded=stranded,
            with_findings=findings,
            webhooks_due=webhooks,
            unreadable=unreadable,
            audit_waiting=await self._unless_other_type(NEW, self._audit_waiting, otherwise=0),
            backup_made=await self._backup_made(),
            memory=await memory_of(self._redis),
            nodes=tuple([node for node in await self._all_nodes() if not node.gone]),
        )

    async def _audit_waiting(self) -> int:
        waiting: int = await self._redis.llen(NEW)  # type: ignore[misc]  # typed for the blocking client too
        return waiting

    async def _backup_made(self) -> float:
        nothing: bytes | None = None
        made = await self._unless_other_type(LAST_BACKUP, lambda: self._redis.get(LAST_BACKUP), otherwise=nothing)
        return await self._read(lambda: records.part(_seconds, made or b"0", key=LAST_BACKUP, otherwise=0.0))

    async def _all_nodes(self) -> list[NodeNumbers]:
        nodes: list[NodeNumbers] = []
        ask: dict[str, Any] = {"limit": PAGE}
        while True:
            now, after, *rows = await self._call("operators/cell_nodes", ask)
            nodes += await self._many(partial(_node, now), rows, kind="node")
            if not after:
                return nodes
            ask["after"] = [part.decode() for part in after]


def _seconds(milliseconds: bytes) -> float:
    return records.whole(milliseconds) / 1000


def _node(now: int, row: list[Any]) -> NodeNumbers:
    name, heartbeat, paused, queued, oldest, running, servers = row
    return NodeNumbers(
        name=name.decode(),
        heartbeat_age=_age(now, heartbeat),
        paused=bool(paused),
        queued=queued,
        queue_age=_age(now, oldest),
        running=running,
        servers=servers,
    )


def _age(now: int, moment: bytes) -> float:
    """Seconds between two times in Unix milliseconds."""
    return max(0.0, (now - records.whole(moment)) / 1000) if moment else 0.0
