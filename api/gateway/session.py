"""One connection of a node: reads its calls within limits, and answers them."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NewType

import structlog
from pydantic import ValidationError
from pydantic_core import from_json
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from api.gateway.answers import ANSWERS
from api.gateway.limits import Allowance
from api.gateway.metrics import ANSWERED, REFUSED, UNAVAILABLE, Metrics
from api.gateway.refusals import Refusals
from worker.store.access.credentials import Credential
from worker.store.errors import StoreUnavailable
from worker.store.nodes.claims import BeginRefused, ClaimRefused, CredentialEnded, LeaseLost
from worker.store.nodes.node_store import NodeStore
from worker.store.nodes.protocol import (
    BEGIN_REFUSED,
    BROKE,
    CALLS,
    CLAIM_REFUSED,
    LEASE_LOST,
    PROTOCOLS,
    Call,
    Greeting,
    Hello,
    Message,
)

OPEN_CALLS = 64  # concurrent calls of one connection; the next one is read when a call is answered
POLICY_VIOLATION = 1008  # WebSocket close code
# This many items, such as servers of a report, count as one more call, because the store works on each of them. So
# does this many bytes of a call or of its answer.
ITEMS_OF_A_CALL, SENT_BYTES_OF_A_CALL, ANSWER_BYTES_OF_A_CALL = 20, 10_000, 2000
DESCRIBED_MOST = 100  # errors of a message: describing more takes longer than finding them
CALLS_OF_A_SECOND = 1000  # of this process's time: a large message takes some, also an invalid one
REPUBLISH_CALLS = 100  # as how many it counts: it writes to the record of each server of the node

CallId = NewType("CallId", int)

log = structlog.stdlib.get_logger()


class CallRefused(Exception):
    """The call violates the protocol. `reason`: a word for metrics and logs; the text is for the node."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Allowances:
    """The limits of one node, over all its connections. `connections`: new ones. `bytes`: of its calls and their
    answers. `known`: a short call with a long answer, one at a time."""

    connections: Allowance
    calls: Allowance
    bytes: Allowance
    known: asyncio.Lock = field(default_factory=asyncio.Lock)


