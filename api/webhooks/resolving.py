"""Resolves the host names of webhooks. Their name servers are the customers', and may hang.

The event loop's own lookups share a handful of threads: a few names that hang would hold up all others.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

THREADS = 500  # lookups at a time; more than webhooks that are served at a time
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV

LookUp = Callable[..., list[Any]]
_Name = tuple[str, int, int]


class Resolver(AbstractResolver):
    """Each lookup has a thread of its own, and those of the same name share one. `look_up`: as `socket.getaddrinfo`."""

    def __init__(self, look_up: LookUp = socket.getaddrinfo, *, threads: int = THREADS) -> None:
        self._look_up = look_up
        self._free = asyncio.Semaphore(threads)
        self._running: dict[_Name, asyncio.Task[list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises OSError."""
        name = (host, port, int(family))
        if name not in self._running:
            self._running[name] = asyncio.create_task(self._resolved(name))
            self._running[name].add_done_callback(lambda done: self._over(name, done))
        return await asyncio.shield(self._running[name])  # the caller may be cancelled, the lookup cannot

    async def close(self) -> None:
        for lookup in self._running.values():
            lookup.cancel()

    def _over(self, name: _Name, done: asyncio.Task[list[ResolveResult]]) -> None:
        del self._running[name]
        if not done.cancelled():
            done.exception()  # nobody may be awaiting it

    async def _resolved(self, name: _Name) -> list[ResolveResult]:
        host, port, family = name
        async with self._free:
            found = await self._in_thread(host, port, family)
        return [
            ResolveResult(hostname=host, host=where[0], port=where[1], family=kind, proto=protocol, flags=_NUMERIC)
            for kind, _, protocol, _, where in found
        ]

    async def _in_thread(self, host: str, port: int, family: int) -> list[Any]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Any]] = loop.create_future()

        def tell(result: list[Any] | OSError) -> None:
            if found.done():  # the resolver was closed
                return
            if isinstance(result, OSError):
                found.set_exception(result)
            else:
                found.set_result(result)

        def look_up() -> None:
            result: list[Any] | OSError
            try:
                result = self._look_up(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            except OSError as error:
                result = error
            except UnicodeError as error:  # the name is too long for DNS
                result = OSError(str(error))
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, result)

        # a daemon, because a lookup that hangs must not keep the process from ending
        Thread(target=look_up, name="lookup", daemon=True).start()
        return await found
