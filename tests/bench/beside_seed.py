"""Records for `beside.py`, written with the code of the version whose source tree it runs in: SOCKET WHAT SERVERS.

Uses only what both versions have. Prints the ID of the first server or of the first snapshot.
"""

import asyncio
import sys
from pathlib import Path

from tests.integration.conftest import Cell, node_store
from tests.integration.front_end import DONE
from tests.queueing import client

OF_A_NODE = 200


async def main(socket: str, what: str, servers: int) -> None:
    async with client(Path(socket)) as redis:
        await redis.flushdb()
        await redis.config_set("appendfsync", "no")
        store = Cell.__dataclass_fields__["store"].type(redis)  # type: ignore[operator]
        first, nodes = 1 if what == "create" else 0, []
        for number in range(servers // OF_A_NODE):
            node = node_store(redis, node=f"n{number}", machine=f"m{number}")
            nodes.append(node)
            assert await node.take_lease(seconds=600) is None
            cell = Cell(redis=redis, store=store, node=node)
            mine = range(number * OF_A_NODE + 1, (number + 1) * OF_A_NODE + 1)
            await cell.have(mine)  # type: ignore[arg-type]
            for server in mine if what != "create" else ():
                made = await cell.create(server=server)  # type: ignore[arg-type]
                await node.begin(made.job.id)
                await node.finish(made.job.id, DONE)
                first = first or int(made.snapshot.id)
        for node in nodes:  # their heartbeats may be old by now
            await node.take_lease(seconds=600)
        await redis.config_set("appendfsync", "always")
        print(first)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
