"""Server-sent events: one reader of the store for all listeners, each of them with a bounded queue of its own."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import structlog
from aiohttp import web

from api import bodies, ops_bodies
from api.http.server import when_gone
from worker.program.background import in_background
from worker.store.customers.events import Audience, Event, Events, place
from worker.store.errors import StoreUnavailable, TooManyStreams

READ_SECONDS = 0.25  # so long a new listener's account may wait to be read with the others
AGAIN_SECONDS = 1.0  # after trouble with the store
QUEUE = 256  # events that a listener may lag behind: then it is cut off, and comes again with its Last-Event-ID
WRITE_SECONDS = 20.0  # for a client to take what is sent
RETRY_MS = 2000  # what a client is told to wait before it comes again

log = structlog.stdlib.get_logger()


class _Listener:
    def __init__(self) -> None:
        self.events: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE)  # None: the end
        self.cut_off: Callable[[], None] = lambda: None

    def tell(self, event: Event | None) -> None:
        try:
            self.events.put_nowait(event)
        except asyncio.QueueFull:
            self.cut_off()


class Streams:
    """`per_account`, `of_operators`, `most`: streams at a time; `heartbeat_seconds`: the longest silence on one."""

    def __init__(
        self,
        events: Events,
        *,
        per_account: int,
        of_operators: int,
        most: int,
        heartbeat_seconds: float,
        check_seconds: float,
    ) -> None:
        self._events = events
        self._per_account = per_account
        self._of_operators = of_operators
        self._most = most
        self._heartbeat_seconds = heartbeat_seconds
        self._check_seconds = check_seconds
        self._listeners: defaultdict[Audience, set[_Listener]] = defaultdict(set)
        self._seen: dict[Audience, str] = {}
        self._open: Counter[Audience] = Counter()
        self._heard = asyncio.Event()

    @property
    def open(self) -> int:
        """Streams that are open now."""
        return self._open.total()

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Read while the application runs; at its end end all streams, so that they don't hold it up."""
        async with in_background(self._read()):
            yield

    async def end_all(self, _: web.Application) -> None:
        for listener in [listener for listeners in self._listeners.values() for listener in listeners]:
            listener.tell(None)

    async def send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        account_id: Audience,
        *,
        last_event_id: str | None,
        still_allowed: Callable[[], Awaitable[bool]],
    ) -> web.StreamResponse:
        """Send the events of the account, or of all, until the client goes, or is not allowed to listen any more.
        Raises TooManyStreams or StoreUnavailable before anything is sent."""
        with self._counted(account_id), self._listening(account_id) as listener:
            newest = await self._events.newest(account_id)
            self._seen.setdefault(account_id, newest)
            self._heard.set()
            missed = last_event_id is not None and not await self._events.has(account_id, last_event_id)
            late = await self._events.after(account_id, last_event_id) if last_event_id is not None else []
            listener.cut_off = lambda: request.transport.abort() if request.transport else None
            when_gone(request, lambda: listener.tell(None))  # its place is free at once, not with the next heartbeat
            await response.prepare(request)
            with suppress(ConnectionError, TimeoutError):
                await self._write(response, f"retry: {RETRY_MS}\n\n")
                if missed:
                    await self._write(response, "event: missed\ndata: {}\n\n")
                for event in late:
                    await self._write(response, _text(event, account_id))
                # an id that never was may lie ahead of all that comes
                after = late[-1].id if late else newest if missed else last_event_id or newest
                await self._follow(response, listener, account_id, after, still_allowed)
        return response

    async def _follow(
        self,
        response: web.StreamResponse,
        listener: _Listener,
        account_id: Audience,
        after: str,
        still_allowed: Callable[[], Awaitable[bool]],
    ) -> None:
        checked = time.monotonic()
        while True:
            event: Event | None = None
            try:
                async with asyncio.timeout(self._heartbeat_seconds):
                    event = await listener.events.get()
                if event is None:
                    return
            except TimeoutError:
                await self._write(response, ": still here\n\n")
            if event is not None and place(event.id) > place(after):  # the first may have been among the late ones
                await self._write(response, _text(event, account_id))
            if time.monotonic() - checked > self._check_seconds:
                with suppress(StoreUnavailable):
                    if not await still_allowed():
                        return
                checked = time.monotonic()

    async def _write(self, response: web.StreamResponse, text: str) -> None:
        async with asyncio.timeout(WRITE_SECONDS):
            await response.write(text.encode())

    async def _read(self) -> None:
        while True:
            self._seen = {account_id: seen for account_id, seen in self._seen.items() if account_id in self._listeners}
            if not self._seen:
                self._heard.clear()
                await self._heard.wait()
                continue
            try:
                found = await self._events.next(self._seen, wait_seconds=READ_SECONDS)
            except StoreUnavailable as error:
                log.warning("streams.store_unavailable", cause=str(error.__cause__))
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            except Exception:  # all listeners hang on this one reader
                log.exception("streams.broke")
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            for account_id, events in found.items():
                self._seen[account_id] = events[-1].id
                for event in events:
                    for listener in tuple(self._listeners.get(account_id, ())):
                        listener.tell(event)

    @contextmanager
    def _counted(self, account_id: Audience) -> Iterator[None]:
        most = self._per_account if account_id is not None else self._of_operators
        if self._open[account_id] >= most or self._open.total() >= self._most:
            raise TooManyStreams("There are too many streams of events; close one first.")
        self._open[account_id] += 1
        try:
            yield
        finally:
            self._open[account_id] -= 1
            if not self._open[account_id]:
                del self._open[account_id]

    @contextmanager
    def _listening(self, account_id: Audience) -> Iterator[_Listener]:
        listener = _Listener()
        self._listeners[account_id].add(listener)
        try:
            yield listener
        finally:
            self._listeners[account_id].discard(listener)
            if not self._listeners[account_id]:
                del self._listeners[account_id]


def opened() -> web.StreamResponse:
    """The answer in which events are sent."""
    return web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
        }
    )


def _text(event: Event, account_id: Audience) -> str:
    said = bodies.event(event) if account_id is not None else ops_bodies.event(event)
    return f"id: {event.id}\nevent: job\ndata: {said.model_dump_json()}\n\n"
