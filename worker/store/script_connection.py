"""One connection for all scripts of a process: each is sent at once, behind those whose answers are still to come.

Redis answers in order, so no script needs a connection of its own. redis-py takes one from its pool for each command,
sends it in a task, and sets a timer for its answer: see docs/benchmarks.md for what that costs.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Protocol, runtime_checkable

from redis.asyncio import ConnectionPool
from redis.exceptions import NoScriptError, RedisError, ResponseError

from worker.store import trouble
from worker.store.connection import LATE_SECONDS, Careful

MANY = 4
_PING = b"*1\r\n$4\r\nPING\r\n"


class Script:
    """A Lua script, which Redis knows by its SHA-1. `changes`: what it writes must not be lost once it has answered."""

    def __init__(self, text: str, *, changes: bool = False) -> None:
        self.text = text
        self.changes = changes
        sha = sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._evalsha = b"*4\r\n" + _parts("EVALSHA", sha, "0")

    def run_with(self, argument: bytes) -> bytes:
        """The command that runs it, as it goes to Redis."""
        return b"%b$%d\r\n%b\r\n" % (self._evalsha, len(argument), argument)

    def load(self) -> bytes:
        return b"*3\r\n" + _parts("SCRIPT", "LOAD", self.text)


@dataclass(frozen=True, kw_only=True)
class Copies:
    """How many replicas must have a change before it is answered, and how long that may take."""

    replicas: int
    seconds: float

    def wait(self) -> bytes:
        """The command that waits for all that its connection has written."""
        return b"*3\r\n" + _parts("WAIT", str(self.replicas), str(round(self.seconds * 1000)))


def _parts(*texts: str) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in (text.encode() for text in texts))


@runtime_checkable
class RunsScripts(Protocol):
    """A client of Redis with a connection for scripts."""

    async def run_script(self, script: Script, argument: bytes) -> Any:
        """The script's answer. Raises RedisError: AnswerLost where Redis may have run it."""
        ...

    async def reconnect(self) -> None:
        """Use no connection that is open now for what comes."""
        ...


