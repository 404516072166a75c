"""A connection to Redis that does not lose cancellations, and that distinguishes sent commands from unsent ones."""

import asyncio
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hiredis import Reader
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.exceptions import InvalidResponse, ReadOnlyError, RedisError, ResponseError

from worker.store import trouble

LATE_SECONDS = 0.5  # a connection or an answer that takes longer is a reason to look for another primary
LOOK_AGAIN_SECONDS = 0.1  # then, because the Sentinels may name another one at any time
_READ_BYTES = 64 * 1024


class TrackedConnection(AbstractConnection):
    """A mixin for redis-py's connection classes.

    redis-py sends with asyncio.wait_for, which before Python 3.12 drops a cancellation that arrives in the same turn
    of the event loop in which the send completes. The task would continue, and whoever awaits its end would wait
    forever.
    """

    _is_own = False  # whether the connection itself sends the command, for its login or a PING

    async def connect(self) -> None:
        with self._on_its_own():
            await super().connect()  # type: ignore[no-untyped-call] # redis-py's gap

    async def check_health(self) -> None:
        # a Redis that cannot write to its disk refuses PING, but answers reads
        with self._on_its_own(), suppress(ResponseError):
            await super().check_health()  # type: ignore[no-untyped-call] # redis-py's gap

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Raises AnswerLost if Redis may have received the command."""
        if not self.is_connected:
            await self.connect()
        elif check_health:
            await self.check_health()
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        with self._may_be_lost():
            await super().send_packed_command(command, check_health=False)
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # otherwise the answer would be read as the next command's
            raise asyncio.CancelledError

    def write(self, packed: bytes) -> None:
        """Send without waiting for the answers to earlier commands. Raises NotSent."""
        if self._writer is None or self._writer.transport.is_closing():
            raise trouble.NotSent("The connection is closed.")
        self._writer.write(packed)

    def replies(self) -> Reader:
        """A parser for `read`: its `gets` returns each reply, an error's as an exception, and False after the last."""
        return Reader(protocolError=InvalidResponse, replyError=self._parser.parse_error)

    async def read(self) -> bytes:
        """What arrives next, for a parser of replies: several at once, which `read_response` would read one by one.
        Raises CutOff."""
        try:
            arrived = b"" if self._reader is None else await self._reader.read(_READ_BYTES)
        except OSError as error:
            raise trouble.CutOff(f"The connection broke: {error}") from error
        if not arrived:
            raise trouble.CutOff("Redis has closed the connection.")
        return arrived

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Raises AnswerLost if no response arrives."""
        with self._may_be_lost():
            return await super().read_response(*args, **options)

    @contextmanager
    def _on_its_own(self) -> Iterator[None]:
        before, self._is_own = self._is_own, True
        try:
            yield
        finally:
            self._is_own = before

    @contextmanager
    def _may_be_lost(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            if isinstance(error.__context__, ReadOnlyError):  # with Sentinel, redis-py raises this when it reconnects
                raise error.__context__ from None
            lost = None if self._is_own else trouble.lost(error)
            if lost is None:
                raise
            raise lost from error


class _ToPrimary(TrackedConnection, SentinelManagedConnection):
    """A former primary that hangs takes connections and answers nothing. It is left once the Sentinels name another."""

    async def connect_to(self, address: tuple[str, int] | None) -> None:
        while address is not None:
            address = await self._connected_unless_moved(address)

    async def _connected_unless_moved(self, address: tuple[str, int]) -> tuple[str, int] | None:
        """The address of another primary; None once this one is connected."""
        connecting = asyncio.ensure_future(super().connect_to(address))  # type: ignore[no-untyped-call] # redis-py's gap
        patience = LATE_SECONDS
        try:
            while not (await asyncio.wait({connecting}, timeout=patience))[0]:
                patience = LOOK_AGAIN_SECONDS
                with suppress(RedisError, OSError):
                    primary: tuple[str, int] = await self.connection_pool.get_master_address()
                    if primary != address:
                        return primary
            await connecting
        finally:
            if connecting.cancel():
                await asyncio.wait({connecting})
                await self.disconnect(nowait=True)
        return None


def tracked(connection: type[AbstractConnection]) -> type[AbstractConnection]:
    """A subclass of the connection class with TrackedConnection mixed in."""
    mixin = _ToPrimary if issubclass(connection, SentinelManagedConnection) else TrackedConnection
    return type("Tracked", (mixin, connection), {})


class Tls:
    """The TLS context of all connections, which is made again if a file has changed.

    redis-py makes one for each connection. That stops the event loop for 20 ms, in which it reads the system's CA
    certificates, and it trusts those besides `ca_file`.
    """

    def __init__(
        self, *, ca_file: Path | None, cert_file: Path | None, key_file: Path | None, names_host: bool
    ) -> None:
        self._ca_file = ca_file
        self._cert_file = cert_file
        self._key_file = key_file
        self._names_host = names_host
        self._context: ssl.SSLContext | None = None
        self._made_of: list[tuple[int, int]] = []

    def context(self) -> ssl.SSLContext:
        """Raises OSError if a file cannot be read or has no certificate or key."""
        facts = [path.stat() for path in (self._ca_file, self._cert_file, self._key_file) if path is not None]
        made_of = [(about.st_mtime_ns, about.st_ino) for about in facts]
        if self._context is None or made_of != self._made_of:
            self._context, self._made_of = self._new(), made_of
        return self._context

    def _new(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._ca_file)
        context.check_hostname = self._names_host
        if self._cert_file is not None:
            context.load_cert_chain(self._cert_file, self._key_file)
        return context


def over_tls(connection: type[AbstractConnection], tls: Tls) -> type[AbstractConnection]:
    """A subclass of one of redis-py's connection classes for TLS, which uses this context."""

    class OverTls(connection):  # type: ignore[valid-type, misc] # a class that is chosen at run time
        ssl_context: Any  # redis-py's holder of the context

        def _connection_arguments(self) -> Mapping[str, Any]:
            self.ssl_context.context = tls.context()  # instead of one that redis-py would make
            arguments: Mapping[str, Any] = super()._connection_arguments()
            return arguments

    return OverTls
