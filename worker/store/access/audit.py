"""Who did what: an entry for each call of a token's owner that was to change something.

Front ends append entries to a list, which is all that they may do to it. A keeper, with a Redis account of its own,
moves them to the stream that is read. There each entry has a number and the hash of the entry before, so that a gap or
a forged entry shows.
"""

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import structlog
from arq.connections import ArqRedis

from worker.store import records
from worker.store.calls import Scripts, redis_answers
from worker.store.errors import StoreUnavailable

STREAM, NEW, HEAD = "audit", "audit:new", "audit:head"
MOST = 1_000_000  # entries, about 300 MB: one caller in a loop must not fill Redis
_NEW_MOST = 100_000  # entries that may wait for a keeper
_BATCH = 200  # entries that are moved at once
_TEXT_MAX = 2000  # characters of a field
_WRITE_SECONDS = 1.0  # the caller waits for it
FIELDS = frozenset(
    {
        *("token", "token_name", "account", "method", "path", "server", "job", "made", "address", "status", "code"),
        *("reason", "request_id", "unreadable"),
    }
)

log = structlog.stdlib.get_logger()


def _utc() -> datetime:
    return datetime.now(UTC)


def chained(before: str, number: int, fields: Mapping[str, str]) -> str:
    """The chain of an entry: a hash of its number, its fields, and the chain of the entry before."""
    own = {field: text for field, text in fields.items() if field != "chain"}
    text = json.dumps([before, number, own], sort_keys=True)
    return urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip("=")


class AuditKeeper(Scripts):
    """Moves new entries to the log, and removes those that are older than `kept` (None: none) by `now` and by the
    time of the front ends. Any number may run at a time. Every call may raise StoreUnavailable."""

    def __init__(self, redis: ArqRedis, *, kept: timedelta | None, now: Callable[[], datetime] = _utc) -> None:
        super().__init__(redis)
        self._kept = kept
        self._now = now

    async def keep(self) -> None:
        """Move all entries that wait."""
        while await self._move() == _BATCH:
            pass

    async def _move(self) -> int:
        """How many entries were taken from the list, by this keeper or by another one."""
        with redis_answers():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.lrange(NEW, 0, _BATCH - 1)
                pipe.hmget(HEAD, ["seq", "chain"])
                waiting, (number, chain) = await pipe.execute()
        if not waiting:
            return 0
        last = int(number or 0)
        entries, before = [], (chain or b"").decode()
        for place, raw in enumerate(waiting, start=1):
            at_ms, fields = _read(raw)
            fields["seq"] = str(last + place)
            before = fields["chain"] = chained(before, last + place, fields)
            entries.append({"at_ms": at_ms, "fields": [part for pair in fields.items() for part in pair]})
        ask = {
            "after": str(last),
            "entries": entries,
            "chain": before,
            "now_ms": int(records.milliseconds(self._now())),
            "kept_ms": self._kept is not None and round(self._kept.total_seconds() * 1000),
            "most": MOST,
        }
        await self._call("access/keep_audit", ask)
        return len(waiting)


class Audit:
    """Appends entries. Every call may raise StoreUnavailable. `keeper`: moves them at once, where no other program
    does. `now`: the time of the cell."""

    def __init__(
        self, redis: ArqRedis, *, keeper: AuditKeeper | None = None, now: Callable[[], datetime] = _utc
    ) -> None:
        self._redis = redis
        self._keeper = keeper
        self._now = now

    async def write(self, *entries: Mapping[str, str]) -> None:
        texts = [json.dumps({"at_ms": records.milliseconds(self._now()), **entry}) for entry in entries]
        with redis_answers():
            async with asyncio.timeout(_WRITE_SECONDS):
                if await self._redis.llen(NEW) >= _NEW_MOST:  # type: ignore[misc]  # typed for the blocking client too
                    raise StoreUnavailable("The audit log has no keeper.")
                await self._redis.rpush(NEW, *texts)  # type: ignore[misc]  # typed for the blocking client too
        if self._keeper is not None:
            with redis_answers():
                async with asyncio.timeout(_WRITE_SECONDS):
                    await self._keeper.keep()


def _read(raw: bytes) -> tuple[int, dict[str, str]]:
    """When an entry was written, and its fields. Whatever stands in the list becomes an entry: it must not stop the
    log."""
    with suppress(ValueError, TypeError, KeyError):
        entry: dict[str, Any] = json.loads(raw)
        at_ms = int(entry["at_ms"])
        fields = {name: str(entry[name])[:_TEXT_MAX] for name in sorted(FIELDS & entry.keys())}
        [text.encode() for text in fields.values()]  # not half a character
        if at_ms >= 0 and fields:
            return at_ms, fields
    log.warning("audit.unreadable")
    return 0, {"unreadable": raw[:_TEXT_MAX].decode(errors="replace")}
