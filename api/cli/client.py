"""The API's client: paths below /api/v1/ in, the API's own bodies out. Whatever goes wrong is a Trouble."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar
from urllib.parse import quote
from uuid import uuid4

from api.cli.exits import Exit, Refused, Trouble, Unreachable

Result = TypeVar("Result")
Body = dict[str, Any]  # as the API's document has it; `--json` prints it as it came
Query = Mapping[str, str | int | None]  # None: not asked for

PART_MAX = 500  # results of one answer
LIMITED_TRIES = 3  # of a call that came too soon after too many others
LIMITED_SECONDS = 60.0  # the longest wait for its turn
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 5.0  # between tries of a service that is away
MISSED = "missed"  # the event that says that some did not come
OUTAGE_SECONDS = 600.0  # so long it may be away while something is followed

_AGAIN = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
_EXITS: dict[int, Exit] = {
    HTTPStatus.UNAUTHORIZED: Exit.NOT_ALLOWED,
    HTTPStatus.FORBIDDEN: Exit.NOT_ALLOWED,
    HTTPStatus.NOT_FOUND: Exit.NOT_FOUND,
}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """As it came."""

    status: int
    headers: Mapping[str, str]
    raw: bytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    body: Body  # empty where there is none
    job_id: str | None  # of the job that was begun


@dataclass(frozen=True, kw_only=True)
class Event:
    id: str  # begins with its moment, in milliseconds
    kind: str
    data: Body


class Wire(Protocol):
    """What carries the calls; see `wire`."""

    async def send(
        self, method: str, path: str, *, query: Query, body: Body | None, headers: Mapping[str, str]
    ) -> Reply: ...

    def stream(
        self, path: str, *, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[tuple[Reply, AsyncIterator[str]]]: ...


class Client:
    """Raises Refused for what the service refuses, Unreachable where it does not answer. `account`: for which a service
    token acts."""

    def __init__(self, wire: Wire, *, account: int | None) -> None:
        self._wire = wire
        self._headers = {} if account is None else {"X-Account-Id": str(account)}

    async def get(self, path: str, query: Query | None = None) -> Body:
        return (await self._call("GET", path, query=query)).body

    async def post(self, path: str, body: Body | None = None, query: Query | None = None) -> Answer:
        """Sent again while the service is away, under one Idempotency-Key: it is done once at most."""
        key = {"Idempotency-Key": uuid4().hex}
        return await patiently(
            lambda: self._call("POST", path, body=body, query=query, headers=key),
            most_seconds=2 * LONGEST_WAIT_SECONDS,
        )

    async def delete(self, path: str) -> Answer:
        return await self._call("DELETE", path)

    async def either(
        self, operators: Callable[[], Awaitable[Result]], customers: Callable[[], Awaitable[Result]]
    ) -> Result:
        """What an operator's token may see, or else what its account may."""
        if not self._headers:
            try:
                return await operators()
            except Refused as refused:
                if refused.code != "permission_denied":
                    raise
        return await customers()

    async def parts(self, path: str, query: Query, *, limit: int | None) -> Body:
        """An operators' list, put together of its parts. `limit` None: all of it."""
        results: list[Body] = []
        first: Body = {}
        after: str | None = None
        while True:
            wanted = PART_MAX if limit is None else min(PART_MAX, limit - len(results))
            part = await self.get(path, {**query, "limit": wanted, "after": after})
            first = first or part
            results += part["results"]
            after = part["after"]
            if after is None or (limit is not None and len(results) >= limit):
                return {**first, "after": after, "results": results}

    async def pages(self, path: str, query: Query, *, limit: int | None) -> Body:
        """A customer's list, put together of its pages. `limit` None: all of it."""
        results: list[Body] = []
        page = 1
        size = PART_MAX if limit is None else min(PART_MAX, limit)
        while True:
            part = await self.get(path, {**query, "page": page, "page_size": size})
            results += part["results"]
            page += 1
            if not part["results"] or len(results) >= min(part["count"], limit or part["count"]):
                return {"count": part["count"], "results": results[:limit]}

    async def events(
        self, *, listening: Callable[[], None], lost: Callable[[Unreachable], None]
    ) -> AsyncIterator[Event]:
        """Every event from now on, of all accounts or of the token's; after a lost connection it goes on where it was.
        Raises Unreachable where the first connection fails, or none has come about for OUTAGE_SECONDS."""
        path = "events/" if self._headers else "ops/events/"
        seen: dict[str, str] = {}  # the header that names the last one
        clock = asyncio.get_running_loop().time
        heard_at: float | None = None
        while True:
            try:
                async with self._wire.stream(path, headers={**self._headers, **seen}) as (reply, lines):
                    _check(reply)
                    if heard_at is not None and not seen:  # nothing names the place to go on from
                        yield Event(id="", kind=MISSED, data={})
                    heard_at = clock()
                    listening()
                    async for event in _events(lines, seen):
                        yield event
                lost(Unreachable("The service has ended the stream."))
            except Refused as refused:
                if refused.code != "permission_denied" or path == "events/":
                    raise
                path = "events/"
                continue
            except Unreachable as away:
                if heard_at is None or clock() - heard_at > OUTAGE_SECONDS:
                    raise
                lost(away)
            await asyncio.sleep(LONGEST_WAIT_SECONDS / 5)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = {**self._headers, **(headers or {})}
        for n in range(LIMITED_TRIES):
            reply = await self._wire.send(method, path, query=query or {}, body=body, headers=sent)
            # only who has a good token is told its limit; for a bad one waiting is no help
            limited = reply.status == HTTPStatus.TOO_MANY_REQUESTS and "RateLimit" in reply.headers
            if not limited or n == LIMITED_TRIES - 1:
                break
            after = reply.headers.get("Retry-After", "")  # a proxy before the service may say it with a date
            await asyncio.sleep(min(int(after), LIMITED_SECONDS) if after.isdecimal() and after.isascii() else 1.0)
        _check(reply)
        return Answer(body=_json(reply.raw) if reply.raw else {}, job_id=reply.headers.get("X-Job-Id"))


