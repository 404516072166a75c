"""A client of the API: it takes paths below /api/v1/ and returns the API's bodies. Raises only CliError."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar
from urllib.parse import quote
from uuid import uuid4

from api.cli.exits import CliError, Exit, OperatorsOnly, Refused, Unreachable
from api.cli.later import asyncio

Result = TypeVar("Result")
Body = dict[str, Any]  # in the form of the API's document; `--json` prints it unchanged
Query = Mapping[str, str | int | None]  # None: left out

PAGE_MAX = 500  # results of one page
LIMITED_TRIES = 3  # attempts at a call that is rate limited
LIMITED_SECONDS = 60.0  # the longest wait after a 429
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 5.0  # between tries while the service is unreachable
READ_ONLY = "store_read_only"  # a problem's code: it lasts until an operator has repaired Redis
MISSED = "missed"  # the client's own kind of event: events were lost
OUTAGE_SECONDS = 600.0  # how long the API may be unreachable while a job or the events are followed

LIMIT_WINDOW_SECONDS = 60.0  # the window of the service's rate limits
_RATE_LIMIT = re.compile(r";r=([0-9]{1,9});t=([0-9]{1,9})")

_RETRYABLE = {
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
    status: int
    headers: Mapping[str, str]
    raw: bytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    body: Body  # {} if there is none
    job_id: str | None  # the ID of the job that was created


@dataclass(frozen=True, kw_only=True)
class Event:
    id: str  # begins with its time, in milliseconds
    kind: str
    data: Body


class Wire(Protocol):
    """Sends the calls; see `wire`."""

    async def send(
        self, method: str, path: str, *, query: Query, body: Body | None, headers: Mapping[str, str]
    ) -> Reply: ...

    def stream(
        self, path: str, *, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[tuple[Reply, AsyncIterator[str]]]: ...


class Client:
    """Raises Refused and Unreachable. `account`: the account that a service token acts for."""

    def __init__(self, wire: Wire, *, account: int | None) -> None:
        self._wire = wire
        self._headers = {} if account is None else {"X-Account-Id": str(account)}
        self._is_operator: bool | None = None if account is None else False
        self._allowance: tuple[int, int] | None = None
        self.resolved: dict[tuple[str, str], str] = {}  # IDs by kind and text: see `resolve`

    @property
    def seconds_for_each_call(self) -> float:
        """The interval between calls that spreads the token's remaining calls evenly until its limit is reset. 0 if
        the service reports no limit."""
        if self._allowance is None:
            return 0.0
        left, seconds = self._allowance
        return min(LIMITED_SECONDS, max(seconds, LIMIT_WINDOW_SECONDS) / (left + 1))

    async def get(self, path: str, query: Query | None = None) -> Body:
        return (await self._call("GET", path, query=query)).body

    async def post(self, path: str, body: Body | None = None) -> Body:
        return (await self.start(path, body)).body

    async def start(self, path: str, body: Body | None = None, query: Query | None = None) -> Answer:
        """A POST that may create a job. It is retried while the service is unreachable, with one Idempotency-Key, so it
        takes effect at most once."""
        key = {"Idempotency-Key": uuid4().hex}
        return await retrying(
            lambda: self._call("POST", path, body=body, query=query, headers=key), max_seconds=2 * LONGEST_WAIT_SECONDS
        )

    async def put(self, path: str, body: Body) -> Answer:
        """Retried while the service is unreachable: doing it again changes nothing."""
        return await retrying(lambda: self._call("PUT", path, body=body), max_seconds=2 * LONGEST_WAIT_SECONDS)

    async def patch(self, path: str, body: Body) -> Body:
        """Retried as PUT is."""
        changed = await retrying(lambda: self._call("PATCH", path, body=body), max_seconds=2 * LONGEST_WAIT_SECONDS)
        return changed.body

    async def delete(self, path: str) -> Answer:
        return await self._call("DELETE", path)

    async def either(
        self, operators: Callable[[], Awaitable[Result]], customers: Callable[[], Awaitable[Result]]
    ) -> Result:
        """The customer's call, or the operators' call if the token acts for no account. The kind of token is determined
        once."""
        if self._is_operator:
            return await operators()
        try:
            found = await customers()
        except (Refused, OperatorsOnly) as refused:
            if self._is_operator is False or not (isinstance(refused, OperatorsOnly) or _acts_for_nobody(refused)):
                raise
            found = await self._as_operator(operators, refused)
            self._is_operator = True
            return found
        self._is_operator = False
        return found

    async def _as_operator(self, operators: Callable[[], Awaitable[Result]], refused: CliError) -> Result:
        """Raises `refused` if it is a customer's token that lacks a permission."""
        try:
            return await operators()
        except Refused as also:
            raise refused if also.code == "permission_denied" else also from also

    async def collect(self, path: str, query: Query, *, limit: int | None) -> Body:
        """All pages of an operators' list, by cursor. `limit` None: no limit."""
        results: list[Body] = []
        first: Body = {}
        after: str | None = None
        while True:
            size = PAGE_MAX if limit is None else min(PAGE_MAX, limit - len(results))
            page = await self.get(path, {**query, "limit": size, "after": after})
            first = first or page
            results += page["results"]
            after = page["after"]
            if after is None or (limit is not None and len(results) >= limit):
                return {**first, "after": after, "results": results}

    async def collect_pages(self, path: str, query: Query, *, limit: int | None) -> Body:
        """All pages of a customer's list, by page number. `limit` None: no limit."""
        results: list[Body] = []
        number = 1
        size = PAGE_MAX if limit is None else min(PAGE_MAX, limit)
        while True:
            page = await self.get(path, {**query, "page": number, "page_size": size})
            results += page["results"]
            number += 1
            if not page["results"] or len(results) >= min(page["count"], limit or page["count"]):
                return {"count": page["count"], "results": results[:limit]}

    async def events(
        self, *, listening: Callable[[], None], lost: Callable[[Unreachable], None]
    ) -> AsyncIterator[Event]:
        """The events from now on, of all accounts or of the token's account. Resumes after a lost connection.
        Raises Unreachable if the first connection fails, or after OUTAGE_SECONDS without a connection."""
        path = "ops/events/" if self._is_operator else "events/"
        seen: dict[str, str] = {}  # the Last-Event-ID header, if any
        clock = asyncio.get_running_loop().time
        heard_at: float | None = None
        while True:
            try:
                async with self._wire.stream(path, headers={**self._headers, **seen}) as (reply, lines):
                    _check(reply)
                    if heard_at is not None and not seen:  # no ID to resume from
                        yield Event(id="", kind=MISSED, data={})
                    heard_at = clock()
                    listening()
                    async for event in _events(lines, seen):
                        yield event
                lost(Unreachable("The service closed the stream."))
            except Refused as refused:
                if self._is_operator is False or path == "ops/events/" or not _acts_for_nobody(refused):
                    raise
                path = "ops/events/"
                continue
            except Unreachable as error:
                if heard_at is None or clock() - heard_at > OUTAGE_SECONDS:
                    raise
                lost(error)
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
            # no RateLimit header: the token is invalid, so waiting does not help
            limited = reply.status == HTTPStatus.TOO_MANY_REQUESTS and "RateLimit" in reply.headers
            if not limited or n == LIMITED_TRIES - 1:
                break
            after = reply.headers.get("Retry-After", "")  # a proxy may send a date
            await asyncio.sleep(min(int(after), LIMITED_SECONDS) if after.isdecimal() and after.isascii() else 1.0)
        self._allowance = _allowance(reply.headers)
        _check(reply)
        return Answer(body=_json(reply.raw) if reply.raw else {}, job_id=reply.headers.get("X-Job-Id"))


