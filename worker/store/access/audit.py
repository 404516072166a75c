"""The audit log: one entry for each call with a token that tries to change something.

Front ends append entries to a list; their Redis account allows nothing else on it. A keeper, with its own Redis
account, moves them to the stream that readers use. There, each entry has a number and the hash of the previous entry,
which reveals gaps and forged entries.
"""

import asyncio
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Self

import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker.store import records
from worker.store.calls import Scripts, redis_answers
from worker.store.errors import StoreUnavailable

STREAM, NEW, HEAD = "audit", "audit:new", "audit:head"
MOST = 1_000_000  # entries, about 300 MB, so that one caller in a loop cannot fill Redis
NEW_MOST = 100_000  # entries that can wait for a keeper
_NUMBER = re.compile(r"[0-9]{1,15}")
_BATCH = 200  # entries that are moved in one batch
_TEXT_MAX = 2000  # characters of a field
LOOK_SECONDS = 5.0  # interval for entries that the keeper was not notified of
_WRITE_SECONDS = 1.0  # short, because the caller waits for the write
HEAD_UNREADABLE = "The keeper's own record, `audit:head`, cannot be read: entries may be missing at either end."
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
    """The chain hash of an entry: covers its number, its fields, and the chain hash of the previous entry."""
    own = {field: text for field, text in fields.items() if field != "chain"}
    text = json.dumps([before, number, own], sort_keys=True)
    return urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip("=")


def number_of(raw: bytes | None) -> int | None:
    """The number of an entry in the keeper's format; None for anything else."""
    text = records.text(raw or b"")
    return int(text) if _NUMBER.fullmatch(text) else None


def is_other_type(reply: object) -> bool:
    """Whether the error means that a key has another type of data."""
    return isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")


@dataclass(frozen=True, kw_only=True)
class _Last:
    """The last entry of the log. `head`: its number in `audit:head`, "" if there is none. `newest`: its ID."""

    number: int
    chain: str
    head: str
    newest: str

    @classmethod
    def of(cls, head: Any, newest: Any) -> Self:
        """Parse the replies of Redis. If `audit:head` is unreadable, the numbers continue after the newest entry
        and a new chain starts: the break stays in the log."""
        raw, chain = (None, None) if is_other_type(head) else head
        entry_id, fields = newest[0] if newest else (b"", {})
        number, kept = number_of(raw), number_of(fields.get(b"seq"))
        if raw is not None and number is not None:
            chained_before = records.text(chain or b"")
            return cls(number=number, chain=chained_before, head=raw.decode(), newest=entry_id.decode())
        if raw is not None or kept is not None or is_other_type(head):
            log.error("audit.broken", kind="cut", entry=entry_id.decode(), detail=HEAD_UNREADABLE)
        return cls(number=kept or 0, chain="", head="", newest=entry_id.decode())


_OBJECT = re.compile(r"/(snapshot|server|node|token|job)s/([A-Za-z0-9._-]{1,64})/")
_MADE = re.compile(r"(snapshot|node|token) ([A-Za-z0-9._-]{1,64})")
_MANY = frozenset({"snapshot", "job", "request"})  # kinds whose objects have few entries each share 4,096 lists


def lists_of(fields: Mapping[str, str]) -> list[str]:
    """The lists that contain the entry: those of the objects that it names, of its actor and of its request."""
    given = (
        ("server", "server"),
        ("account", "account"),
        ("token", "token"),
        ("job", "job"),
        ("request_id", "request"),
    )
    named = {(kind, fields[field]) for field, kind in given if fields.get(field)}
    named |= {(kind, found) for kind, found in _OBJECT.findall(fields.get("path", "")) if found != "bulk"}
    if made := _MADE.fullmatch(fields.get("made", "")):
        named.add((made[1], made[2]))
    return sorted({list_of(kind, found) for kind, found in named})


def list_of(kind: str, found: str) -> str:
    """The list of the entries about an object. It can contain other entries, so readers check each one."""
    return f"audit:of:{kind}:{sha256(found.encode()).hexdigest()[:3] if kind in _MANY else found}"


