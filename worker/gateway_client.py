"""The store behind a gateway: one connection for all calls of this process."""

import asyncio
import itertools
import math
import random
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import structlog
from pydantic import ValidationError
from pydantic_core import from_json
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import InvalidStatus, WebSocketException

from worker.gateway_address import CREATE, GatewayAddress, GatewayTrouble
from worker.store import errors
from worker.store.errors import StoreUnavailable
from worker.store.model import Job, JobId, ServerId, SnapshotId, Step
from worker.store.nodes.claims import (
    BeginRefused,
    BegunJob,
    ClaimRefused,
    Known,
    LeaseHeld,
    LeaseLost,
    PublishedSnapshot,
    Reported,
    ReportedServer,
)
from worker.store.nodes.protocol import (
    BEGIN_REFUSED,
    BEGINS_WITH_TAKE,
    BROKE,
    CALLS,
    CLAIM_REFUSED,
    LEASE_LOST,
    PATH,
    PROTOCOLS,
    Message,
)
from worker.store.observer import Observer
from worker.store.outcome import Outcome
from worker.store.reports import EMPTY_REPORT, JobReport, NodeFacts

CALL_SECONDS = 5.0  # limit for a call and its answer, in addition to the wait of the call itself
CONNECT_SECONDS = 5.0
PING_SECONDS = 5.0
SILENT_SECONDS = 5.0  # the limit for an answer to a ping or a close
ANSWER_BYTES = 64 << 20
AGAIN_SECONDS = (0.05, 1.0)  # between two attempts to connect: the first wait, and the limit up to which it doubles
LASTING_SECONDS = 1.0  # a connection that lasted this long is replaced at once
ELSEWHERE_SECONDS = 5.0  # how long a gateway may only return errors until the next one is tried

_DISTINGUISHED_CODES = frozenset({LEASE_LOST, BEGIN_REFUSED, CLAIM_REFUSED, BROKE})

log = structlog.stdlib.get_logger()


@dataclass(frozen=True, kw_only=True)
class _Link:
    """A connection after `hello`, and the protocol that both sides speak."""

    connection: ClientConnection
    protocol: int


