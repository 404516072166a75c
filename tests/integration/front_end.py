"""A front end on a real port with a real Redis, and a customer who calls it."""

import json
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from aiohttp import ClientSession, web
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from api.app import build
from api.http.server import listening
from api.measures.metrics import Metrics
from api.processes import Process
from api.settings import ApiSettings
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from worker.program.alive import Turns
from worker.store.access.tokens import Permission, Tokens
from worker.store.model import AccountId, Failure, JobId, JobState, SnapshotStatus
from worker.store.outcome import Outcome

SNAPSHOTS = "/api/v1/snapshots/"
READ_WRITE = frozenset({Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE})
DONE = Outcome(state=JobState.COMPLETED, snapshot_status=SnapshotStatus.COMPLETED, size_mb=5120, downtime_seconds=1.5)
BROKE = Outcome(state=JobState.FAILED, failure=Failure(code="disk_failed", detail="vda"))


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    def refused(self, status: int, code: str) -> Any:
        """The problem document; checks that it has that status and code."""
        assert (self.status, self.body["code"]) == (status, code), self.raw
        assert self.headers["Content-Type"] == "application/problem+json"
        keys = ["type", "title", "status", "detail", "code", "request_id"]
        assert list(self.body) in (keys, [*keys, "errors"], [*keys, "conflicts_with"])
        assert self.body["status"] == status
        assert self.body["request_id"] == self.headers["X-Request-Id"]
        is_of_limit = code.endswith("_limit_reached") or code == "too_many_dry_runs"
        assert self.headers.get("X-Limit", "").isdigit() == is_of_limit
        return self.body

    def refused_fields(self) -> list[str]:
        return [error["field"] for error in self.refused(400, "invalid_request")["errors"]]


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    app: web.Application
    client: ClientSession
    port: int
    cell: Cell
    tokens: Tokens
    token: str  # of ACCOUNT, with permission to read and write

    async def new_token(
        self, *, account: AccountId | None = ACCOUNT, permissions: Iterable[Permission] = READ_WRITE
    ) -> str:
        new = await self.tokens.create(name="a test", account_id=account, permissions=frozenset(permissions))
        return new.secret

    async def call(
        self,
        method: str,
        path: str = SNAPSHOTS,
        *,
        body: object = None,
        data: object = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Call as the public tier does: with its token, and with application/json even without a body."""
        sent = {"Authorization": f"Bearer {token or self.token}", "Content-Type": "application/json", **(headers or {})}
        raw = json.dumps(body).encode() if body is not None else data
        # encoded: the path is sent unchanged
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self.client.request(method, url, data=raw, headers=sent, allow_redirects=False) as response:
            return Answer(status=response.status, headers=response.headers, raw=await response.read())

    async def create(self, name: str = "before-update", description: str = "") -> Answer:
        return await self.call("POST", body={"server_id": SERVER, "name": name, "description": description})

    async def have_snapshot(self, name: str = "pre-migration") -> int:
        """Create a completed snapshot."""
        answer = await self.create(name, "Before major migration")
        assert answer.status == 201, answer.raw
        await self.work(answer)
        return int(answer.body["id"])

    async def have_failed_delivery(self, webhook_id: str) -> str:
        """Create a webhook test whose delivery was given up."""
        delivery_id, created_ms = uuid4().hex, round(time.time() * 1000)
        record = {"v": "1", "webhook": webhook_id, "event": "webhook.test", "attempts": "10", "status": "500"}
        record |= {"error": "bad_status", "created_ms": str(created_ms), "next_ms": "", "delivered_ms": ""}
        await self.cell.redis.hset(f"delivery:{delivery_id}", mapping=record)  # type: ignore[misc]  # redis-py's types
        await self.cell.redis.zadd(f"webhook:{webhook_id}:log", {delivery_id: created_ms})
        return delivery_id

    async def work(self, answer: Answer, outcome: Outcome = DONE) -> None:
        """Let the node do the job of an answer."""
        job_id = JobId(answer.headers["Operation-Location"].split("/")[-2])
        await self.cell.node.begin(job_id)
        await self.cell.node.finish(job_id, outcome)


class Names(AbstractResolver):
    """A resolver that knows only these names, so that no test uses the network."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host not in self._addresses:
            raise OSError(f"There is no {host}.")
        address = self._addresses[host]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


NO_NAMES = Names({})


@asynccontextmanager
async def serving(
    cell: Cell,
    *,
    names: Names = NO_NAMES,
    metrics: Metrics | None = None,
    token: str | None = None,
    process: Process | None = None,
    turns: Turns | None = None,
    **settings: Any,
) -> AsyncIterator[FrontEnd]:
    """`token`: an existing customer's token. `settings`: settings that the test changes."""
    given = ApiSettings.model_validate({"port": 0, **settings})
    tokens = Tokens(cell.redis)
    if token is None:
        token = (await tokens.create(name="a customer", account_id=ACCOUNT, permissions=READ_WRITE)).secret
    app = build(cell.redis, given, metrics=metrics, resolver=names, process=process, turns=turns)
    async with listening(app, given) as address, ClientSession() as client:
        yield FrontEnd(app=app, client=client, port=int(address[1]), cell=cell, tokens=tokens, token=token)