class AuditKeeper(Scripts):
    """Moves new entries to the log, and removes entries that are older than `kept` (None: removes none) by `now`
    and by the time of the front ends. Several can run at a time. Every call may raise StoreUnavailable."""

    def __init__(self, redis: Redis, *, kept: timedelta | None, now: Callable[[], datetime] = _utc) -> None:
        super().__init__(redis)
        self._kept = kept
        self._now = now
        self._news = asyncio.Event()
        self._news.set()  # entries that an earlier process left

    def told(self) -> None:
        """Note that there is an entry to move."""
        self._news.set()

    async def keep_news(self) -> None:
        """Wait for an entry, then move all. An entry that a node's script appended waits for LOOK_SECONDS at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._news.wait()
        self._news.clear()
        try:
            await self.keep()
        except StoreUnavailable:
            self._news.set()
            raise

    async def keep(self) -> None:
        """Move all waiting entries."""
        while await self._move() == _BATCH:
            pass

    async def _move(self) -> int:
        """Move a batch. Returns how many entries were taken from the list, by this keeper or another one."""
        with redis_answers():
            # No transaction, which a full Redis would refuse. The head comes first: if another keeper moves entries in
            # between, it is no longer the head, and the script moves none.
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hmget(HEAD, ["seq", "chain"])
                pipe.xrevrange(STREAM, count=1)
                pipe.lrange(NEW, 0, _BATCH - 1)
                head, newest, waiting = await pipe.execute(raise_on_error=False)
            for reply in (waiting, newest, head):
                if isinstance(reply, Exception) and not (reply is head and is_other_type(head)):
                    raise reply
        if not waiting:
            return 0
        kept = _Last.of(head, newest)
        last, before, entries = kept.number, kept.chain, []
        for place, raw in enumerate(waiting, start=1):
            at_ms, fields = _read(raw)
            fields["seq"] = str(last + place)
            before = fields["chain"] = chained(before, last + place, fields)
            flat = [part for pair in fields.items() for part in pair]
            entries.append({"at_ms": at_ms, "fields": flat, "lists": lists_of(fields)})
        ask = {
            "head": kept.head,
            "newest": kept.newest,
            "seq": str(last + len(entries)),
            "entries": entries,
            "chain": before,
            "now_ms": int(records.milliseconds(self._now())),
            "kept_ms": self._kept is not None and round(self._kept.total_seconds() * 1000),
            "most": MOST,
        }
        await self._call("access/keep_audit", ask)
        return len(waiting)


class Audit(Scripts):
    """Appends entries. Every call may raise StoreUnavailable. `keeper`: moves them, if no other program does. `now`:
    returns the time of the cell."""

    def __init__(self, redis: Redis, *, keeper: AuditKeeper | None = None, now: Callable[[], datetime] = _utc) -> None:
        super().__init__(redis)
        self._keeper = keeper
        self._now = now

    def told(self) -> None:
        """Note that a script has appended an entry."""
        if self._keeper is not None:
            self._keeper.told()

    async def write(self, *entries: Mapping[str, str]) -> None:
        """Append entries, and wake the keeper."""
        texts = [json.dumps({"at_ms": records.milliseconds(self._now()), **entry}) for entry in entries]
        with redis_answers():
            async with asyncio.timeout(_WRITE_SECONDS):
                if not await self._call("access/append_audit", {"entries": texts, "most": NEW_MOST}):
                    raise StoreUnavailable("The audit log takes no more entries: it has no keeper.")
        if self._keeper is not None:
            with redis_answers():
                async with asyncio.timeout(_WRITE_SECONDS):
                    await self._keeper.keep()


def _read(raw: bytes) -> tuple[int, dict[str, str]]:
    """The time of an entry and its fields. Anything in the list becomes an entry, because invalid data must not
    stop the log."""
    with suppress(ValueError, TypeError, KeyError):
        entry: dict[str, Any] = json.loads(raw)
        at_ms = int(entry["at_ms"])
        fields = {name: str(entry[name])[:_TEXT_MAX] for name in sorted(FIELDS & entry.keys())}
        [text.encode() for text in fields.values()]  # raises for lone surrogates
        if at_ms >= 0 and fields:
            return at_ms, fields
    log.warning("audit.unreadable")
    return 0, {"unreadable": raw[:_TEXT_MAX].decode(errors="replace")}