class Session:
    """`store_of` creates the store for the node that says hello. `first_lease` is awaited before the connection's first
    lease."""

    def __init__(
        self,
        connection: ServerConnection,
        credential: Credential,
        *,
        allowances: Allowances,
        store_of: Callable[[Credential, Hello], NodeStore],
        first_lease: Callable[[], Awaitable[object]],
        refusals: Refusals,
        metrics: Metrics,
    ) -> None:
        self.credential = credential
        self._connection = connection
        self._allowances = allowances
        self._store_of = store_of
        self._first_lease = first_lease
        self._refusals = refusals
        self._metrics = metrics
        self._store: NodeStore | None = None
        self._had_lease = False
        self._taking = False
        self._is_cut = False
        self._open = asyncio.Semaphore(OPEN_CALLS)
        self._calls: dict[asyncio.Task[None], str] = {}

    @property
    def node(self) -> str:
        return self.credential.node

    def cut(self) -> None:
        """Close the connection at once, whatever the node does."""
        self._is_cut = True
        self._connection.transport.abort()

    def cut_as_ended(self) -> None:
        """Close the connection, because its credential has ended."""
        if not self._is_cut:
            log.warning("gateway.cut", node=self.node, credential=self.credential.id)
            self._metrics.cut()
            self.cut()

    async def run(self) -> None:
        """Answer calls until the connection ends."""
        try:
            async for frame in self._connection:
                await self._pay(calls=1 + len(frame) / SENT_BYTES_OF_A_CALL, sent=len(frame))
                await self._open.acquire()
                if self._is_cut:  # ignore calls that it sent before
                    break
                self._begin(frame)
        except CallRefused as refused:  # without an ID, there is no call to answer
            self._refusals.refused(self.node, "none", refused.reason)
            await self._connection.close(POLICY_VIOLATION, refused.reason)
        except ConnectionClosed:
            pass
        finally:
            await self._end()

    async def _pay(self, *, calls: float, sent: int = 0) -> None:
        """Wait until the node's allowance covers this, or the connection ends. Otherwise closed connections would keep
        their places in the limit for all nodes."""
        seconds = max(self._allowances.calls.take(calls), self._allowances.bytes.take(sent))
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._connection.wait_closed()

    def _begin(self, frame: str | bytes) -> None:
        call_id, name, ask = _read(frame)
        task = asyncio.create_task(self._answer(call_id, name, ask))
        self._calls[task] = name
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        del self._calls[task]
        self._open.release()
        if not task.cancelled():
            task.result()

    async def _end(self) -> None:
        """Cancel an open `take`, whose job nobody would receive, and let the other calls finish."""
        for task, name in self._calls.items():
            if name == "take":
                task.cancel()
        if self._calls:  # each ends by itself: calls of Redis have time limits, and `_pay` ends with the connection
            await asyncio.wait(self._calls)

    async def _answer(self, call_id: CallId, name: str, ask: Any) -> None:
        began = time.perf_counter()
        result = REFUSED
        try:
            text = f'{{"id":{call_id},"answer":{await self._answered(name, ask)}}}'
            result = ANSWERED
        except CallRefused as refused:
            self._refusals.refused(self.node, name if name in CALLS else "unknown", refused.reason)
            text = _error(call_id, refused.reason, str(refused))
        except CredentialEnded:
            self.cut_as_ended()
            return
        except LeaseLost:
            text = _error(call_id, LEASE_LOST)
        except BeginRefused as refused:
            text = _error(call_id, BEGIN_REFUSED, str(refused))
        except ClaimRefused as refused:
            text = _error(call_id, CLAIM_REFUSED, refused.reason)
        except StoreUnavailable as error:
            result = UNAVAILABLE
            text = _error(call_id, error.code)  # the cause would reveal the address of Redis
        except Exception:  # such as an unreadable record; it must not block other calls
            log.exception("gateway.call_broke", node=self.node, call=name)
            text = _error(call_id, BROKE)
        self._metrics.called(name if name in CALLS else "unknown", result, time.perf_counter() - began)
        try:
            await self._connection.send(text)
        except ConnectionClosed:
            log.info("gateway.answer_lost", node=self.node, call=name)

    async def _answered(self, name: str, ask: Any) -> str:
        """The answer as JSON. Raises CallRefused and the errors of the store's calls."""
        call = CALLS.get(name)
        if call is None:
            raise CallRefused("unknown_call", "this gateway does not know the call; is it older than the node?")
        message = await self._validated(call, ask)
        if isinstance(message, Hello):
            return self._greet(message).model_dump_json()
        if self._store is None:
            raise CallRefused("no_hello", "the first call must be hello")
        more = REPUBLISH_CALLS - 1 if name == "republish" else 0
        await self._pay(calls=more + _items(message) / ITEMS_OF_A_CALL)
        async with self._allowances.known if name == "known" else nullcontext():
            if self._is_cut:  # while the call waited
                raise StoreUnavailable.of()
            if name == "take_lease" and not self._had_lease:
                await self._first_lease()
                self._had_lease = True
            answer = await (self._take(self._store, message) if name == "take" else ANSWERS[name](self._store, message))
            text = call.answer.dump_json(answer).decode()
            await self._pay(calls=len(text) / ANSWER_BYTES_OF_A_CALL, sent=len(text))
        return text

    async def _validated(self, call: Call, ask: Any) -> Message:
        """The call's message. Raises CallRefused."""
        began = time.thread_time()
        try:
            return call.ask.model_validate(ask)
        except ValidationError as error:
            raise CallRefused("bad_ask", _where(error)) from None
        finally:
            await self._pay(calls=(time.thread_time() - began) * CALLS_OF_A_SECOND)

    def _greet(self, hello: Hello) -> Greeting:
        common = PROTOCOLS & set(hello.protocols)
        if not common:
            spoken = ", ".join(map(str, sorted(PROTOCOLS)))
            raise CallRefused("protocol", f"this gateway speaks protocol {spoken}, the node {hello.protocols}")
        if self._store is not None:
            raise CallRefused("two_hellos", "hello was already sent on this connection")
        if hello.node != self.node:
            raise CallRefused("wrong_node", f"the credential belongs to node {self.node}, not to {hello.node}")
        self._store = self._store_of(self.credential, hello)
        return Greeting(protocol=max(common), node=self.node)

    async def _take(self, store: NodeStore, ask: Message) -> Any:
        if self._taking:
            raise CallRefused("two_takes", "another take is open on this connection")
        self._taking = True
        try:
            return await ANSWERS["take"](store, ask)
        finally:
            self._taking = False


def _items(message: Message) -> int:
    """The number of items in the lists of a message and of its parts."""
    lists = (value for _, value in message if isinstance(value, tuple))
    return sum(map(len, lists)) + sum(_items(value) for _, value in message if isinstance(value, Message))


def _read(frame: str | bytes) -> tuple[CallId, str, Any]:
    """Parse a frame. Raises CallRefused if it is not a valid call."""
    if isinstance(frame, bytes):
        raise CallRefused("bad_frame")
    try:
        asked = from_json(frame, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        raise CallRefused("bad_frame") from None
    match asked:
        case {"id": int(call_id), "call": str(name), "ask": ask, **rest}:
            if not rest and not isinstance(call_id, bool) and 0 <= call_id < 1 << 53:
                return CallId(call_id), name, ask
    raise CallRefused("bad_frame")


def _error(call_id: CallId, code: str, detail: str = "") -> str:
    return f'{{"id":{call_id},"error":{json.dumps(code)},"detail":{json.dumps(detail)}}}'


def _where(error: ValidationError) -> str:
    """The names of the invalid fields, without their values."""
    if error.error_count() > DESCRIBED_MOST:
        return f"{error.error_count()} fields are invalid"
    found = error.errors(include_url=False, include_context=False, include_input=False)[:5]
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)[:1000]
