"""Sends calls, and retries those that can be repeated."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import requests

from .errors import Unreachable, of_problem

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0  # the service ends a call after 30 s
SILENCE_SECONDS = 45.0  # a stream has a comment every 15 s
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 15.0
_REPEATED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Answer:
    body: Any  # None if it has none
    headers: Mapping[str, str]


class Wire:
    """`retry_seconds`: how long a call is retried. `clock`: for tests."""

    def __init__(self, url: str, token: str, *, account_id: int | None, retry_seconds: float, clock: Clock) -> None:
        if urlsplit(url).scheme not in {"http", "https"}:
            raise ValueError("The URL must begin with https:// or http://.")
        self._root = f"{url.rstrip('/')}/api/v1/"
        self._session = requests.Session()
        self._session.headers.update({"Authorization": f"Bearer {token}", "User-Agent": "vps-snapshots-client"})
        if account_id is not None:
            self._session.headers["X-Account-Id"] = str(account_id)
        self._retry_seconds = retry_seconds
        self._clock = clock

    def close(self) -> None:
        self._session.close()

    def call(self, method: str, path: str, *, body: Any = None, query: Mapping[str, Any] | None = None) -> Answer:
        """Raises ApiError and Unreachable."""
        headers = {"Idempotency-Key": uuid4().hex} if method == "POST" else {}

        def send() -> requests.Response:
            return self._session.request(
                method,
                self._root + path,
                json=body,
                params=_query(query),
                headers=headers,
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                allow_redirects=False,
            )

        response, is_repeated = self._repeated(send)
        if method == "DELETE" and is_repeated and response.status_code == HTTPStatus.NOT_FOUND:
            # the earlier call, whose response was lost, has deleted it
            return Answer(body=None, headers=response.headers)
        if response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            raise of_problem(response.status_code, _problem(response))
        return Answer(body=response.json() if response.content else None, headers=response.headers)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str], *, seconds: float | None = None) -> Iterator[Iterator[str]]:
        """The lines of an event stream. `seconds`: the longest silence. Raises ApiError and Unreachable."""
        silence = SILENCE_SECONDS if seconds is None else min(SILENCE_SECONDS, seconds)
        try:
            with self._session.get(
                self._root + path, headers=headers, stream=True, timeout=(CONNECT_SECONDS, silence)
            ) as response:
                if response.status_code != HTTPStatus.OK:
                    raise of_problem(response.status_code, _problem(response))
                yield (line.decode() for line in response.iter_lines(chunk_size=1))
        except requests.RequestException as error:
            raise Unreachable(str(error)) from error

    def _repeated(self, send: Callable[[], requests.Response]) -> tuple[requests.Response, bool]:
        """The response, and whether an earlier one was lost."""
        deadline, wait, is_lost = self._clock.monotonic() + self._retry_seconds, FIRST_WAIT_SECONDS, False
        while True:
            try:
                response = send()
            except requests.RequestException as error:
                if self._clock.monotonic() + wait > deadline:
                    raise Unreachable(str(error)) from error
                is_lost = True
            else:
                asked = retry_after(response.headers)
                if response.status_code not in _REPEATED or self._clock.monotonic() + max(wait, asked) > deadline:
                    return response, is_lost
                wait = max(wait, asked)
            self._clock.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds; 0 if the header is missing or is a date from a proxy."""
    given = headers.get("Retry-After", "")
    return float(given) if given.isdecimal() else 0.0


def calls_left(headers: Mapping[str, str]) -> int | None:
    """How many calls the token has left, None if the response does not show it."""
    found = re.search(r"\br=(\d+)", headers.get("RateLimit", ""))
    return int(found[1]) if found else None


def _query(query: Mapping[str, Any] | None) -> dict[str, str]:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


def _problem(response: requests.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except (ValueError, json.JSONDecodeError):
        problem = None  # from a proxy
    return problem if isinstance(problem, dict) else {"detail": response.reason or ""}
