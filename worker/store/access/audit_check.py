"""Checks the chain of the audit log: whether entries are missing, changed or forged."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from arq.connections import ArqRedis

from worker.store import records
from worker.store.access.audit import HEAD, STREAM, chained
from worker.store.calls import redis_answers

AT_ONCE = 20_000  # entries that one call checks, about a second
_BATCH = 500
_FAULTS_MAX = 100  # the first ones tell the story


@dataclass(frozen=True, kw_only=True)
class AuditFault:
    """`kind`: `gap` (entries before this one are missing), `changed` (it is not what was written), `forged` (it was
    not written by the keeper), `cut` (entries after the last one are missing). `entry`: an ID of the log."""

    kind: str
    entry: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class AuditCheck:
    """`checked` entries were looked at. `unchained`: of them, those that an earlier version wrote. `after`: where the
    next call goes on, None at the end. `seq`, `chain`: of the last entry; kept elsewhere, they show a log that was
    written anew."""

    checked: int
    unchained: int
    faults: tuple[AuditFault, ...]
    after: str | None
    seq: int  # of the last entry
    chain: str


@dataclass
class _Walk:
    first: int | None  # the number with which the log must begin
    number: int | None = None  # of the last entry
    chain: str = ""
    checked: int = 0
    unchained: int = 0
    last: str = ""
    faults: list[AuditFault] = field(default_factory=list)

    def look(self, entry_id: str, fields: records.Hash) -> None:
        self.checked, self.last = self.checked + 1, entry_id
        text = fields.pop("seq", "")
        if not text.isdecimal():
            if self.number is None:
                self.unchained += 1
            else:
                self.fault("forged", "The entry has no number.")
            return
        number, known = int(text), self.number
        if known is None:
            if self.first is not None and number > self.first:
                self.fault("gap", f"Entries {self.first} to {number - 1} are missing.")
        elif number > known + 1:
            self.fault("gap", f"Entries {known + 1} to {number - 1} are missing.")
        elif number <= known:
            self.fault("forged", f"Entry {number} follows entry {known}.")
            return
        elif fields.get("chain") != chained(self.chain, number, fields | {"seq": text}):
            self.fault("changed", f"Entry {number} is not what was written.")
        self.number, self.chain = number, fields.get("chain", "")

    def fault(self, kind: str, detail: str) -> None:
        if len(self.faults) < _FAULTS_MAX:
            self.faults.append(AuditFault(kind=kind, entry=self.last, detail=detail))


async def check(redis: ArqRedis, *, after: str | None = None, at_most: int = AT_ONCE) -> AuditCheck:
    """Check the log from its oldest entry, or from the entry `after`, which was checked. The oldest entry itself can
    be checked by its number only: the entry before it is gone. Raises StoreUnavailable."""
    with redis_answers():
        head = records.decoded(await redis.hgetall(HEAD))  # type: ignore[misc]  # typed for the blocking client too
        walk = _Walk(first=int(head["first"]) if after is None and "first" in head else None)
        if after is not None:
            for entry_id, raw in reversed(await redis.xrevrange(STREAM, after, "-", count=_BATCH)):
                walk.look(entry_id.decode(), records.decoded(raw))
            walk = _Walk(first=None, number=walk.number, chain=walk.chain)
        start = "-" if after is None else f"({after}"
        while walk.checked < at_most:
            found = await redis.xrange(STREAM, start, "+", count=_BATCH)
            for entry_id, raw in found:
                walk.look(entry_id.decode(), records.decoded(raw))
            if len(found) < _BATCH:
                return _ended(walk, int(head.get("seq", 0)), after)
            start = f"({walk.last}"
    return _checked(walk, walk.last)


def _ended(walk: _Walk, written: int, after: str | None) -> AuditCheck:
    walk.last = walk.last or after or "0-0"
    if (walk.number or 0) < written:
        walk.fault("cut", f"Entries {(walk.number or 0) + 1} to {written} are missing.")
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
