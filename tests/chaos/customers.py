"""Customers who keep creating and deleting snapshots, and repeat a call with its key until it is answered."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import aiohttp

AGAIN_SECONDS = 0.2
BUSY_SECONDS = 0.05
BUSY = (HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT)  # for a create; for a delete
CALL_SECONDS = 10.0
FORMER_SECONDS = 5.0  # how long the other front end may still read from a former primary
SNAPSHOTS = "/api/v1/snapshots/"


@dataclass(kw_only=True)
class Customers:
    """`servers`: one for each customer. All times are of the monotonic clock."""

    url: str
    token: str
    servers: list[int]
    admitted: dict[str, float] = field(default_factory=dict)  # job -> time of the response
    create_seconds: list[float] = field(default_factory=list)  # of creates that were admitted at the first attempt
    errors: Counter[str] = field(default_factory=Counter)
    most_errors_of_one: int = 0  # of one call with its repetitions, since `forget_errors`
    violations: list[str] = field(default_factory=list)
    _stopped: bool = False

    async def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        limit = aiohttp.ClientTimeout(total=CALL_SECONDS)
        async with aiohttp.ClientSession(headers=headers, timeout=limit) as session, asyncio.TaskGroup() as group:
            for server in self.servers:
                group.create_task(self._live(session, server))

    def stop(self) -> None:
        """Stop when each customer's current call and job have ended."""
        self._stopped = True

    def forget_errors(self) -> None:
        self.most_errors_of_one = 0

    async def admits(self, *, since: float) -> float:
        """Wait for the first job that was admitted after that time. Returns the time of its response."""
        while not (found := [moment for moment in self.admitted.values() if moment > since]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return min(found)

    async def _live(self, session: aiohttp.ClientSession, server: int) -> None:
        while not self._stopped:
            body = {"server_id": server, "name": uuid4().hex}
            status, made = await self._once_free(session, "POST", SNAPSHOTS, body)
            if status != HTTPStatus.CREATED:
                self.violations.append(f"a create was refused: {status} {made}")
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            path = f"{SNAPSHOTS}{made['id']}/"
            if await self._completes(session, path):
                await self._deleted(session, path)

    async def _completes(self, session: aiohttp.ClientSession, path: str) -> bool:
        known_by = time.monotonic() + FORMER_SECONDS
        while True:
            status, found = await self._insist(session, "GET", path)
            if status == HTTPStatus.NOT_FOUND and time.monotonic() < known_by:
                self.errors["404 of a former primary"] += 1
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if status != HTTPStatus.OK:
                self.violations.append(f"an admitted snapshot is lost: {path} {status} {found}")
                return False
            if found["status"] == "completed":
                return True
            if found["status"] == "failed":
                self.violations.append(f"an admitted snapshot failed: {found}")
                return False
            await asyncio.sleep(AGAIN_SECONDS)

    async def _deleted(self, session: aiohttp.ClientSession, path: str) -> None:
        status, answer = await self._once_free(session, "DELETE", path)
        if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND):
            self.violations.append(f"a delete was refused: {status} {answer}")
        if (await self._insist(session, "GET", path))[0] != HTTPStatus.NOT_FOUND:
            self.violations.append(f"a deleted snapshot is back: {path}")

    async def _once_free(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, Any]:
        """Make the call once the server's previous job has ended."""
        while True:
            status, answer = await self._insist(session, method, path, body)
            if status not in BUSY or answer["code"] != "server_busy":
                return status, answer
            await asyncio.sleep(BUSY_SECONDS)

    async def _insist(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, Any]:
        """Repeat the call until it is answered by something other than a 5xx."""
        headers = {"Idempotency-Key": uuid4().hex} if method == "POST" else {}
        errors, began = 0, time.monotonic()
        while True:
            try:
                async with session.request(method, self.url + path, json=body, headers=headers) as answer:
                    text = await answer.read()
                    if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                        if answer.status < HTTPStatus.BAD_REQUEST and "X-Job-Id" in answer.headers:
                            self.admitted.setdefault(answer.headers["X-Job-Id"], time.monotonic())
                            if not errors and method == "POST":
                                self.create_seconds.append(time.monotonic() - began)
                        return answer.status, await answer.json() if text else None
                    code = (await answer.json())["code"] if answer.content_type.endswith("json") else "of the proxy"
                    why = f"{answer.status} {code}"
            except (aiohttp.ClientError, TimeoutError) as error:
                why = type(error).__name__
            errors += 1
            self.errors[why] += 1
            self.most_errors_of_one = max(self.most_errors_of_one, errors)
            await asyncio.sleep(AGAIN_SECONDS)
