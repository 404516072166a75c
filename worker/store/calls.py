"""How the store calls Redis: errors, scripts, and answers that several classes share."""

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
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

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
REPORT_AGAIN_SECONDS = (
    600.0  # interval at which a record that is still unreadable is added to the operators' list again
)
RETRY_REPORT_SECONDS = 10.0  # the same interval after a failed attempt
REPORTED_MAX = 1000  # unreadable records that a process remembers
_OF_REDIS = (RedisError, OSError, TimeoutError)
_UNREADABLE = re.compile(  # the error with which `shared/records.lua` ends a script, and Redis's suffix
    r"UNREADABLE (?P<key>(?P<kind>token:[a-z]+(?=:)|[a-z]+)\S*) (?P<reason>.*?)(?: script: .*)?", re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Item]):
    """One page of a list; `count` is the total over all pages."""

    count: int
    results: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Which page of a list: `limit` entries after a cursor. `since` (inclusive) and `until` (exclusive): bounds
    for a list by time."""

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
    """One page of a list of any length. It can have fewer results than `limit`, or none, without being the last page,
    because a call reads a bounded number of entries."""

    count: int | None  # total of the whole list; None for a filtered one
    results: tuple[Item, ...]
    after: str | None  # cursor of the next page; None: the last page

    @classmethod
    def of(cls, count: int, after: Sequence[bytes], results: tuple[Item, ...]) -> Self:
        """Parse a script's answer; a negative count means unknown."""
        cursor = ":".join(part.decode() for part in after) if after else None
        return cls(count=None if count < 0 else count, after=cursor, results=results)


@dataclass(kw_only=True)
class Idempotency:
    """The caller's key for a request: a repeated request with the same key gets the first one's answer."""

    key: str
    fingerprint: str  # hash of the request: the same key with a different request is refused
    owner: str = ""  # owner of the key, if it is not the account
    replayed: bool = field(default=False, init=False)  # whether the answer is that of the first request

    def of_one(self, item: str) -> Self:
        """The key for one part of a bulk request."""
        return replace(self, key=f"{self.key}:{item}")


@dataclass(frozen=True, kw_only=True)
class Actor:
    """The caller: a token, by its ID and name."""

    token: str
    token_name: str


class Entry(ABC):
    """An HTTP call whose caller is checked by the first script that it runs: see `access/enter.lua`."""

    account_id: AccountId | None = None  # set once the caller is known
    actor: "Actor | None" = None  # the same

    @abstractmethod
    def for_script(self) -> dict[str, Any]:
        """The caller's data in the form that the script takes."""

    @abstractmethod
    async def entered(self, caller: list[Any], *, is_audited: bool) -> AccountId:
        """The account that the caller acts for, from the script's answer. `is_audited`: the script has added the call
        to the audit log. Raises the refusal of the caller, if any."""


By: TypeAlias = AccountId | Entry


def script_broke(error: BaseException | None) -> bool:
    """Whether Redis works but one of our scripts failed, for example on an unreadable record."""
    return type(error) is ResponseError and "user_script" in str(error) and trouble.why_read_only(error) is None


