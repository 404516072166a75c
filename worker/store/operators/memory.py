"""The memory of the cell's Redis."""

from dataclasses import dataclass

from redis.asyncio import Redis

from worker.store.bounds import FULL_FROM
from worker.store.calls import redis_answers


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory in bytes. `most` 0: Redis has no limit."""

    used: int
    most: int

    @property
    def share(self) -> float:
        return self.used / self.most if self.most else 0.0

    @property
    def is_nearly_full(self) -> bool:
        """Whether some requests are refused."""
        return self.share >= FULL_FROM["looks"]

    @property
    def refuses_creates(self) -> bool:
        return self.share >= FULL_FROM["new"]


async def memory_of(redis: Redis) -> Memory:
    """Raises StoreUnavailable."""
    with redis_answers():
        about = await redis.info("memory")
    return Memory(used=int(about["used_memory"]), most=int(about["maxmemory"]))
