"""Whether a server was given to another node while this one was away: then its disks and its guest are not ours."""

import asyncio
from contextlib import suppress

from worker.store.errors import Refused
from worker.store.model import ServerId
from worker.store.nodes.claims import ClaimRefused, LeaseLost
from worker.store.nodes.port import NodePort

ASK_SECONDS = 5.0  # limit for the answer, at the start of a process or after a silence: the guest of a job may be off
AGAIN_SECONDS = 0.1  # between two attempts: the connection or the lease may not be there yet


async def has_left(store: NodePort, server_id: ServerId) -> bool:
    """Whether the store says that another node has the server.

    False also if there is no answer within ASK_SECONDS: a started job is finished, whatever happens to the store.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(ASK_SECONDS):
            while True:
                try:
                    await store.known(server_id, [])
                except ClaimRefused as refused:
                    return refused.reason == "other_node"
                except (LeaseLost, Refused):
                    await asyncio.sleep(AGAIN_SECONDS)
                else:
                    return False
    return False