@contextmanager
def redis_answers(*, changing: bool = True) -> Iterator[None]:
    """Translate every error of Redis to StoreUnavailable, to StoreReadOnly if Redis refuses writes, or to
    OutcomeUnknown if the reply to a command that is `changing` something was lost."""
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
    """Run `ask`, which only reads. It is repeated once if the connection is cut. Raises StoreUnavailable."""
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
        # keys of unreadable records, and when they were reported to operators
        self._reported_unreadable: dict[str, float] = {}

    async def _call(self, name: str, ask: Mapping[str, Any], by: By | None = None) -> Any:
        """Run the script `name` ("customers/job"), if needed on behalf of an account. Raises StoreUnavailable or
        RecordUnreadable; if the script changes something, also StoreReadOnly and OutcomeUnknown; and the refusals of a
        caller."""
        if scripts.only_reads(name):
            return await reading(lambda: self._run(name, ask, by))
        try:  # no context manager, because each call runs this
            return await self._run(name, ask, by)
        except _OF_REDIS as error:
            raise _refused(error, changing=True) from error

    async def _admit(self, ask: Mapping[str, Any], by: By | None = None) -> list[Any]:
        """Run `customers/admit` in a span that is the parent of the job's span. Raises what `_call` raises."""
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
        """Parse one record of a script's answer. Raises RecordUnreadable."""
        return await self._read(lambda: records.one(read, shown, kind=kind))

    async def _changed(self, read: Callable[[list[Any]], Item], shown: list[Any], *, kind: str) -> Item:
        """Parse the record that a change was answered with. Raises OutcomeUnknown if it is unreadable."""
        return await self._after_change(self._one(read, shown, kind=kind))

    async def _after_change(self, shown: Awaitable[Item]) -> Item:
        """The answer to a change that was made. Raises OutcomeUnknown if it cannot be read: the change must not look
        refused."""
        try:
            return await shown
        except (errors.RecordUnreadable, errors.StoreUnavailable) as error:
            raise errors.OutcomeUnknown.of() from error

    async def _many(
        self,
        read: Callable[[Row], Item],
        rows: Iterable[Row],
        *,
        kind: str,
        key_of: Callable[[Row], str] | None = None,
    ) -> tuple[Item, ...]:
        """Parse the records of a script's answer; unreadable ones are left out."""
        return await self._read(lambda: records.many(read, rows, kind=kind, key_of=key_of))

    async def _read(self, read: Callable[[], Item]) -> Item:
        """Parse an answer with `read`. Unreadable parts are logged once and added to the operators' list."""
        with Noticing() as noticed:
            try:
                return read()
            finally:
                if noticed:
                    await self._tell_unreadable(noticed)

    async def _unless_other_type(self, key: str, ask: Callable[[], Awaitable[Found]], *, otherwise: Found) -> Found:
        """Run `ask`, a command on one key; returns `otherwise` if the key has another type of data."""
        try:
            return await reading(ask)
        except errors.StoreUnavailable as error:
            if not str(error.__cause__).startswith("WRONGTYPE"):
                raise
            await self._tell_unreadable([Unreadable(key=key, reason="it has another type of data")])
            return otherwise

    async def _tell_unreadable(self, noticed: Iterable[Unreadable]) -> None:
        now = time.monotonic()
        if not (
            news := [
                one for one in noticed if now - self._reported_unreadable.get(one.key, -math.inf) > REPORT_AGAIN_SECONDS
            ]
        ):
            return
        for one in news:
            if one.key not in self._reported_unreadable:
                log.warning("record.unreadable", key=one.key, reason=one.reason)
            self._reported_unreadable[one.key] = now
        self._reported_unreadable = dict(list(self._reported_unreadable.items())[-REPORTED_MAX:])
        try:
            await self._call("operators/set_aside", {"records": [[one.key, one.reason] for one in news]})
        except errors.StoreUnavailable:  # Redis refuses writes; the other records can still be read
            again = now - REPORT_AGAIN_SECONDS + RETRY_REPORT_SECONDS
            self._reported_unreadable |= {one.key: again for one in news}

    async def _run(self, name: str, ask: Mapping[str, Any], by: By | None = None) -> Any:
        if isinstance(by, Entry):
            if by.account_id is None:
                caller, *ran = await self._execute(scripts.entered, name, {**ask, "caller": by.for_script()})
                by.account_id = await by.entered(caller, is_audited=bool(ran and ran[1]))
                if ran:
                    return ran[0][0] if ran[0] else None
            ask, by = {**ask, **by_actor(by.actor)}, by.account_id
        ask = ask if by is None else {**ask, "account": str(by)}
        try:
            return await self._execute(scripts.text, name, ask)
        except OutOfMemoryError:  # nothing was changed: Redis refuses a script's first write, and no later one
            if not scripts.runs_when_full(name):
                raise
        return await self._execute(scripts.when_full, name, ask)

    async def _execute(self, text: Callable[[str], str], name: str, ask: Mapping[str, Any]) -> Any:
        if (text, name) not in self._scripts:
            self._scripts[text, name] = Script(text(name), changes=not scripts.only_reads(name))
        try:
            left_out, *answer = await self._runs.run_script(self._scripts[text, name], as_json(ask))
        except ResponseError as error:
            if ended := _UNREADABLE.fullmatch(str(error)):
                await self._tell_unreadable([Unreadable(key=ended["key"], reason=ended["reason"])])
            elif script_broke(error):
                error.add_note(f"in the script {name}, line: {scripts.line_of(text(name), str(error))}")
            raise
        if left_out:
            await self._tell_unreadable(
                Unreadable(key=records.text(key), reason=records.text(why)) for key, why in left_out
            )
        return answer[0] if answer else None

    async def _find(self, name: str, key: int | str, account_id: By, refused: type[errors.Refused], **more: int) -> Any:
        """One record of an account, from the script `name` ("customers/snapshot"). Raises `refused` if the account has
        none with this ID."""
        found = await self._call(name, {"id": str(key), **more}, account_id)
        if found is None:
            raise refused.of(id=key)
        return found


def by_actor(actor: Actor | None) -> dict[str, dict[str, str]]:
    """The field `by` of a script's `ask`."""
    return {} if actor is None else {"by": {"token": actor.token, "token_name": actor.token_name}}


def as_json(ask: object) -> bytes:
    """Serialize an ask for a script."""
    try:
        return to_json(ask)
    except PydanticSerializationError:  # a lone surrogate
        return json.dumps(ask).encode()


def accepted(answer: Sequence[Any], idempotency: Idempotency | None = None, **facts: object) -> list[Any]:
    """The answer of a script without its verdict. Raises the script's refusal; `facts`: the caller's values for the
    text."""
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
    job_id, flat, durations, server, holding, *silence = shown
    record = records.pairs(flat)
    key = f"server:{record.get('server', '')}"
    state = records.part(lambda pair: _state_of(*pair), (server, holding), key=key, otherwise=None)
    estimated = records.estimated_seconds(durations, node=record.get("node", ""))
    job = records.job(JobId(job_id.decode()), record, estimated_seconds=estimated, server_state=state)
    return replace(job, silent_since=records.silent_since(silence[0], node=job.node)) if silence else job


def _state_of(flat: list[bytes], holding: bytes) -> ServerState | None:
    """None: the server is gone."""
    record = records.pairs(flat)
    gone = not record or "missing" in record
    return None if gone else records.server_state(record, kind_of(holding))
