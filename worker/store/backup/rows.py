"""Reads the data that exists only in Redis, as rows of text.

The rows are found by a scan of all keys instead of by the indexes, because an index may be damaged. The service keeps
running during a backup.
"""

import re
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from redis.asyncio import Redis

from worker.store import records
from worker.store.access.audit import HEAD, STREAM, number_of
from worker.store.calls import LAST_BACKUP, Scripts, reading, redis_answers
from worker.store.errors import StoreReadOnly
from worker.store.unreadable import Unreadable

Row: TypeAlias = dict[str, Any]
SCANNED_AT_ONCE = 1000
LIFE = "backups:life"  # a random text, which is gone if Redis loses its data
MERGED = "backups:merged"  # such texts of other backups whose data was restored beside the data that Redis had
SNAPSHOTS_KEPT = frozenset({"completed", "in_progress"})
_HEX32 = "[0-9a-f]{32}"
_PATTERNS = {
    "account": re.compile(r"account:[0-9]+"),
    "token": re.compile(r"token:[0-9a-f]{64}"),
    "credential": re.compile(r"credential:[0-9a-f]{64}"),
    "secret": re.compile(f"token:webhook:{_HEX32}"),
    "server": re.compile(r"server:[0-9]+"),
    "snapshot": re.compile(r"snapshot:[0-9]+"),
    "node": re.compile(r"node:[^:]+"),
}
# A record of an account, such as `schedule:<ID>`. Its kind is backed up unless it is excluded here, so that a new kind
# is not forgotten.
_RESOURCE = re.compile(f"(?P<kind>[a-z]+):{_HEX32}")
_NO_RESOURCES = frozenset({"job", "delivery"})  # nodes publish jobs; a delivery is kept for a week only
# The nodes know the other fields of these records. A field that ends with * is a prefix.
_FIELDS = {
    "server": ("account", "node", "name", "placed", "consistency", "labels"),
    "snapshot": ("server", "account", "status", "description", "labels", "protected", "expires_ms", "schedule"),
    "node": ("paused*",),
}


class DataLost(Exception):
    """Redis has lost its data, or never had any. What is left must not become the newest backup: that one will be
    restored."""


