"""A Redis in real trouble: full, a replica, unable to write its file, or without the replicas that it requires."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from tests.conftest import RedisServer
from tests.queueing import until_told

FILLER_BYTES = 64 << 10


@asynccontextmanager
async def full(redis: Redis, _: RedisServer) -> AsyncIterator[None]:
    await redis.config_set("maxmemory", await _used(redis) + (4 << 20))
    try:
        for n in range(1000):
            try:
                await redis.set(f"job:filler:{n}", b"x" * FILLER_BYTES)
            except OutOfMemoryError:
                break
        # connections that end free some memory, and so does the garbage collector of scripts
        await redis.config_set("maxmemory", await _used(redis) - (2 << 20))
        await redis.hdel("clock", "room_ms")  # type: ignore[misc]  # redis-py's types. Scripts would trust it for 200 ms
        yield
    finally:
        await redis.config_set("maxmemory", 0)
        await redis.delete(*[f"job:filler:{n}" for n in range(1000)])


async def _used(redis: Redis) -> int:
    return int((await redis.info("memory"))["used_memory"])


@asynccontextmanager
async def replica(redis: Redis, _: RedisServer) -> AsyncIterator[None]:
    """Make it a replica of a primary that is down."""
    await redis.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        await redis.replicaof("NO", "ONE")


@asynccontextmanager
async def cannot_save(redis: Redis, server: RedisServer) -> AsyncIterator[None]:
    """Make it fail to write its file, as on a full disk."""
    dump = server.folder / "dump.rdb"
    dump.unlink(missing_ok=True)
    dump.mkdir()
    await redis.bgsave()
    await until_told(lambda: _saved(redis, "err"))
    await redis.config_set("save", "3600 1")
    try:
        yield
    finally:
        await redis.config_set("save", "")
        dump.rmdir()
        await redis.bgsave()
        await until_told(lambda: _saved(redis, "ok"))
        dump.unlink()


@asynccontextmanager
async def alone(redis: Redis, _: RedisServer) -> AsyncIterator[None]:
    await redis.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        await redis.config_set("min-replicas-to-write", 0)


async def _saved(redis: Redis, status: str) -> bool:
    found = await redis.info("persistence")
    return bool(found["rdb_last_bgsave_status"] == status and not found["rdb_bgsave_in_progress"])


Trouble = Callable[[Redis, RedisServer], object]
TROUBLES = {"OOM": full, "READONLY": replica, "MISCONF": cannot_save, "NOREPLICAS": alone}
