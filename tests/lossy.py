"""A connection to Redis that loses an answer: the command is executed, but the caller gets no answer. It can also hold
a command back."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path


class LossyWay:
    """A socket in front of Redis's. After `lose(word)`, the next command with the word is executed, its answer lost."""

    def __init__(self, redis: Path, socket: Path) -> None:
        self.socket = socket
        self.lost = 0
        self._redis = redis
        self._word: bytes | None = None
        self._held_word: bytes | None = None
        self.holds = asyncio.Event()
        self._passes = asyncio.Event()
        self._links: set[asyncio.Task[None]] = set()

    def lose(self, word: str) -> None:
        self._word = _in_scripts(word)

    def hold(self, word: str) -> None:
        """Hold the next command with the word, and what follows on its connection, until `pass_on`. `holds` is set when
        it has come."""
        self._held_word = _in_scripts(word)

    def pass_on(self) -> None:
        self._passes.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        to_redis = None
        try:
            from_redis, to_redis = await asyncio.open_unix_connection(str(self._redis))
            await self._carry(reader, writer, from_redis, to_redis)
        except (OSError, asyncio.CancelledError):
            pass  # both ends see the link close
        finally:
            ends = [end for end in (writer, to_redis) if end is not None]
            for end in ends:
                end.close()
            for end in ends:
                with suppress(OSError, asyncio.CancelledError):
                    await end.wait_closed()
            self._links.discard(link)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_redis: asyncio.StreamReader,
        to_redis: asyncio.StreamWriter,
    ) -> None:
        async def answers() -> None:
            while answer := await from_redis.read(1 << 16):
                writer.write(answer)
                await writer.drain()

        answering = asyncio.create_task(answers())
        try:
            while asked := await reader.read(1 << 16):
                if self._held_word is not None and self._held_word in asked:
                    self._held_word = None
                    self.holds.set()
                    await self._passes.wait()
                losing = self._word is not None and self._word in asked
                if losing:
                    self._word = None
                    answering.cancel()
                    await asyncio.wait([answering])
                to_redis.write(asked)
                await to_redis.drain()
                if losing:
                    await from_redis.read(1 << 16)  # the command is done
                    self.lost += 1
                    return
        finally:
            answering.cancel()
            await asyncio.wait([answering])

    async def close(self) -> None:
        for link in self._links:
            link.cancel()
        if self._links:
            await asyncio.wait(self._links)


def _in_scripts(word: str) -> bytes:
    """The word as it is in the arguments of scripts."""
    return word.encode().replace(b'": ', b'":')


@asynccontextmanager
async def lossy_way(redis: Path) -> AsyncIterator[LossyWay]:
    with tempfile.TemporaryDirectory(prefix="vps-lossy-") as folder:
        way = LossyWay(redis, Path(folder) / "redis.sock")
        server = await asyncio.start_unix_server(way.connected, str(way.socket))
        yield way
        server.close()
        await way.close()
        await server.wait_closed()