def _acts_for_nobody(refused: Refused) -> bool:
    """Whether the refusal of a customer's call suggests an operator's token: a missing permission, or a missing
    account."""
    return refused.code == "permission_denied" or "X-Account-Id" in str(refused)


def _allowance(headers: Mapping[str, str]) -> tuple[int, int] | None:
    """The remaining calls, and the seconds until more are available, from the RateLimit header."""
    found = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return (int(found[1]), int(found[2])) if found else None


def segment(text: str) -> str:
    """An ID or a name as one segment of a path. Raises CliError."""
    if text in {"", ".", ".."}:
        raise CliError(Exit.USAGE, f"{text!r} is not a valid ID or name.")
    return quote(text, safe="")


async def retrying(
    call: Callable[[], Awaitable[Result]],
    *,
    on_outage: Callable[[Unreachable], None] = lambda _: None,
    max_seconds: float = OUTAGE_SECONDS,
) -> Result:
    """Retry while the service is unreachable, for at most `max_seconds`. Raises Unreachable."""
    clock = asyncio.get_running_loop().time
    deadline, wait = clock() + max_seconds, FIRST_WAIT_SECONDS
    while True:
        try:
            return await call()
        except Unreachable as error:
            if clock() + wait > deadline:
                raise
            on_outage(error)
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


async def _events(lines: AsyncIterator[str], seen: dict[str, str]) -> AsyncIterator[Event]:
    """`seen` gets the ID of each event once it has been handled."""
    fields: dict[str, str] = {}
    async for line in lines:
        name, colon, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif not colon:  # otherwise it is a heartbeat
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
        raise Refused(Exit.REFUSED, "The response is not from the snapshots API; check --url.", code="")
    return body


def _check(reply: Reply) -> None:
    """Raises Refused or Unreachable unless the status is 2xx."""
    status = reply.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    try:
        problem = json.loads(reply.raw)
        code = str(problem["code"])
        text = f"{problem['detail']} ({code}, request {problem['request_id']})"
    except (ValueError, LookupError, TypeError):  # from a proxy or another service
        code, text = "", f"The response (status {status}) is not from the snapshots API; check --url."
    if status == HTTPStatus.BAD_REQUEST and "X-Account-Id" in text:
        text += " Name the account with --account."
    if code == READ_ONLY:
        raise Refused(Exit.UNREACHABLE, text, code=code)
    if status in _RETRYABLE:
        raise Unreachable(text)
    raise Refused(_EXITS.get(status, Exit.REFUSED), text, code=code)
