"""Checks the chain of the audit log: whether entries are missing, changed or forged."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker.store import records
from worker.store.access.audit import HEAD, HEAD_UNREADABLE, STREAM, chained, is_other_type, number_of
from worker.store.calls import redis_answers

AT_ONCE = 20_000  # entries that one call checks, about a second
_BATCH = 500
_FAULTS_MAX = 100  # the first ones are enough
_Entry: TypeAlias = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True, kw_only=True)
class AuditFault:
    """`kind`: `gap` (entries before this one are missing), `changed` (the entry was changed), `forged` (the keeper
    did not write the entry), `cut` (entries after the last one are or may be missing). `entry`: an ID of the log."""

    kind: str
    entry: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class AuditCheck:
    """`checked`: number of checked entries. `unchained`: how many of them an earlier version wrote. `after`: where
    the next call continues, None at the end. `seq`, `chain`: number and hash of the last entry; a copy kept elsewhere
    reveals a rewritten log."""

    checked: int
    unchained: int
    faults: tuple[AuditFault, ...]
    after: str | None
    seq: int  # number of the last entry
    chain: str


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The keeper's record of the log: the numbers of its first and last entries, None if not recorded."""

    first: int | None
    last: int | None
    is_readable: bool

    @classmethod
    async def read(cls, redis: Redis) -> Self:
        try:
            head = await redis.hgetall(HEAD)  # type: ignore[misc]  # typed for the blocking client too
        except ResponseError as error:
            if not is_other_type(error):
                raise
            return cls(first=None, last=None, is_readable=False)
        first, last = head.get(b"first"), head.get(b"seq")
        damaged = any(raw is not None and number_of(raw) is None for raw in (first, last))
        return cls(first=number_of(first), last=number_of(last), is_readable=not damaged)


@dataclass(kw_only=True)
class _Walk:
    first: int | None  # the number with which the log must begin
    number: int | None = None  # number of the last entry
    chain: str = ""
    checked: int = 0
    unchained: int = 0
    last: str = ""
    faults: list[AuditFault] = field(default_factory=list)

    def look(self, entry_id: bytes, raw: dict[bytes, bytes]) -> None:
        self.checked, self.last = self.checked + 1, entry_id.decode()
        fields = {records.text(field): records.text(text) for field, text in raw.items()}
        text, number = fields.pop("seq", ""), number_of(raw.get(b"seq"))
        if number is None:
            if self.number is None:
                self.unchained += 1
            else:
                self.fault("forged", "The entry has no number.")
            return
        known = self.number
        if known is None:
            if self.first is not None and number > self.first:
                self.fault("gap", f"Entries {self.first} to {number - 1} are missing.")
        elif number > known + 1:
            self.fault("gap", f"Entries {known + 1} to {number - 1} are missing.")
        elif number <= known:
            self.fault("forged", f"Entry {number} follows entry {known}.")
            return
        elif fields.get("chain") != chained(self.chain, number, fields | {"seq": text}):
            self.fault("changed", f"Entry {number} was changed.")
        self.number, self.chain = number, fields.get("chain", "")

    def fault(self, kind: str, detail: str) -> None:
        if len(self.faults) < _FAULTS_MAX:
            self.faults.append(AuditFault(kind=kind, entry=self.last, detail=detail))


async def check(redis: Redis, *, after: str | None = None, at_most: int = AT_ONCE) -> AuditCheck:
    """Check the log from its oldest entry, or from the entry `after`, which was checked. Only the number of the
    oldest entry can be checked, because its predecessor is gone. Raises StoreUnavailable."""
    with redis_answers():
        head = await _Head.read(redis)
        walk = _Walk(first=head.first if after is None else None)
        if after is not None:
            for entry_id, raw in reversed(await _entries(redis.xrevrange(STREAM, after, "-", count=_BATCH))):
                walk.look(entry_id, raw)
            walk = _Walk(first=None, number=walk.number, chain=walk.chain)
        walk.last = after or ""
        while walk.checked < at_most:
            found = await _entries(redis.xrange(STREAM, f"({walk.last}" if walk.last else "-", "+", count=_BATCH))
            for entry_id, raw in found:
                walk.look(entry_id, raw)
            if len(found) < _BATCH:
                return _ended(walk, head)
    return _checked(walk, walk.last)


async def _entries(reading: Awaitable[list[_Entry]]) -> list[_Entry]:
    """The entries; None if the key has another type of data, so that all of them are missing."""
    try:
        return await reading
    except ResponseError as error:
        if is_other_type(error):
            return []
        raise


def _ended(walk: _Walk, head: _Head) -> AuditCheck:
    walk.last = walk.last or "0-0"
    if not head.is_readable or (head.last is None and walk.number is not None):
        walk.fault("cut", HEAD_UNREADABLE)
    elif (walk.number or 0) < (head.last or 0):
        walk.fault("cut", f"Entries {(walk.number or 0) + 1} to {head.last} are missing.")
    return _checked(walk, None)


def _checked(walk: _Walk, after: str | None) -> AuditCheck:
    faults: Sequence[AuditFault] = walk.faults
    return AuditCheck(
        checked=walk.checked,
        unchained=walk.unchained,
        faults=tuple(faults),
        after=after,
        seq=walk.number or 0,
        chain=walk.chain,
    )
