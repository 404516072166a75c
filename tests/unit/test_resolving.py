"""Names of webhooks whose lookups hang hold up no other name."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest

from api.webhooks.resolving import Resolver

ADDRESS = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))


class Names:
    """Those that begin with `hangs` have no answer until the end of the test."""

    def __init__(self) -> None:
        self.end = Event()
        self.asked: Counter[str] = Counter()

    def look_up(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked[host] += 1
        if host.startswith("hangs"):
            self.end.wait()
        if host == "nobody.example":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [ADDRESS]


@contextmanager
def names() -> Iterator[Names]:
    made = Names()
    try:
        yield made
    finally:
        made.end.set()


async def test_a_hundred_names_that_hang_hold_up_no_other() -> None:
    with names() as known:
        resolver = Resolver(known.look_up)
        hanging = [asyncio.create_task(resolver.resolve(f"hangs-{n}.example", 443)) for n in range(100)]
        async with asyncio.timeout(60):
            (found,) = await resolver.resolve("hooks.example", 443)
        assert (found["hostname"], found["host"], found["port"]) == ("hooks.example", "192.0.2.1", 443)
        for task in hanging:
            task.cancel()
        await resolver.close()


async def test_lookups_of_one_name_share_a_thread_and_outlive_a_caller_that_gives_up() -> None:
    with names() as known:
        resolver = Resolver(known.look_up, threads=1)
        first, *others = [asyncio.create_task(resolver.resolve("hangs.example", 443)) for _ in range(8)]
        await asyncio.sleep(0)
        first.cancel()
        known.end.set()
        async with asyncio.timeout(60):
            assert [(await one)[0]["host"] for one in others] == ["192.0.2.1"] * 7
        assert known.asked == {"hangs.example": 1}


async def test_a_name_without_an_address_is_an_error_of_its_caller() -> None:
    with names() as known:
        resolver = Resolver(known.look_up)
        for _ in range(2):  # and is asked for again
            with pytest.raises(socket.gaierror):
                await resolver.resolve("nobody.example", 443)
    with pytest.raises(OSError, match="too long"):
        await Resolver().resolve("a" * 64 + ".example", 443)
