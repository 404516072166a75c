"""Which servers this node has: read from the hypervisor, told to the store."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version

import structlog

from drivers.base import DriverError, Hypervisor
from worker.jobs.errors import StoreUnavailable
from worker.jobs.model import AccountId, ServerId
from worker.jobs.node_store import LeaseLost, NodeStore, ReportedServer
from worker.jobs.telling import NodeFacts, Pool

FACTS_SECONDS = 60.0  # between two looks at versions and free space
REPORT_SECONDS = 5.0  # with each heartbeat, for what no event told
SETTLE_SECONDS = 0.1  # a guest that starts fires several events at once

log = structlog.stdlib.get_logger()


class Inventory:
    def __init__(
        self,
        hypervisor: Hypervisor,
        store: NodeStore,
        publish: Callable[[ServerId], Awaitable[None]],
        reconcile: Callable[[], None] = lambda: None,
    ) -> None:
        """`publish` tells the store which snapshots a server has, where the store does not know the server. `reconcile`
        is called when an operator has asked for it."""
        self._hypervisor = hypervisor
        self._store = store
        self._publish = publish
        self._reconcile = reconcile
        self._reconcile_asked = ""
        self._facts_at = -FACTS_SECONDS
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
            reported = await self._store.report(servers, await self._facts())
        except (DriverError, StoreUnavailable, LeaseLost) as error:
            log.warning("inventory.not_reported", reason=type(error).__name__, detail=str(error))
            return
        for server_id in reported.conflicts - self._conflicts:
            log.error("inventory.server_on_two_nodes", server_id=server_id)
        self._conflicts = reported.conflicts
        if reported.reconcile_asked != self._reconcile_asked:
            self._reconcile_asked = reported.reconcile_asked
            self._reconcile()
        for server_id in reported.fresh:
            await self._publish(server_id)

    async def _facts(self) -> NodeFacts | None:
        """What the node runs on, from time to time: it changes slowly."""
        if time.monotonic() - self._facts_at < FACTS_SECONDS:
            return None
        about = await self._hypervisor.about()
        self._facts_at = time.monotonic()
        return NodeFacts(
            worker=version("vps-snapshots"),
            hypervisor=about.hypervisor,
            emulator=about.emulator,
            pools=tuple(
                Pool(path=pool.path, free_bytes=pool.free_bytes, total_bytes=pool.total_bytes) for pool in about.pools
            ),
        )

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
