"""Server-sent events: one reader of the store for all listeners, each with a bounded queue of its own."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from api.events import bodies
from api.events.places import Places
from api.http.answers import from_record
from api.http.server import on_disconnect
from worker.program.background import in_background
from worker.program.loop import every
from worker.store.customers.events import Audience, Event, Events, place
from worker.store.errors import StoreUnavailable, TooManyStreams

READ_SECONDS = 0.25  # how long a new listener may wait until its account is read too
IDLE_SECONDS = 60.0  # between turns of the loop while nobody listens
AGAIN_SECONDS = 1.0  # after an error
# events that a listener may lag behind; beyond that it is disconnected, and reconnects with its Last-Event-ID
QUEUE = 256
TOGETHER = 64  # events that are written at once: a busy cell has many, and each write costs more than an event
WRITE_SECONDS = 20.0  # how long a client may take to receive what is written at once
RETRY_MS = 2000  # how long a client should wait before it reconnects
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class _Block:
    """An event as it is sent, made once for all who listen when it comes. `place`: its sort key."""

    place: tuple[int, int]
    content: bytes

    @classmethod
    def of(cls, event: Event, account_id: Audience) -> Self:
        data = from_record(bodies.OpsEvent if account_id is None else bodies.Event, event)
        text = f"id: {event.id}\nevent: job\ndata: {data.model_dump_json()}\n\n"
        return cls(place=place(event.id), content=text.encode())


class _Listener:
    def __init__(self, alive_seconds: float | None) -> None:
        self.alive_seconds = alive_seconds
        self.cut_off: Callable[[], None] = lambda: None
        self.has_missed = False  # the queue was full
        self._blocks: asyncio.Queue[_Block | None] = asyncio.Queue(QUEUE)  # None: the end

    def put(self, block: _Block | None) -> None:
        try:
            self._blocks.put_nowait(block)
        except asyncio.QueueFull:
            self.has_missed = True
            self.cut_off()

    async def next(self) -> list[_Block | None]:
        """Wait for a block. Returns those that have come by then."""
        blocks = [await self._blocks.get()]
        while not self._blocks.empty() and len(blocks) < TOGETHER:
            blocks.append(self._blocks.get_nowait())
        return blocks


class Streams:
    """`places`: the limits for each account and for all operators. `limit`: the streams of this process.
    `heartbeat_seconds`: the longest silence on a stream. `check_seconds`: how often the token of a stream is checked.
    """

    def __init__(
        self,
        events: Events,
        *,
        places: Places,
        limit: int,
        heartbeat_seconds: float,
        check_seconds: float,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        self._events = events
        self._places = places
        self._limit = limit
        self._heartbeat_seconds = heartbeat_seconds
        self._check_seconds = check_seconds
        self._turned = turned
        self._listeners: defaultdict[Audience, set[_Listener]] = defaultdict(set)
        self._seen: dict[Audience, str] = {}
        self.open = 0
        self._answered = 0.0  # when the store last answered, by time.monotonic()
        self._has_listeners = asyncio.Event()

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Read events while the application runs."""
        expected: dict[type[Exception], str] = {StoreUnavailable: "streams.store_unavailable"}
        reading = every(
            0, self._read, name="streams", expected=expected, again_seconds=AGAIN_SECONDS, turned=self._turned
        )
        async with in_background(reading):
            yield

    async def end_all(self, _: web.Application) -> None:
        """End all streams, because the application would otherwise wait for them."""
        for listener in [listener for listeners in self._listeners.values() for listener in listeners]:
            listener.put(None)

    async def send(
        self,
        request: web.Request,
        account_id: Audience,
        *,
        last_event_id: str | None,
        still_allowed: Callable[[], Awaitable[bool]],
        alive_seconds: float | None = None,
    ) -> web.StreamResponse:
        """Send the events of the account, or of all accounts, until the client disconnects or may no longer read them.
        `alive_seconds`: how often an `alive` event shows that the store responds; None: never. Raises TooManyStreams or
        StoreUnavailable before anything is sent."""
        with self._counted(account_id), self._listening(account_id, alive_seconds) as listener:
            newest = await self._events.newest(account_id)
            self._answered = time.monotonic()
            self._seen.setdefault(account_id, newest)
            self._has_listeners.set()
            missed = last_event_id is not None and not await self._events.has(account_id, last_event_id)
            late = await self._events.after(account_id, last_event_id) if last_event_id is not None else []
            # an ID that never existed may sort after all future ones
            start = newest if last_event_id is None or missed else last_event_id
            listener.cut_off = lambda: request.transport.abort() if request.transport else None
            # frees the place at once instead of at the next heartbeat
            on_disconnect(request, lambda: listener.put(None))
            response = web.StreamResponse(headers=HEADERS)
            await response.prepare(request)
            with suppress(ConnectionError, TimeoutError):
                await self._write(response, _opening(None if missed and late else start, missed=missed))
                blocks = list(_blocks(late, account_id))
                for first in range(0, len(blocks), TOGETHER):
                    await self._write(response, b"".join(block.content for block in blocks[first : first + TOGETHER]))
                await self._follow(response, listener, place(late[-1].id if late else start), still_allowed)
            return response

    async def _follow(
        self,
        response: web.StreamResponse,
        listener: _Listener,
        after: tuple[int, int],
        still_allowed: Callable[[], Awaitable[bool]],
    ) -> None:
        checked = time.monotonic()
        while not listener.has_missed:  # before `cut_off` was known; the client resumes after what it has received
            blocks: list[_Block | None] = []
            try:
                async with asyncio.timeout(listener.alive_seconds or self._heartbeat_seconds):
                    blocks = await listener.next()
            except TimeoutError:
                await self._write(response, self._sign(listener.alive_seconds))
            # some may have been sent already, among the events that were read late
            if content := b"".join(block.content for block in blocks if block is not None and block.place > after):
                await self._write(response, content)
            if None in blocks:
                return
            if time.monotonic() - checked > self._check_seconds:
                with suppress(StoreUnavailable):
                    if not await still_allowed():
                        return
                checked = time.monotonic()

    def _sign(self, alive_seconds: float | None) -> bytes:
        """The heartbeat of a stream. A page that shows data of the store must not take a plain comment for a sign that
        the store responds."""
        answers = alive_seconds is not None and time.monotonic() - self._answered < alive_seconds
        return b"event: alive\ndata: {}\n\n" if answers else b": still here\n\n"

    async def _write(self, response: web.StreamResponse, content: bytes) -> None:
        async with asyncio.timeout(WRITE_SECONDS):
            await response.write(content)

    async def _read(self) -> None:
        self._seen = {account_id: seen for account_id, seen in self._seen.items() if account_id in self._listeners}
        if not self._seen:
            self._has_listeners.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._has_listeners.wait()
            return
        found = await self._events.next(self._seen, wait_seconds=READ_SECONDS)
        self._answered = time.monotonic()
        for account_id, (seen, events) in found.items():
            self._seen[account_id] = seen
            for block in _blocks(events, account_id):
                for listener in tuple(self._listeners.get(account_id, ())):
                    listener.put(block)

    @contextmanager
    def _counted(self, account_id: Audience) -> Iterator[None]:
        place = self._places.take(account_id) if self.open < self._limit else None
        if place is None:
            raise TooManyStreams.of()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
            self._places.free(place)

    @contextmanager
    def _listening(self, account_id: Audience, alive_seconds: float | None) -> Iterator[_Listener]:
        listener = _Listener(alive_seconds)
        self._listeners[account_id].add(listener)
        try:
            yield listener
        finally:
            self._listeners[account_id].discard(listener)
            if not self._listeners[account_id]:
                del self._listeners[account_id]


def _opening(start: str | None, *, missed: bool) -> bytes:
    """The first block. Its ID `start` lets a client that is disconnected before its first event resume."""
    lines = [f"retry: {RETRY_MS}", *([f"id: {start}"] if start else [])]
    return "\n".join([*lines, *(["event: missed", "data: {}"] if missed else []), "", ""]).encode()


def _blocks(events: Iterable[Event], account_id: Audience) -> Iterator[_Block]:
    """Checks the account of each event again, so that a wrong stream never shows events of another account."""
    return (_Block.of(event, account_id) for event in events if account_id in {None, event.account_id})
