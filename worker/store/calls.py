"""How the store calls Redis: its errors, its scripts' arguments, and the answers that more than one side reads."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

import structlog
from opentelemetry.trace import SpanKind
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError, ResponseError

from worker.program import tracing
from worker.store import errors, records
from worker.store.model import Job, JobId, JobKind

IDEMPOTENCY_KEPT_SECONDS = 86_400.0
_REDIS_REFUSES = ("MISCONF", "NOREPLICAS")  # said of a script's write too; any other error in one is ours to mend

log = structlog.stdlib.get_logger()

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Item]):
    """One page of a list; `count` is the total over all pages."""

    count: int
    results: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """The caller's own mark on a request: asked again with the same, it gets the answer of the first time."""

    key: str
    fingerprint: str  # of all that was asked: the same key with another is refused
    owner: str = ""  # whose key it is, where it is not the account's

    def of_one(self, item: str) -> Self:
        """For one of many things that are asked for at once."""
        return replace(self, key=f"{self.key}:{item}")


def script_broke(error: BaseException | None) -> bool:
    """Whether Redis works and one of our scripts does not, for instance at a record that it can't read."""
    return type(error) is ResponseError and "user_script" in str(error) and not str(error).startswith(_REDIS_REFUSES)


@contextmanager
def redis_answers() -> Iterator[None]:
    """Foreign errors stop here: Redis away, slow, full or read-only is one and the same to a caller."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        if script_broke(error):
            log.exception("store.script_broke")
        raise errors.StoreUnavailable("The store of the service does not answer.") from error


async def decided(admit: AsyncScript, ask: dict[str, Any]) -> list[Any]:
    """What `admit.lua` answers, within a span that the job's goes on from."""
    name = f"admit {ask['kind']}"
    with redis_answers(), tracing.span(name, {"vps_snapshots.job.kind": ask["kind"]}, kind=SpanKind.PRODUCER) as span:
        answer: list[Any] = await admit(args=[json.dumps(ask | tracing.carried())])
        match answer:
            case [b"refused", code, *_]:
                span.set_attribute("vps_snapshots.refused", code.decode())
            case [_, [job_id, *_], *_]:
                span.set_attribute("vps_snapshots.job.id", job_id.decode())
        return answer


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
