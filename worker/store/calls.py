"""How the store calls Redis: its errors, its scripts, and the answers that several of its classes read."""

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
from worker.store.model import Job, JobId, JobKind

IDEMPOTENCY_KEPT_SECONDS = 86_400.0

log = structlog.stdlib.get_logger()

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Item]):
    """One page of a list; `count` is the total over all pages."""

    count: int
    results: tuple[Item, ...]


@dataclass(kw_only=True)
class Idempotency:
    """The caller's own key for a request: a repeated request with the same key gets the first one's answer."""

    key: str
    fingerprint: str  # of the whole request: the same key with another one is refused
    owner: str = ""  # whose key it is, where it is not the account's
    replayed: bool = field(default=False, init=False)  # once it is answered: with the first one's answer

    def of_one(self, item: str) -> Self:
        """For one of the many parts of a request."""
        return replace(self, key=f"{self.key}:{item}")


def script_broke(error: BaseException | None) -> bool:
    """Whether Redis works and one of our scripts does not, for instance at a record that it can't read."""
    return type(error) is ResponseError and "user_script" in str(error) and trouble.why_read_only(error) is None


@contextmanager
def redis_answers(*, changing: bool = True) -> Iterator[None]:
    """Foreign errors stop here, as StoreUnavailable, StoreReadOnly, or OutcomeUnknown; the last only if `changing`."""
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
        """What the script `name` ("customers/find") answers. Raises StoreUnavailable, or as one that changes something
        StoreReadOnly or OutcomeUnknown."""
        if scripts.only_reads(name):
            return await reading(lambda: self._run(name, ask))
        with redis_answers():
            return await self._run(name, ask)

    async def _admit(self, ask: Mapping[str, Any]) -> list[Any]:
        """What `customers/admit` answers, within a span that the job's span continues. Raises what `_call` raises."""
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
            self._loaded[name] = scripts.load(self._redis, name)
        return await self._loaded[name](args=[json.dumps(ask)])


def accepted(answer: Sequence[Any], idempotency: Idempotency | None = None, **facts: object) -> list[Any]:
    """What a script answers behind its verdict, of a request with that key. Raises what it refused; `facts`: what the
    caller adds to the text."""
    verdict, *found = answer
    if idempotency is not None:
        idempotency.replayed = verdict == b"replayed"
    if verdict == b"refused":
        code, *in_the_way = (item.decode() for item in found)
        raise errors.refusal(code, *in_the_way, **facts)
    return found


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
