"""Which servers this node has: read from the hypervisor, told to the store."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from drivers.base import DriverError, Hypervisor
from worker.jobs.errors import StoreUnavailable
from worker.jobs.model import AccountId, ServerId
from worker.jobs.node_store import LeaseLost, NodeStore, ReportedServer

REPORT_SECONDS = 5.0  # with each heartbeat, for what no event told
SETTLE_SECONDS = 0.1  # a guest that starts fires several events at once

log = structlog.stdlib.get_logger()


class Inventory:
    def __init__(
        self, hypervisor: Hypervisor, store: NodeStore, publish: Callable[[ServerId], Awaitable[None]]
    ) -> None:
        """`publish` tells the store which snapshots a server has, where the store does not know the server."""
        self._hypervisor = hypervisor
        self._store = store
        self._publish = publish
        self._changed = asyncio.Event()
        self._conflicts: frozenset[ServerId] = frozenset()

    async def report(self) -> None:
        """Tell the store what the node has now. A hypervisor or a store that is away is told the next time."""
        try:
            servers = [
                ReportedServer(
                    id=ServerId(domain.server_id),
                    account_id=AccountId(domain.account_id),
                    name=domain.name,
                    power=domain.power,
                )
                for domain in await self._hypervisor.domains()
            ]
            reported = await self._store.report(servers)
        except (DriverError, StoreUnavailable, LeaseLost) as error:
            log.warning("inventory.not_reported", reason=type(error).__name__, detail=str(error))
            return
        for server_id in reported.conflicts - self._conflicts:
            log.error("inventory.server_on_two_nodes", server_id=server_id)
        self._conflicts = reported.conflicts
        for server_id in reported.fresh:
            await self._publish(server_id)

    async def keep_reporting(self) -> None:
        """Run until cancelled: report soon after each change on the hypervisor, and every few seconds anyway."""
        self._hypervisor.watch(self._changed.set)
        while True:
            try:
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)
            except TimeoutError:
                pass  # nothing has changed; the view in the store may still be old
            self._changed.clear()
            await self.report()
