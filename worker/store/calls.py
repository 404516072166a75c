"""How the store calls Redis: errors, scripts, and the answers that several classes read."""

import json
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, Self, TypeAlias, TypeVar

import structlog
from opentelemetry.trace import SpanKind
from pydantic_core import PydanticSerializationError, to_json
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from worker.program import tracing
from worker.store import errors, records, scripts, trouble
from worker.store.model import AccountId, Job, JobId, JobKind, ServerState
from worker.store.script_connection import RunsScripts, Script
from worker.store.unreadable import Noticing, Unreadable

IDEMPOTENCY_KEPT_SECONDS = 86_400.0
LAST_BACKUP = "backups:last_ms"

log = structlog.stdlib.get_logger()

Item = TypeVar("Item")
Row = TypeVar("Row")
Found = TypeVar("Found")
TOLD_AGAIN_SECONDS = 600.0  # until an unreadable record that is met again is put into the operators' list anew
TRIED_AGAIN_SECONDS = 10.0  # the same, where that was not possible
TOLD_MOST = 1000  # unreadable records that a process remembers
_OF_REDIS = (RedisError, OSError, TimeoutError)
_UNREADABLE = re.compile(  # as `shared/records.lua` ends a script, and what Redis adds
    r"UNREADABLE (?P<key>(?P<kind>token:[a-z]+(?=:)|[a-z]+)\S*) (?P<reason>.*?)(?: script: .*)?", re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Item]):
    """One page of a list; `count` is the total over all pages."""

    count: int
    results: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Which page of a list: `limit` entries after a cursor. `since` and `until`: of a list by time, only what lies
    between the two; the latter is not included."""

    limit: int
    after: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def for_script(self) -> dict[str, Any]:
        bounds = given(
            since_ms=self.since and records.milliseconds(self.since),
            until_ms=self.until and records.milliseconds(self.until),
        )
        return {"limit": self.limit} | bounds | ({"after": self.after.split(":", 1)} if self.after else {})


@dataclass(frozen=True, kw_only=True)
class CursorPage(Generic[Item]):
    """One page of a list of any length. It may have fewer results than asked for, or none, and still not be the last:
    a call looks at a bounded number of entries."""

    count: int | None  # of the whole list; None for a filtered one
    results: tuple[Item, ...]
    after: str | None  # cursor of the next page; None: the last page

    @classmethod
    def of(cls, count: int, after: Sequence[bytes], results: tuple[Item, ...]) -> Self:
        """From a script's answer: a count below 0 is unknown."""
        cursor = ":".join(part.decode() for part in after) if after else None
        return cls(count=None if count < 0 else count, after=cursor, results=results)


