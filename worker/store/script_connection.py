"""The connection for all scripts of a process. They are pipelined: each is sent at once, without waiting for answers.

Redis answers in order, so scripts can share a connection. redis-py takes a connection from its pool for each command,
sends it in a task, and sets a timer for its answer; docs/benchmarks.md shows the cost.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Protocol, runtime_checkable

from redis.asyncio import ConnectionPool
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.store import trouble
from worker.store.connection import LATE_SECONDS, LOOK_AGAIN_SECONDS, TrackedConnection

_PING = b"*1\r\n$4\r\nPING\r\n"


class Script:
    """A Lua script, identified by its SHA-1. `changes`: replicas must confirm its writes before its answer is
    returned."""

    def __init__(self, text: str, *, changes: bool = False) -> None:
        self.text = text
        self.changes = changes
        sha = sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._evalsha = b"*4\r\n" + _parts("EVALSHA", sha, "0")

    def run_with(self, argument: bytes) -> bytes:
        """The command that runs it, in Redis's wire format."""
        return b"%b$%d\r\n%b\r\n" % (self._evalsha, len(argument), argument)

    def load(self) -> bytes:
        return b"*3\r\n" + _parts("SCRIPT", "LOAD", self.text)


@dataclass(frozen=True, kw_only=True)
class Copies:
    """How many replicas must have a change before it is answered, and the time limit for that."""

    replicas: int
    seconds: float

    def wait(self) -> bytes:
        """The WAIT command for all writes of its connection."""
        return b"*3\r\n" + _parts("WAIT", str(self.replicas), str(round(self.seconds * 1000)))


def _parts(*texts: str) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in (text.encode() for text in texts))


@runtime_checkable
class RunsScripts(Protocol):
    """A client of Redis that runs scripts."""

    async def run_script(self, script: Script, argument: bytes) -> Any:
        """Run the script. Raises RedisError; AnswerLost if Redis may have run it."""
        ...

    async def reconnect(self) -> None:
        """Use new connections from now on."""
        ...