class Backup(Scripts):
    """Every call may raise StoreUnavailable."""

    async def now_ms(self) -> int:
        """Redis's clock."""
        seconds, microseconds = await reading(self._redis.time)
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def last_id(self) -> str:
        """The highest snapshot ID so far; "" if there is none."""
        return records.text(await reading(lambda: self._redis.get("snapshots:last_id")) or b"")

    async def life(self) -> str:
        """The random ID of Redis's data, set if missing. A restore compares it with the ID in the file. "" if it is
        missing while Redis accepts no writes."""
        with suppress(StoreReadOnly), redis_answers():
            await self._redis.set(LIFE, secrets.token_hex(16), nx=True)
        return await _life_of(self._redis)

    async def merged(self) -> list[str]:
        """The IDs of other backups whose data Redis has, because they were restored with `--merge`."""
        return await _merged_into(self._redis)

    async def has_lost(self, life: str) -> bool:
        """Whether Redis has lost its data since a backup. `life`: what `life` returned for that backup; "" if it is
        unknown, because an older release made the backup."""
        held = await lives_of(self._redis)
        if life:
            return life not in held
        has_trace = held or await reading(lambda: self._redis.exists(LAST_BACKUP))
        return not has_trace and await self._accepts_writes()  # otherwise a backup would have left no trace

    async def made(self, made_ms: int) -> None:
        """Record that a backup was written; an alert fires if the last one is old."""
        with suppress(StoreReadOnly), redis_answers():
            await self._redis.set(LAST_BACKUP, made_ms)

    async def all(self, *, life: str, audit: bool) -> AsyncIterator[Row]:
        """Yields the rows of `records`, and those of `audit` if asked. Raises DataLost after the last one if none is a
        token, or if Redis has lost its data since `life` was read."""
        tokens = 0
        async for row in self.records():
            tokens += row["kind"] == "token"
            yield row
        if audit:
            async for row in self.audit():
                yield row
        if life and life not in await lives_of(self._redis):
            raise DataLost("Redis has lost its data during the backup")
        if not tokens:
            raise DataLost("Redis has no tokens: it has lost its data, or is new")

    async def records(self) -> AsyncIterator[Row]:
        """Yields {kind, key, record: {field: text}, lifetime_ms: remaining time to live, if any}."""
        cursor = 0
        while True:
            cursor, keys = await reading(lambda at=cursor: self._scan(at))  # type: ignore[misc]
            for row in await self._rows([key for key in map(records.text, keys) if kind_of(key)]):
                yield row
            if not cursor:
                return

    async def audit(self) -> AsyncIterator[Row]:
        """Yields {kind: "audit", id, record} for each entry, oldest first; then {kind: "audit_head", record}. An
        entry with an unreadable number is included, so that a check of the log finds it."""
        # read first, so that entries that are added meanwhile come after the head and are left out
        head = await reading(lambda: self._redis.hgetall(HEAD))  # type: ignore[arg-type,return-value]
        last, after = number_of(head.get(b"seq")), "-"
        while entries := await reading(lambda at=after: self._redis.xrange(STREAM, at, "+", SCANNED_AT_ONCE)):  # type: ignore[misc]
            unreadable: list[Unreadable] = []
            for entry_id, fields in entries:
                try:
                    row: Row = {"kind": "audit", "id": records.text(entry_id), "record": records.decoded(fields)}
                except ValueError as error:
                    unreadable.append(Unreadable(key=f"{STREAM} {records.text(entry_id)}", reason=str(error)))
                    continue
                if last is None or (number_of(fields.get(b"seq")) or 0) <= last:
                    yield row
            await self._tell_unreadable(unreadable)
            after = f"({records.text(entries[-1][0])}"
        if head:
            yield {"kind": "audit_head", "record": records.decoded(head)}

    async def _accepts_writes(self) -> bool:
        try:
            with redis_answers():
                await self._redis.setrange(LIFE, 0, "")  # changes nothing
        except StoreReadOnly:
            return False
        return True

    async def _scan(self, cursor: int) -> tuple[int, list[bytes]]:
        found: tuple[int, list[bytes]] = await self._redis.scan(cursor, count=SCANNED_AT_ONCE, _type="hash")
        return found

    async def _rows(self, keys: list[str]) -> list[Row]:
        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hgetall(key)
                    pipe.pttl(key)
                return await pipe.execute(raise_on_error=False)

        replies = await reading(ask) if keys else []
        rows: list[Row] = []
        unreadable: list[Unreadable] = []
        for key, held, left_ms in zip(keys, replies[::2], replies[1::2], strict=True):
            try:
                rows += _row(key, records.decoded(held), left_ms)
            except Exception as error:  # noqa: BLE001 - a bad record is reported, and must not keep the others out of the backup
                unreadable.append(Unreadable(key=key, reason=str(error)))
        await self._tell_unreadable(unreadable)
        return rows


async def lives_of(redis: Redis) -> set[str]:
    """The IDs of all backups whose data Redis has, apart from what was deleted since. Raises StoreUnavailable."""
    return {await _life_of(redis), *await _merged_into(redis)} - {""}


async def _life_of(redis: Redis) -> str:
    return records.text(await reading(lambda: redis.get(LIFE)) or b"")


async def _merged_into(redis: Redis) -> list[str]:
    members = await reading(lambda: redis.smembers(MERGED))  # type: ignore[arg-type,return-value]
    return sorted(map(records.text, members))


def kind_of(key: str) -> str | None:
    """The kind of a key that is backed up; None for all other keys."""
    if found := _RESOURCE.fullmatch(key):
        return found["kind"] if found["kind"] not in _NO_RESOURCES else None
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(key)), None)


def _row(key: str, record: Mapping[str, str], left_ms: int) -> Iterable[Row]:
    """Yields the row of a key; nothing if the record is gone or nodes have all of its data."""
    kind = kind_of(key)
    if kind == "snapshot" and record.get("status") not in SNAPSHOTS_KEPT:
        return
    kept = {field: text for field, text in record.items() if _is_kept(kind, field)}
    if kept:
        yield {"kind": kind, "key": key, "record": kept} | ({"lifetime_ms": left_ms} if left_ms >= 0 else {})


def _is_kept(kind: str | None, field: str) -> bool:
    fields = _FIELDS.get(kind or "")
    return fields is None or any(field == name or (name[-1] == "*" and field.startswith(name[:-1])) for name in fields)