def segment(text: str) -> str:
    """What a person gave as an id or a name, as one part of a path."""
    if text in {"", ".", ".."}:
        raise Trouble(Exit.USAGE, f"{text!r} is no id and no name.")
    return quote(text, safe="")


async def patiently(
    call: Callable[[], Awaitable[Result]],
    *,
    told: Callable[[Unreachable], None] = lambda _: None,
    most_seconds: float = OUTAGE_SECONDS,
) -> Result:
    """Call again while the service is away. Raises Unreachable when it was for `most_seconds`."""
    clock = asyncio.get_running_loop().time
    gives_up, wait = clock() + most_seconds, FIRST_WAIT_SECONDS
    while True:
        try:
            return await call()
        except Unreachable as away:
            if clock() + wait > gives_up:
                raise
            told(away)
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


async def _events(lines: AsyncIterator[str], seen: dict[str, str]) -> AsyncIterator[Event]:
    """`seen` gets the id of each event once it has been handed on."""
    fields: dict[str, str] = {}
    async for line in lines:
        name, colon, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif not colon:  # else a comment, so that the silence is not too long
            if "data" in fields:
                yield Event(
                    id=fields.get("id", ""), kind=fields.get("event", "message"), data=_json(fields["data"].encode())
                )
            if "id" in fields:
                seen["Last-Event-ID"] = fields["id"]
            fields = {}


def _json(raw: bytes) -> Body:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refused(Exit.REFUSED, "What answers is not the snapshots API: is the URL right?", code="")
    return body


def _check(reply: Reply) -> None:
    """Raises Refused or Unreachable for any answer but a good one."""
    status = reply.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    try:
        problem = json.loads(reply.raw)
        code = str(problem["code"])
        text = f"{problem['detail']} ({code}, request {problem['request_id']})"
    except (ValueError, LookupError, TypeError):  # of a proxy before it, or of another service
        code, text = "", f"What answers, with status {status}, is not the snapshots API: is the URL right?"
    if status == HTTPStatus.BAD_REQUEST and "X-Account-Id" in text:
        text += " Give the account with --account."
    if status in _AGAIN:
        raise Unreachable(text)
    raise Refused(_EXITS.get(status, Exit.REFUSED), text, code=code)