@dataclass(kw_only=True)
class Idempotency:
    """The caller's own key for a request: a repeated request with the same key gets the first one's answer."""

    key: str
    fingerprint: str  # of the whole request: the same key with a different request is refused
    owner: str = ""  # of the key, if not the account
    replayed: bool = field(default=False, init=False)  # whether it was answered with the first one's answer

    def of_one(self, item: str) -> Self:
        """The key for one part of a bulk request."""
        return replace(self, key=f"{self.key}:{item}")


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who asks: a token, by its ID and name."""

    token: str
    token_name: str


class Entry(ABC):
    """A call over HTTP whose caller the first script that it runs checks: see `access/enter.lua`."""

    account_id: AccountId | None = None  # once the caller is known
    actor: "Actor | None" = None  # the same

    @abstractmethod
    def for_script(self) -> dict[str, Any]:
        """What the script takes of the caller."""

    @abstractmethod
    async def entered(self, caller: list[Any], *, is_audited: bool) -> AccountId:
        """The account that the caller acts for, from what the script answers of him. `is_audited`: the script has added
        the call to the audit log. Raises what refuses the caller."""


By: TypeAlias = AccountId | Entry


def script_broke(error: BaseException | None) -> bool:
    """Whether Redis works, but one of our scripts has failed, for example on a record that it cannot read."""
    return type(error) is ResponseError and "user_script" in str(error) and trouble.why_read_only(error) is None


@contextmanager
def redis_answers(*, changing: bool = True) -> Iterator[None]:
    """Raise every error of Redis as StoreUnavailable: as StoreReadOnly if it refuses writes, as OutcomeUnknown if its
    reply to a command that is `changing` something was lost."""
    try:
        yield
    except _OF_REDIS as error:
        raise _refused(error, changing=changing) from error


def _refused(error: Exception, *, changing: bool) -> errors.Refused:
    if unreadable := _UNREADABLE.fullmatch(str(error)):
        return errors.RecordUnreadable.of(kind=unreadable["kind"])
    if script_broke(error):
        log.error("store.script_broke", exc_info=error)
    if trouble.why_read_only(error) is not None:
        return errors.StoreReadOnly.of()
    lost = changing and isinstance(error, trouble.AnswerLost)
    return errors.OutcomeUnknown.of() if lost else errors.StoreUnavailable.of()


async def reading(ask: Callable[[], Awaitable[Found]]) -> Found:
    """What `ask` finds in Redis, which changes nothing: it is called once more if the connection is cut. Raises
    StoreUnavailable."""
    try:
        try:
            return await ask()
        except trouble.CutOff:  # the connection had been idle, or Redis was restarted
            return await ask()
    except _OF_REDIS as error:
        raise _refused(error, changing=False) from error


class Scripts:
    """Base of the store's classes: runs the Lua scripts. Each takes one JSON object, `ask`."""

    def __init__(self, redis: Redis) -> None:
        if not isinstance(redis, RunsScripts):
            raise TypeError("not a client of worker.store.redis_client")
        self._redis: Redis = redis
        self._runs: RunsScripts = redis
        self._scripts: dict[tuple[Callable[[str], str], str], Script] = {}
        self._unreadable_told: dict[str, float] = {}  # keys of unreadable records, and when the operators were told

    async def _call(self, name: str, ask: Mapping[str, Any], by: By | None = None) -> Any:
        """Run the script `name` ("customers/find"), which may need the account that asks. Raises StoreUnavailable or
        RecordUnreadable; if it changes something, also StoreReadOnly and OutcomeUnknown; and what refuses a caller."""
        if scripts.only_reads(name):
            return await reading(lambda: self._run(name, ask, by))
        try:  # no context manager: this is in the way of each call
            return await self._run(name, ask, by)
        except _OF_REDIS as error:
            raise _refused(error, changing=True) from error

    async def _admit(self, ask: Mapping[str, Any], by: By | None = None) -> list[Any]:
        """Run `customers/admit` in a span that the job's span continues. Raises as `_call` does."""
        answer: list[Any]
        if tracing.is_without():
            answer = await self._call("customers/admit", ask, by)
            return answer
        attributes = {"vps_snapshots.job.kind": ask["kind"]}
        with tracing.span(f"admit {ask['kind']}", attributes, kind=SpanKind.PRODUCER) as span:
            answer = await self._call("customers/admit", {**ask, **tracing.carried()}, by)
            match answer:
                case [b"refused", code, *_]:
                    span.set_attribute("vps_snapshots.refused", code.decode())
                case [_, [job_id, *_], *_]:
                    span.set_attribute("vps_snapshots.job.id", job_id.decode())
            return answer

    async def _one(self, read: Callable[[list[Any]], Item], shown: list[Any], *, kind: str) -> Item:
        """What a script has shown. Raises RecordUnreadable."""
        return await self._read(lambda: records.one(read, shown, kind=kind))

    async def _many(
        self,
        read: Callable[[Row], Item],
        rows: Iterable[Row],
        *,
        kind: str,
        key_of: Callable[[Row], str] | None = None,
    ) -> tuple[Item, ...]:
        """Those that can be read."""
        return await self._read(lambda: records.many(read, rows, kind=kind, key_of=key_of))

    async def _read(self, read: Callable[[], Item]) -> Item:
        """What `read` makes of an answer. What can't be read of it is logged once and put into the operators' list."""
        with Noticing() as noticed:
            try:
                return read()
            finally:
                if noticed:
                    await self._tell_unreadable(noticed)

    async def _unless_other_type(self, key: str, ask: Callable[[], Awaitable[Found]], *, otherwise: Found) -> Found:
        """What `ask` finds in a key, outside of a script; `otherwise` where the key holds another type of data."""
        try:
            return await reading(ask)
        except errors.StoreUnavailable as error:
            if not str(error.__cause__).startswith("WRONGTYPE"):
                raise
            await self._tell_unreadable([Unreadable(key=key, reason="it holds another type of data")])
            return otherwise

    async def _tell_unreadable(self, noticed: Iterable[Unreadable]) -> None:
        now = time.monotonic()
        if not (
            news := [one for one in noticed if now - self._unreadable_told.get(one.key, -math.inf) > TOLD_AGAIN_SECONDS]
        ):
            return
        for one in news:
            if one.key not in self._unreadable_told:
                log.warning("record.unreadable", key=one.key, reason=one.reason)
            self._unreadable_told[one.key] = now
        self._unreadable_told = dict(list(self._unreadable_told.items())[-TOLD_MOST:])
        try:
            await self._call("operators/set_aside", {"records": [[one.key, one.reason] for one in news]})
        except errors.StoreUnavailable:  # Redis takes no writes: the others can be read all the same
            again = now - TOLD_AGAIN_SECONDS + TRIED_AGAIN_SECONDS
            self._unreadable_told |= {one.key: again for one in news}

    async def _run(self, name: str, ask: Mapping[str, Any], by: By | None = None) -> Any:
        if isinstance(by, Entry):
            if by.account_id is None:
                caller, *ran = await self._execute(scripts.entered, name, {**ask, "caller": by.for_script()})
                by.account_id = await by.entered(caller, is_audited=bool(ran and ran[1]))
                if ran:
                    return ran[0][0] if ran[0] else None
            ask, by = {**ask, **by_actor(by.actor)}, by.account_id
        return await self._execute(scripts.text, name, ask if by is None else {**ask, "account": str(by)})

    async def _execute(self, text: Callable[[str], str], name: str, ask: Mapping[str, Any]) -> Any:
        if (text, name) not in self._scripts:
            self._scripts[text, name] = Script(text(name), changes=not scripts.only_reads(name))
        try:
            left_out, *answer = await self._runs.run_script(self._scripts[text, name], as_json(ask))
        except ResponseError as error:
            if ended := _UNREADABLE.fullmatch(str(error)):
                await self._tell_unreadable([Unreadable(key=ended["key"], reason=ended["reason"])])
            raise
        if left_out:
            await self._tell_unreadable(
                Unreadable(key=records.text(key), reason=records.text(why)) for key, why in left_out
            )
        return answer[0] if answer else None

    async def _find(self, what: str, key: int | str, account_id: By, refused: type[errors.Refused], **more: int) -> Any:
        """The record `what` ("snapshot") of an account. Raises `refused` if the account has none with this ID."""
        found = await self._call("customers/find", {"what": what, "id": str(key), **more}, account_id)
        if found is None:
            raise refused.of(id=key)
        return found


