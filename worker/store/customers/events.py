"""Job events: a stream for each account and one for the cell, written by the scripts that change a job."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.store import records
from worker.store.calls import Scripts, reading
from worker.store.errors import StoreUnavailable
from worker.store.model import AccountId, JobId, JobKind, JobState, ServerId, SnapshotId, Step

NOTHING_BEFORE = "0-0"
_ID = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")
MOST_AT_ONCE = 100  # events read from one stream

WRONG_TYPE = "WRONGTYPE"
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
    """The sort key of an event ID, because IDs do not sort correctly as text."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number)


class Events(Scripts):
    """The streams of events. Every call may raise StoreUnavailable. A key that is not a stream has no events."""

    async def newest(self, account_id: Audience) -> str:
        found = await self._of_stream(_key(account_id), lambda: self._redis.xrevrange(_key(account_id), count=1))
        return found[0][0].decode() if found else NOTHING_BEFORE

    async def has(self, account_id: Audience, event_id: str) -> bool:
        """Whether the stream still has that event; false for text that is not an event ID."""
        if not _ID.fullmatch(event_id):
            return False
        key = _key(account_id)
        if event_id == NOTHING_BEFORE:
            return await self._has_all(key)
        return bool(await self._of_stream(key, lambda: self._redis.xrange(key, event_id, event_id, count=1)))

    async def _has_all(self, key: str) -> bool:
        """Whether the stream still has all its events."""
        if not await reading(lambda: self._redis.exists(key)):
            return True
        nothing: Any = None
        about = await self._unless_other_type(key, lambda: self._redis.xinfo_stream(key), otherwise=nothing)
        return about is None or bool(about["entries-added"] == about["length"])

    async def after(self, account_id: Audience, event_id: str) -> list[Event]:
        """The remaining events after that one; none if the text is not an event ID."""
        if not _ID.fullmatch(event_id):
            return []
        key = _key(account_id)
        return await self._events(key, await self._of_stream(key, lambda: self._redis.xrange(key, f"({event_id}")))

    async def next(
        self, after: Mapping[Audience, str], *, wait_seconds: float
    ) -> dict[Audience, tuple[str, list[Event]]]:
        """The next events of several streams after the given IDs, and the ID of the last entry that was read.
        Waits up to `wait_seconds` for the first event."""
        keys = {_key(account_id): account_id for account_id in after}
        streams: Any = {key: after[account_id] for key, account_id in keys.items()}
        block = round(wait_seconds * 1000)
        try:
            found: Sequence[Any] = await reading(lambda: self._redis.xread(streams, count=MOST_AT_ONCE, block=block))
        except StoreUnavailable as error:
            if not str(error.__cause__).startswith(WRONG_TYPE):
                raise
            found = await self._each_apart(streams)
            if not found:
                await asyncio.sleep(wait_seconds)
        return {
            keys[key.decode()]: (entries[-1][0].decode(), await self._events(key.decode(), entries))
            for key, entries in found
        }

    async def _each_apart(self, streams: Mapping[str, str]) -> list[Any]:
        """Read each stream separately and skip keys that are not streams, so that one does not block the others."""
        return [
            stream
            for key, after in streams.items()
            for stream in await self._of_stream(key, self._following(key, after))
        ]

    def _following(self, key: str, after: str) -> Callable[[], Awaitable[list[Any]]]:
        one: Any = {key: after}
        return lambda: self._redis.xread(one, count=MOST_AT_ONCE)

    async def _of_stream(self, key: str, ask: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        return await self._unless_other_type(key, ask, otherwise=[])

    async def _events(self, key: str, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Event]:
        """The events that this version can read; during an upgrade, a newer worker may write others."""
        return list(await self._many(_event, entries, kind="event", key_of=lambda _: key))


def _key(account_id: Audience) -> str:
    return "events" if account_id is None else f"account:{account_id}:events"


def _event(row: tuple[bytes, Mapping[bytes, bytes]]) -> Event:
    event_id, fields = row
    record = records.decoded(dict(fields))
    return Event(
        id=event_id.decode(),
        job_id=JobId(record["job"]),
        kind=JobKind(record["kind"]),
        state=JobState(record["state"]),
        step=Step(record["step"]) if record["step"] else None,
        account_id=AccountId(records.whole(record["account"])),
        server_id=ServerId(records.whole(record["server"])),
        snapshot_id=SnapshotId(records.whole(record["snapshot"])) if record["snapshot"] != "0" else None,
        notes=tuple(record.get("notes", "").split()),
    )
