"""Job events: a stream for each account and one for the cell, written by the scripts that change a job."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from arq.connections import ArqRedis

from worker.store import records
from worker.store.calls import reading
from worker.store.model import AccountId, JobId, JobKind, JobState, ServerId, SnapshotId, Step

NOTHING_BEFORE = "0-0"
_ID = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")
MOST_AT_ONCE = 100  # events read from one stream

log = structlog.stdlib.get_logger()
Audience = AccountId | None  # None: the operators, who get the events of every account


@dataclass(frozen=True, kw_only=True)
class Event:
    """A change of a job. `id` is its position in the account's stream."""

    id: str
    job_id: JobId
    kind: JobKind
    state: JobState
    step: Step | None
    account_id: AccountId
    server_id: ServerId
    snapshot_id: SnapshotId | None
    notes: tuple[str, ...] = ()  # codes of the notes of a job that has ended


def place(event_id: str) -> tuple[int, int]:
    """The sort key of an event ID: as text, IDs do not sort in order."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number)


class Events:
    """The streams. Every call may raise StoreUnavailable."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis

    async def newest(self, account_id: Audience) -> str:
        found = await reading(lambda: self._redis.xrevrange(_key(account_id), count=1))
        return found[0][0].decode() if found else NOTHING_BEFORE

    async def has(self, account_id: Audience, event_id: str) -> bool:
        """Whether the stream still has that event; any other text is none."""
        if not _ID.fullmatch(event_id):
            return False
        if event_id == NOTHING_BEFORE:
            return await self._has_all(_key(account_id))
        return bool(await reading(lambda: self._redis.xrange(_key(account_id), event_id, event_id, count=1)))

    async def _has_all(self, key: str) -> bool:
        """Whether it still has every event that it ever had."""
        if not await reading(lambda: self._redis.exists(key)):
            return True
        about = await reading(lambda: self._redis.xinfo_stream(key))
        return bool(about["entries-added"] == about["length"])

    async def after(self, account_id: Audience, event_id: str) -> list[Event]:
        """The events that the stream still has after that one; none after text that is no ID."""
        if not _ID.fullmatch(event_id):
            return []
        return _events(await reading(lambda: self._redis.xrange(_key(account_id), f"({event_id}")))

    async def next(self, after: Mapping[Audience, str], *, wait_seconds: float) -> dict[Audience, list[Event]]:
        """The events that follow these in their streams; waits up to `wait_seconds` for the first."""
        keys = {_key(account_id): account_id for account_id in after}
        streams: Any = {key: after[account_id] for key, account_id in keys.items()}
        block = round(wait_seconds * 1000)
        found: Sequence[Any] = await reading(lambda: self._redis.xread(streams, count=MOST_AT_ONCE, block=block))
        return {keys[key.decode()]: _events(entries) for key, entries in found}


def _key(account_id: Audience) -> str:
    return "events" if account_id is None else f"account:{account_id}:events"


def _events(entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Event]:
    events = []
    for event_id, fields in entries:
        try:
            events.append(_event(event_id, fields))
        except (KeyError, ValueError) as error:  # from a newer worker, during an upgrade of the cell
            log.warning("event.unreadable", event_id=event_id.decode(), reason=str(error))
    return events


def _event(event_id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    record = records.decoded(dict(fields))
    return Event(
        id=event_id.decode(),
        job_id=JobId(record["job"]),
        kind=JobKind(record["kind"]),
        state=JobState(record["state"]),
        step=Step(record["step"]) if record["step"] else None,
        account_id=AccountId(int(record["account"])),
        server_id=ServerId(int(record["server"])),
        snapshot_id=SnapshotId(int(record["snapshot"])) if record["snapshot"] != "0" else None,
        notes=tuple(record.get("notes", "").split()),
    )