def by_actor(actor: Actor | None) -> dict[str, dict[str, str]]:
    """The field `by` of a script's `ask`."""
    return {} if actor is None else {"by": {"token": actor.token, "token_name": actor.token_name}}


def as_json(ask: object) -> bytes:
    """As scripts take it."""
    try:
        return to_json(ask)
    except PydanticSerializationError:  # half a character (a lone surrogate)
        return json.dumps(ask).encode()


def accepted(answer: Sequence[Any], idempotency: Idempotency | None = None, **facts: object) -> list[Any]:
    """The answer of a script, to a request with that key, without its verdict. Raises its refusal; `facts`: what the
    caller adds to the text."""
    verdict, *found = answer
    if idempotency is not None:
        idempotency.replayed = verdict == b"replayed"
    if verdict == b"refused":
        code, *in_the_way = (item.decode() for item in found)
        raise errors.refusal(code, *in_the_way, **facts)
    return found


def given(**fields: object) -> dict[str, str]:
    """The fields that are not None, as text for a script."""
    return {field: str(value) for field, value in fields.items() if value is not None}


def flag(value: bool | None) -> str | None:
    """A truth value as a field of a record; None stays None."""
    return None if value is None else "1" if value else ""


def for_script(idempotency: Idempotency | None) -> dict[str, str | int] | bool:
    if idempotency is None:
        return False
    kept_ms = round(IDEMPOTENCY_KEPT_SECONDS * 1000)
    mark: dict[str, str | int] = {"key": idempotency.key, "fingerprint": idempotency.fingerprint, "kept_ms": kept_ms}
    return mark | ({"owner": idempotency.owner} if idempotency.owner else {})


def kind_of(holding: bytes) -> JobKind | None:
    return JobKind(holding.decode()) if holding else None


def shown_job(shown: list[Any]) -> Job:
    job_id, flat, durations, server, holding = shown
    record = records.pairs(flat)
    key = f"server:{record.get('server', '')}"
    state = records.part(lambda pair: _state_of(*pair), (server, holding), key=key, otherwise=None)
    return records.job(JobId(job_id.decode()), record, durations, state)


def _state_of(flat: list[bytes], holding: bytes) -> ServerState | None:
    """None: the server is gone."""
    record = records.pairs(flat)
    gone = not record or "missing" in record
    return None if gone else records.server_state(record, kind_of(holding))
