"""How the store calls Redis: errors, scripts, and the answers that several classes read."""

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self, TypeVar

import structlog
from arq.connections import ArqRedis
from opentelemetry.trace import SpanKind
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError, ResponseError

from worker.program import tracing
from worker.store import errors, records, scripts, trouble
from worker.store.model import AccountId, Job, JobId, JobKind

IDEMPOTENCY_KEPT_SECONDS = 86_400.0

log = structlog.stdlib.get_logger()

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Item]):
    """One page of a list; `count` is the total over all pages."""

    count: int
    results: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Which page of a list: `limit` entries after a cursor."""

    limit: int
    after: str | None = None

    def for_script(self) -> dict[str, Any]:
        return {"limit": self.limit} | ({"after": self.after.split(":", 1)} if self.after else {})


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


def script_broke(error: BaseException | None) -> bool:
    """Whether Redis works, but one of our scripts has failed, for example on a record that it cannot read."""
    return type(error) is ResponseError and "user_script" in str(error) and trouble.why_read_only(error) is None


@contextmanager
def redis_answers(*, changing: bool = True) -> Iterator[None]:
    """Raise every error of Redis as StoreUnavailable: as StoreReadOnly if it refuses writes, as OutcomeUnknown if its
    reply to a command that is `changing` something was lost."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        if script_broke(error):
            log.exception("store.script_broke")
        if trouble.why_read_only(error) is not None:
            raise errors.StoreReadOnly.of() from error
        if changing and isinstance(error, trouble.AnswerLost):
            raise errors.OutcomeUnknown.of() from error
        raise errors.StoreUnavailable.of() from error


async def reading(ask: Callable[[], Awaitable[Found]]) -> Found:
    """What `ask` finds in Redis, which changes nothing: it is called once more if the connection is cut. Raises
    StoreUnavailable."""
    with redis_answers(changing=False):
        try:
            return await ask()
        except trouble.CutOff:  # the connection had been idle, or Redis was restarted
            return await ask()


class Scripts:
    """Base of the store's classes: runs the Lua scripts. Each takes one JSON object, `ask`."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._loaded: dict[str, AsyncScript] = {}

    async def _call(self, name: str, ask: Mapping[str, Any]) -> Any:
        """Run the script `name` ("customers/find"). Raises StoreUnavailable; if it changes something, also
        StoreReadOnly and OutcomeUnknown."""
        if scripts.only_reads(name):
            return await reading(lambda: self._run(name, ask))
        with redis_answers():
            return await self._run(name, ask)

    async def _admit(self, ask: Mapping[str, Any]) -> list[Any]:
        """Run `customers/admit` in a span that the job's span continues. Raises as `_call` does."""
        attributes = {"vps_snapshots.job.kind": ask["kind"]}
        with redis_answers(), tracing.span(f"admit {ask['kind']}", attributes, kind=SpanKind.PRODUCER) as span:
            answer: list[Any] = await self._run("customers/admit", {**ask, **tracing.carried()})
            match answer:
                case [b"refused", code, *_]:
                    span.set_attribute("vps_snapshots.refused", code.decode())
                case [_, [job_id, *_], *_]:
                    span.set_attribute("vps_snapshots.job.id", job_id.decode())
            return answer

    async def _run(self, name: str, ask: Mapping[str, Any]) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._redis.register_script(scripts.text(name))
        return await self._loaded[name](args=[json.dumps(ask)])

    async def _find(
        self, what: str, key: int | str, account_id: AccountId, refused: type[errors.Refused], **more: int
    ) -> Any:
        """The record `what` ("snapshot") of an account. Raises `refused` if the account has none with this ID."""
        found = await self._call("customers/find", {"what": what, "id": str(key), "account": str(account_id), **more})
        if found is None:
            raise refused.of(id=key)
        return found


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
    record = records.pairs(server)
    gone = not record or "missing" in record
    state = None if gone else records.server_state(record, kind_of(holding))
    return records.job(JobId(job_id.decode()), records.pairs(flat), durations, state)
