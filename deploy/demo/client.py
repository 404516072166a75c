"""A minimal client of the API."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

_CALL_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any  # parsed JSON; None if there is no body


class Client:
    """Calls the API with one token. Raises `aiohttp.ClientError` if the front end cannot be reached."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        limit = aiohttp.ClientTimeout(total=_CALL_SECONDS)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=limit) as session,
            session.request(method, f"{self.url}{path}", json=body) as response,
        ):
            content = await response.json(content_type=None) if await response.read() else None
            return Answer(status=response.status, headers=response.headers, body=content)

    async def is_up(self) -> bool:
        try:
            return (await self.call("GET", "/readyz")).status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def is_authorized(self) -> bool:
        """Whether the token is valid."""
        return (await self.call("GET", "/api/v1/snapshots/?page_size=1")).status == HTTPStatus.OK

    async def is_operator(self) -> bool:
        """Whether the token is valid and has the permission `operator`."""
        return (await self.call("GET", "/api/v1/ops/nodes/?limit=1")).status == HTTPStatus.OK

    async def follow(self, path: str, *, timeout_seconds: float) -> dict[str, Any]:
        """Wait until the job at that path has ended, and return it. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                job: dict[str, Any] = (await self.call("GET", path)).body
                if job["state"] in ("completed", "failed"):
                    return job
                await asyncio.sleep(0.1)