class GatewayClient:
    """A `NodePort`. No call is repeated automatically: a call whose answer was lost may have been executed.

    `machine` and `who` are as in `NodeStore`. `observer` gets the result of each call.
    """

    def __init__(
        self, address: GatewayAddress, *, node: str, machine: str, who: str, observer: Observer | None = None
    ) -> None:
        self.node = node
        self._address = address
        self._hello = CALLS["hello"].ask.fitting(
            protocols=sorted(PROTOCOLS), node=node, owner=uuid4().hex, machine=machine, who=who
        )
        self._observer = observer
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._link: asyncio.Future[_Link] = asyncio.get_running_loop().create_future()
        self._stopping: set[asyncio.Task[None]] = set()
        self._trouble_since: float | None = None
        self._last_cause = ""

    async def keep_connected(self) -> None:
        """Run until cancelled. When a connection ends or can't be made, the next gateway is tried."""
        first, longest = AGAIN_SECONDS
        pause = 0.0
        number = random.randrange(len(self._address.urls))  # noqa: S311 - spreads the nodes
        while True:
            url = self._address.urls[number % len(self._address.urls)]
            number += 1
            lasted = await self._connected(url)
            pause = 0.0 if lasted > LASTING_SECONDS else min(longest, max(first, 2 * pause))
            await asyncio.sleep(pause)

    async def _connected(self, url: str) -> float:
        """Open a connection and serve it until it ends. Returns how many seconds it lasted."""
        if self._link.done():
            self._link = asyncio.get_running_loop().create_future()
        link = self._link
        trouble: Exception | None = None
        began = math.inf
        try:
            async with self._opened(url) as opened:
                log.info("gateway.reached", url=url)
                self._last_cause, self._trouble_since = "", None
                began = time.monotonic()
                link.set_result(opened)
                async for frame in opened.connection:
                    self._take_answer(frame)
                trouble = GatewayTrouble("the gateway has closed the connection")
        except Exception as error:  # noqa: BLE001 - a broken connection may raise anything
            trouble = error
        finally:
            self._lost(link, url, trouble)
        return max(0.0, time.monotonic() - began)

    def _lost(self, link: asyncio.Future[_Link], url: str, error: Exception | None) -> None:
        cause = self._cause(error) if error else "this process is stopping"
        trouble = GatewayTrouble(f"{url}: {cause}")
        self._link = asyncio.get_running_loop().create_future()
        for waiting in (link, self._link, *self._asked.values()):
            if not waiting.done():
                waiting.set_exception(trouble)
                waiting.exception()  # nobody may be awaiting it
        if error and cause != self._last_cause:
            self._last_cause = cause
            log.warning("gateway.not_reached", url=url, cause=cause)

    def _cause(self, error: Exception) -> str:
        if isinstance(error, InvalidStatus):
            if error.response.status_code == HTTPStatus.UNAUTHORIZED:
                return (
                    f"HTTP 401: the gateway refused the credential in {self._address.credential_file}: it is wrong, "
                    f"revoked or expired; {CREATE}"
                )
            what = error.response.body.decode(errors="replace").strip() if error.response.body else ""
            return f"HTTP {error.response.status_code} {what}".strip()
        return str(error) or type(error).__name__

    @asynccontextmanager
    async def _opened(self, url: str) -> AsyncIterator[_Link]:
        """Open a connection and send `hello`."""
        options: dict[str, Any] = {
            "additional_headers": {"Authorization": f"Bearer {self._address.credential()}"},
            "compression": None,
            "max_size": ANSWER_BYTES,
            "open_timeout": CONNECT_SECONDS,
            "ping_interval": PING_SECONDS,
            "ping_timeout": SILENT_SECONDS,
            "close_timeout": SILENT_SECONDS,
        }
        if url.startswith("unix://"):
            opening = unix_connect(url.removeprefix("unix://"), f"ws://gateway{PATH}", **options)
        else:
            context = ssl.create_default_context(cafile=self._address.tls_ca_file)
            opening = connect(f"{url}{PATH}", ssl=context, proxy=None, **options)
        async with opening as connection:
            await connection.send(f'{{"id":0,"call":"hello","ask":{self._hello.model_dump_json()}}}')
            async with asyncio.timeout(CONNECT_SECONDS):
                _, told = _read(await connection.recv())
            if isinstance(told, GatewayTrouble):
                raise told
            yield _Link(connection=connection, protocol=CALLS["hello"].answer.validate_python(told).protocol)

    def _take_answer(self, frame: str | bytes) -> None:
        call_id, told = _read(frame)
        asked = self._asked.get(call_id)
        if asked is None or asked.done():  # nobody waits for the answer any longer
            return
        if isinstance(told, GatewayTrouble):
            asked.set_exception(told)
        else:
            asked.set_result(told)

    # --- one call ---

    async def _call(self, name: str, *, waits: float = 0.0, **fields: Any) -> Any:
        """Send a call and return its answer. `waits`: seconds for which the call itself waits. Raises
        StoreUnavailable."""
        try:
            return await self._answer(name, waits=waits, **fields)
        except GatewayTrouble as trouble:  # such as a bug of the gateway, which must not end the worker
            self._count_trouble(trouble)
            raise StoreUnavailable.of() from trouble

    async def _answer(self, name: str, *, waits: float = 0.0, **fields: Any) -> Any:
        """Like `_call`. Raises GatewayTrouble for the codes that `_claim` distinguishes."""
        call = CALLS[name]
        began = time.monotonic()
        try:
            ask = call.ask.fitting(**fields)
            async with asyncio.timeout(CALL_SECONDS + waits):
                answer = call.answer.validate_python(await self._asked_for(name, ask))
        except ValidationError as error:  # the call exceeds the protocol's limits, or the answer is invalid
            log.exception("gateway.misunderstood", call=name)
            raise StoreUnavailable.of() from error
        except (OSError, WebSocketException, TimeoutError, GatewayTrouble) as error:
            if isinstance(error, GatewayTrouble) and error.code in _DISTINGUISHED_CODES:
                raise
            self._count_trouble(error)
            raise StoreUnavailable.of() from error
        self._trouble_since = None
        if self._observer is not None and not waits:
            self._observer.answered(time.monotonic() - began)
        return answer

    async def _asked_for(self, name: str, ask: Message) -> Any:
        link = await asyncio.shield(self._link)
        call_id = next(self._ids)
        answer = self._asked[call_id] = asyncio.get_running_loop().create_future()
        try:
            said = CALLS[name].said(ask, link.protocol)
            await link.connection.send(f'{{"id":{call_id},"call":"{name}","ask":{said}}}')
            return await answer
        finally:
            del self._asked[call_id]

    def _count_trouble(self, error: Exception) -> None:
        """Count the error. If errors last, try another gateway."""
        if self._observer is not None:
            self._observer.failed(error)
        now = time.monotonic()
        self._trouble_since = self._trouble_since or now
        if now - self._trouble_since > ELSEWHERE_SECONDS and len(self._address.urls) > 1:
            self._trouble_since = None
            if self._link.done() and not self._link.exception():
                self._link.result().connection.transport.abort()

    async def _claim(self, name: str, **fields: Any) -> Any:
        """Like `_call`, for a call that makes a claim. Raises LeaseLost, BeginRefused or ClaimRefused."""
        try:
            return await self._answer(name, **fields)
        except GatewayTrouble as trouble:
            if trouble.code == LEASE_LOST:
                raise LeaseLost from trouble
            if trouble.code == BEGIN_REFUSED:
                raise BeginRefused(str(trouble)) from trouble
            if trouble.code == CLAIM_REFUSED:
                raise ClaimRefused(str(trouble)) from trouble
            raise errors.RecordUnreadable.of(kind=name) from trouble

    # --- the calls of NodePort ---

    async def take_lease(self, *, seconds: float) -> LeaseHeld | None:
        held: LeaseHeld | None = await self._call("take_lease", seconds=seconds)
        return held

    async def lease_holder(self) -> LeaseHeld | None:
        held: LeaseHeld | None = await self._call("lease_holder")
        return held

    async def take(self, *, running: Sequence[JobId], free: int, seconds: float) -> tuple[JobId | Job, ...]:
        ask = {"running": running, "free": free, "seconds": seconds, "begin": True}
        try:
            given: tuple[JobId | Job, ...] = await self._call("take", waits=seconds, **ask)
        except asyncio.CancelledError:  # otherwise the gateway would keep waiting and begin a job that nobody starts
            stopping = asyncio.ensure_future(self._stop_taking())
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            raise
        return given

    async def _stop_taking(self) -> None:
        with suppress(StoreUnavailable):
            await self.stop_taking()

    async def stop_taking(self) -> None:
        if self._link.done() and not self._link.exception() and self._link.result().protocol >= BEGINS_WITH_TAKE:
            await self._call("stop_taking")

    async def begin(self, job_id: JobId) -> Job:
        job: Job = await self._claim("begin", job_id=job_id)
        return job

    async def progress(self, job_id: JobId, step: Step, report: JobReport = EMPTY_REPORT) -> None:
        await self._claim("progress", job_id=job_id, step=step, report=report)

    async def finish(self, job_id: JobId, outcome: Outcome, report: JobReport = EMPTY_REPORT, power: str = "") -> str:
        told: str = await self._claim("finish", job_id=job_id, outcome=outcome, report=report, power=power)
        return told

    async def report(self, servers: Iterable[ReportedServer], about: NodeFacts | None = None) -> Reported:
        reported: Reported = await self._claim("report", servers=tuple(servers), about=about)
        return reported

    async def publish(
        self, server_id: ServerId, snapshots: Iterable[PublishedSnapshot], begun: Iterable[BegunJob]
    ) -> tuple[SnapshotId, ...]:
        new: tuple[SnapshotId, ...] = await self._claim(
            "publish", server_id=server_id, snapshots=tuple(snapshots), begun=tuple(begun)
        )
        return new

    async def known(self, server_id: ServerId, on_disk: Sequence[SnapshotId]) -> Known:
        known: Known = await self._claim("known", server_id=server_id, on_disk=on_disk)
        return known

    async def lose(self, server_id: ServerId, snapshot_id: SnapshotId) -> bool:
        lost: bool = await self._claim("lose", server_id=server_id, snapshot_id=snapshot_id)
        return lost

    async def regain(self, server_id: ServerId, snapshot_id: SnapshotId, *, size_mb: int) -> bool:
        regained: bool = await self._claim("regain", server_id=server_id, snapshot_id=snapshot_id, size_mb=size_mb)
        return regained

    async def tell_findings(self, server_id: ServerId, findings: Sequence[dict[str, str]]) -> None:
        await self._claim("tell_findings", server_id=server_id, findings=findings)

    async def republish(self) -> int:
        servers: int = await self._call("republish")
        return servers

    async def retry_deletes(self) -> int:
        queued: int = await self._call("retry_deletes")
        return queued


def _read(frame: str | bytes) -> tuple[int, Any]:
    """The ID of a call and its answer: a value, or GatewayTrouble. Raises ValueError."""
    match from_json(frame, cache_strings="none"):
        case {"id": int(call_id), "answer": answer}:
            return call_id, answer
        case {"id": int(call_id), "error": str(code), **rest}:
            return call_id, GatewayTrouble(str(rest.get("detail") or code), code=code)
    raise ValueError("the gateway sent an invalid answer")
