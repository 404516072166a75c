"""A connection to Redis that does not lose cancellations, and that distinguishes sent commands from unsent ones."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from worker.store import trouble

LATE_SECONDS = 0.5  # a connection or an answer that takes longer is a reason to look for another primary
LOOK_AGAIN_SECONDS = 0.1  # then, because the Sentinels may name another one at any time


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