class _Pipeline:
    """An open connection with the queue of expected answers. `seconds`: limit for an answer. With `copies`, a command
    is answered once that many replicas have its changes. `late`: called while an answer is late."""

    def __init__(
        self,
        pool: ConnectionPool,
        connection: TrackedConnection,
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
        # the number of replicas that have the changes of the unsent commands
        self._copied: asyncio.Future[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._unsent: list[tuple[bytes, asyncio.Future[Any]]] = []
        # futures of the expected answers, and when each was sent
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
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
        """Raises RedisError; AnswerLost if Redis may have received the command."""
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
        try:
            copies = await asyncio.shield(copied)
        except trouble.AnswerLost:
            raise
        except RedisError as error:  # of WAIT: such as UNBLOCKED or LOADING, if Redis has become a replica meanwhile
            raise trouble.NotCopied(str(error)) from error
        if copies < self._copies.replicas:
            raise trouble.NotCopied("Too few replicas have the change.")
        return found

    def _send(self) -> None:
        """Send all commands of one turn of the event loop at once, because each write is a system call here and in
        Redis."""
        unsent, self._unsent = self._unsent, []
        if self._copies is not None and self._copied is not None:
            self._copied.add_done_callback(_retrieve)
            # one WAIT for all, because Redis reads no further commands while it waits
            unsent.append((self._copies.wait(), self._copied))
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
        except ResponseError:  # an error reply shows that Redis is responding
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
        if not self._reading.cancelling():  # a second cancellation would keep it from closing the connection
            self._reading.cancel()

    async def close(self) -> None:
        self.cut()
        await asyncio.wait({self._reading})

    async def _read(self) -> None:
        lost: Exception = trouble.CutOff("The connection was closed.")
        replies = self._connection.replies()
        try:
            while not self._is_retired or self._waiting or self._unsent:
                replies.feed(await self._connection.read())
                self._heard = self._loop.time()
                while (reply := replies.gets()) is not False:
                    self._deliver(reply)
        except RedisError as error:
            lost = error
        finally:
            self._watching.cancel()
            if self._hurrying is not None:
                self._hurrying.cancel()
            for answer, _ in self._waiting:
                _fail(answer, lost)
            await self._connection.disconnect(nowait=True)
            await self._pool.release(self._connection)

    def _deliver(self, reply: Any) -> None:
        """Raises an error that answers no command."""
        is_error = isinstance(reply, RedisError)
        if is_error and not self._waiting:  # such as too many connections
            raise reply
        answer, _ = self._waiting.popleft()
        if is_error and not isinstance(reply, ResponseError):
            self.retire()  # such as LOADING; the next commands may have other answers
        if answer.done():  # the caller was cancelled
            return
        if is_error:
            answer.set_exception(reply)
        else:
            answer.set_result(reply)

    def _watch(self) -> None:
        """One timer for all answers. Redis answers in order, so if the first answer is late, the connection is
        unusable."""
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
        self._hurrying = self._loop.call_later(left if left > 0 else LOOK_AGAIN_SECONDS, self._hurry)


def _retrieve(answer: asyncio.Future[Any]) -> None:
    """Mark the exception as retrieved, because the caller may be gone."""
    if not answer.cancelled():
        answer.exception()


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():  # otherwise the caller was cancelled
        answer.set_exception(type(error)(*error.args))


class ScriptConnection:
    """One connection of a pool, opened at its first use and reopened after it was cut. `seconds`: limit for an answer;
    `idle_seconds`: after this idle time, it is checked before it is used; `late`: called while an answer is late;
    `opened`: called with the address, unless it is a socket, each time it was opened.

    Redis reads 16 KB of a connection, about ten scripts, and answers them after one write to its disk. With several
    connections, all their scripts are answered together, and meanwhile the front end has nothing to do.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        seconds: float,
        idle_seconds: float,
        late: Callable[[], None],
        copies: Copies | None = None,
        opened: Callable[[tuple[str, int]], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._late = late
        self._copies = copies
        self._told_of = opened
        self._seconds = seconds
        self._idle_seconds = idle_seconds
        self._opening = asyncio.Lock()
        self._pipeline: _Pipeline | None = None

    async def run(self, script: Script, argument: bytes) -> Any:
        """Run the script. Raises RedisError; AnswerLost if Redis may have run it."""
        try:
            return await self._run(script, argument)
        except trouble.NotSent:  # the connection was closed just now
            return await self._run(script, argument)

    async def _run(self, script: Script, argument: bytes) -> Any:
        pipeline = self._pipeline
        if pipeline is None or not self._is_good(pipeline):
            pipeline = await self._opened()
        command = script.run_with(argument)
        try:
            return await pipeline.ask(command)
        except NoScriptError:
            await pipeline.ask(script.load())
            return await pipeline.ask(command)

    def retire(self) -> None:
        """Use a new connection from now on."""
        if self._pipeline is not None:
            self._pipeline.retire()

    def leave_others(self, address: tuple[str, int]) -> None:
        """Cut the connection if it is to any other Redis. What waits on it may have been done."""
        if self._pipeline is not None and self._pipeline.address != address:
            self._pipeline.cut()

    async def close(self) -> None:
        if self._pipeline is not None:
            await self._pipeline.close()

    def _is_good(self, pipeline: _Pipeline) -> bool:
        return pipeline.is_open and pipeline.idle_seconds < self._idle_seconds

    async def _opened(self) -> _Pipeline:
        try:
            async with asyncio.timeout(self._seconds):
                await self._opening.acquire()
        except TimeoutError:  # Redis hangs: otherwise each caller would wait for all before it
            raise RedisTimeoutError("the connection was not opened in time") from None
        try:
            pipeline = self._pipeline
            if pipeline is not None and (self._is_good(pipeline) or (pipeline.is_open and await pipeline.responds())):
                return pipeline
            if pipeline is not None:
                await pipeline.close()
            connection = await self._pool.get_connection()
            self._pipeline = pipeline = _Pipeline(
                self._pool, connection, seconds=self._seconds, copies=self._copies, late=self._late
            )
            if pipeline.address is not None:
                self._told_of(pipeline.address)
            return pipeline
        finally:
            self._opening.release()