class _Way:
    """A connection that is open, and who waits for its answers, in order. `seconds`: bound on an answer. With `copies`,
    a command is answered once so many replicas have what it changed. `late`: called while an answer is late."""

    def __init__(
        self,
        pool: ConnectionPool,
        connection: Careful,
        *,
        seconds: float,
        copies: Copies | None,
        late: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._seconds = seconds
        self._copies = copies
        self._late = late
        self._copied: asyncio.Future[Any] | None = None  # how many have what the unsent commands change
        self._loop = asyncio.get_running_loop()
        self._unsent: list[tuple[bytes, asyncio.Future[Any]]] = []
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()  # and since when
        self._heard = self._loop.time()
        self._is_retired = False
        self._reading = self._loop.create_task(self._read())
        self._watching = self._loop.call_later(seconds, self._watch)
        self._hurrying: asyncio.TimerHandle | None = None  # while answers are to come

    @property
    def address(self) -> tuple[str, int] | None:
        """None: a socket."""
        host, port = getattr(self._connection, "host", None), getattr(self._connection, "port", None)
        return (host, port) if host and port else None

    @property
    def is_open(self) -> bool:
        return not (self._is_retired or self._reading.done() or self._reading.cancelling())

    @property
    def idle_seconds(self) -> float:
        return 0 if self._waiting or self._unsent else self._loop.time() - self._heard

    async def ask(self, command: bytes) -> Any:
        """Raises RedisError: AnswerLost where Redis may have got the command."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append((command, answer))
        if self._copies is None:
            return await answer
        if self._copied is None:
            self._copied = self._loop.create_future()
        copied = self._copied
        found = await answer
        if await asyncio.shield(copied) < self._copies.replicas:
            raise trouble.NotCopied("Too few replicas have the change.")
        return found

    def _send(self) -> None:
        """All commands of one turn of the event loop at once: each write is a system call, here and in Redis."""
        unsent, self._unsent = self._unsent, []
        if self._copies is not None and self._copied is not None:
            self._copied.add_done_callback(_retrieve)
            unsent.append((self._copies.wait(), self._copied))  # one for all: Redis reads no further while it waits
            self._copied = None
        try:
            self._connection.write(b"".join(command for command, _ in unsent))
        except trouble.NotSent as error:
            self._reading.cancel()
            for _, answer in unsent:
                _fail(answer, error)
            return
        now = self._loop.time()
        self._waiting.extend((answer, now) for _, answer in unsent)
        if self._hurrying is None:
            self._hurrying = self._loop.call_later(LATE_SECONDS, self._hurry)

    async def responds(self) -> bool:
        try:
            await self.ask(_PING)
        except ResponseError:  # it refuses, and is there
            return True
        except RedisError:
            return False
        return True

    def retire(self) -> None:
        """Take no more commands, and end once all are answered."""
        self._is_retired = True
        if not self._waiting and not self._unsent:
            self._reading.cancel()

    def cut(self) -> None:
        """Take no more commands, and wait for no answer."""
        self._is_retired = True
        if not self._reading.cancelling():  # a second time would keep it from closing the connection
            self._reading.cancel()

    async def close(self) -> None:
        self.cut()
        await asyncio.wait({self._reading})

    async def _read(self) -> None:
        lost: Exception = trouble.CutOff("The connection was closed.")
        timeout, self._connection.socket_timeout = self._connection.socket_timeout, None  # it may be idle
        try:
            while not self._is_retired or self._waiting or self._unsent:
                await self._read_one()
        except RedisError as error:
            lost = error
        finally:
            self._watching.cancel()
            if self._hurrying is not None:
                self._hurrying.cancel()
            self._connection.socket_timeout = timeout
            for answer, _ in self._waiting:
                _fail(answer, lost)
            await self._connection.disconnect(nowait=True)
            await self._pool.release(self._connection)

    async def _read_one(self) -> None:
        try:
            found, refused = await self._connection.read_response(), None
        except ResponseError as error:
            found, refused = None, error
        self._heard = self._loop.time()
        answer, _ = self._waiting.popleft()
        if answer.done():  # who asked has gone
            return
        if refused is None:
            answer.set_result(found)
        else:
            answer.set_exception(refused)

    def _watch(self) -> None:
        """One timer for all answers. Redis answers in order: if the first is late, the connection is of no use."""
        now = self._loop.time()
        since = self._waiting[0][1] if self._waiting else now
        if since + self._seconds > now:
            self._watching = self._loop.call_later(since + self._seconds - now, self._watch)
            return
        for answer, asked in self._waiting:
            if asked + self._seconds <= now:
                _fail(answer, trouble.TooSlow("Redis did not answer in time."))
        self._reading.cancel()

    def _hurry(self) -> None:
        """Tell that the first answer is late, again and again. Without answers to come, no timer runs."""
        self._hurrying = None
        if not self._waiting:
            return
        left = self._waiting[0][1] + LATE_SECONDS - self._loop.time()
        if left <= 0:
            self._late()
        self._hurrying = self._loop.call_later(left if left > 0 else LATE_SECONDS, self._hurry)


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Nobody may be left who asked."""
    if not answer.cancelled():
        answer.exception()


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():  # else who asked has gone
        answer.set_exception(type(error)(*error.args))


class ScriptConnections:
    """A few connections of a pool, used in turn: Redis reads 16 KB of one before it writes to its disk what it has
    done, so that on one alone each ten scripts would wait for a write. Each is opened when it is used first, and again
    when it was cut. `seconds`: bound on an answer; `idle_seconds`: after them a connection is tried before it is used;
    `late`: called while an answer is late. At most a quarter of the pool: other commands need theirs.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        seconds: float,
        idle_seconds: float,
        late: Callable[[], None],
        copies: Copies | None = None,
    ) -> None:
        self._pool = pool
        self._late = late
        self._copies = copies
        self._many = max(1, min(MANY, pool.max_connections // 4))
        self._seconds = seconds
        self._idle_seconds = idle_seconds
        self._opening = asyncio.Lock()
        self._ways: list[_Way | None] = [None] * self._many
        self._turn = 0

    async def run(self, script: Script, argument: bytes) -> Any:
        """Raises RedisError: AnswerLost where Redis may have run it."""
        self._turn = turn = (self._turn + 1) % self._many
        try:
            return await self._run(turn, script, argument)
        except trouble.NotSent:  # it was closed in this moment
            return await self._run(turn, script, argument)

    async def _run(self, turn: int, script: Script, argument: bytes) -> Any:
        way = self._ways[turn]
        if way is None or not self._is_good(way):
            way = await self._opened(turn)
        command = script.run_with(argument)
        try:
            return await way.ask(command)
        except NoScriptError:
            await way.ask(script.load())
            return await way.ask(command)

    def retire(self) -> None:
        """Use other connections from now on."""
        for way in filter(None, self._ways):
            way.retire()

    def leave_others(self, address: tuple[str, int]) -> None:
        """Cut the connections to any other Redis. What waits on them may have been done."""
        for way in filter(None, self._ways):
            if way.address != address:
                way.cut()

    async def close(self) -> None:
        for way in filter(None, self._ways):
            await way.close()

    def _is_good(self, way: _Way) -> bool:
        return way.is_open and way.idle_seconds < self._idle_seconds

    async def _opened(self, turn: int) -> _Way:
        async with self._opening:
            way = self._ways[turn]
            if way is not None and (self._is_good(way) or (way.is_open and await way.responds())):
                return way
            if way is not None:
                await way.close()
            connection = await self._pool.get_connection()
            self._ways[turn] = way = _Way(
                self._pool, connection, seconds=self._seconds, copies=self._copies, late=self._late
            )
            return way
