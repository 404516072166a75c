"""Which servers this node has: read from the hypervisor, told to the store."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from importlib.metadata import version

import structlog

from drivers.base import About, Domain, DriverError, Hypervisor, HypervisorUnavailable
from worker.metrics import Metrics
from worker.store.errors import StoreUnavailable
from worker.store.model import AccountId, ServerId
from worker.store.nodes.node_store import LeaseLost, NodeStore, ReportedServer
from worker.store.reports import NodeFacts, Pool

FACTS_SECONDS = 60.0  # between two looks at versions and free space
FACTS_LOOK_SECONDS = 5.0  # that a report waits for such a look; a slower one is told with a later report
REPORT_SECONDS = 5.0  # with each heartbeat, for what no event told
CONFLICT_SECONDS = 15.0  # far more than a migration's end takes
AGAIN_SECONDS = 1.0  # after a report that was not taken: a store that lost its data must soon know what there is
LOOK_SECONDS = 30.0  # for the list of a node's domains; hundreds take milliseconds
SETTLE_SECONDS = 0.1  # a guest that starts fires several events at once

log = structlog.stdlib.get_logger()


class Inventory:
    def __init__(
        self,
        hypervisor: Hypervisor,
        store: NodeStore,
        publish: Callable[[ServerId], Awaitable[None]],
        reconcile: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
        *,
        report_seconds: float = REPORT_SECONDS,
        conflict_seconds: float = CONFLICT_SECONDS,
    ) -> None:
        """`publish` tells the store which snapshots a server has, where the store does not know the server. `reconcile`
        is called when an operator has asked for it. `report_seconds`: between two reports where nothing changes.
        `conflict_seconds`: that two nodes may both have a server before a person is told."""
        self._hypervisor = hypervisor
        self._store = store
        self._publish = publish
        self._reconcile = reconcile
        self._metrics = metrics or Metrics()
        self._report_seconds = report_seconds
        self._conflict_seconds = conflict_seconds
        self._reconcile_asked = ""
        self._facts_at = -FACTS_SECONDS
        self._looking: asyncio.Task[About] | None = None
        self._changed = asyncio.Event()
        self._conflicts: dict[ServerId, float] = {}  # since when, by the monotonic clock
        self._told_conflicts: frozenset[ServerId] = frozenset()
        self._twice: frozenset[int] = frozenset()
        self._fresh: set[ServerId] = set()
        self._some_fresh = asyncio.Event()

    async def report(self) -> bool:
        """Tell the store what the node has now; whether it has taken it."""
        try:
            domains = await self._domains()
            servers = {ServerId(domain.server_id): domain for domain in reversed(domains)}
            reported_servers = [
                ReportedServer(
                    id=server_id, account_id=AccountId(domain.account_id), name=domain.name, power=domain.power
                )
                for server_id, domain in servers.items()
            ]
            reported = await self._store.report(reported_servers, await self._facts())
        except (DriverError, StoreUnavailable, LeaseLost) as error:
            log.warning("inventory.not_reported", reason=type(error).__name__, detail=str(error))
            return False
        twice = frozenset(server_id for server_id, count in Counter(d.server_id for d in domains).items() if count > 1)
        for server_id in twice - self._twice:
            log.error("inventory.server_twice_on_node", server_id=server_id)
        self._twice = twice
        self._note_conflicts(reported.conflicts)
        for server_id in reported.gone:  # undefined, moved to another node, or its mark was taken away
            log.warning("inventory.server_gone", server_id=server_id)
        if reported.reconcile_asked != self._reconcile_asked:
            self._reconcile_asked = reported.reconcile_asked
            self._reconcile()
        self._fresh |= reported.fresh
        self._some_fresh.set()
        return True

    def _note_conflicts(self, conflicts: frozenset[ServerId]) -> None:
        now = time.monotonic()
        self._conflicts = {server_id: self._conflicts.get(server_id, now) for server_id in conflicts}
        lasting = frozenset(
            server_id for server_id, since in self._conflicts.items() if now - since > self._conflict_seconds
        )
        for server_id in lasting - self._told_conflicts:
            log.error("inventory.server_on_two_nodes", server_id=server_id)
        self._told_conflicts = lasting

    @property
    def _some_may_come(self) -> bool:
        """A server has been migrated to this node, and the one that it came from has not told yet."""
        return self._conflicts.keys() > self._told_conflicts

    async def _domains(self) -> list[Domain]:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await self._hypervisor.domains()
        except TimeoutError as error:
            raise HypervisorUnavailable("the hypervisor does not say which domains it has") from error

    async def keep_publishing(self) -> None:
        """Run until cancelled: publish, one after the other, the servers that the store does not know yet."""
        while True:
            await self._some_fresh.wait()
            self._some_fresh.clear()
            await self.publish_fresh()

    async def publish_fresh(self) -> None:
        while self._fresh:
            await self._publish(self._fresh.pop())

    async def _facts(self) -> NodeFacts | None:
        """What the node runs on, from time to time: it changes slowly."""
        if time.monotonic() - self._facts_at < FACTS_SECONDS:
            return None
        # never given up for another: each on a disk that hangs would cost a thread
        looking = self._looking = self._looking or asyncio.create_task(self._hypervisor.about())
        await asyncio.wait({looking}, timeout=FACTS_LOOK_SECONDS)
        if not looking.done():
            return None
        self._looking, self._facts_at = None, time.monotonic()
        about = looking.result()
        pools = tuple(
            Pool(path=pool.path, free_bytes=pool.free_bytes, total_bytes=pool.total_bytes) for pool in about.pools
        )
        self._metrics.storage(pools)
        return NodeFacts(
            worker=version("vps-snapshots"), hypervisor=about.hypervisor, emulator=about.emulator, pools=pools
        )

    async def keep_reporting(self) -> None:
        """Run until cancelled: report soon after each change on the hypervisor, and every few seconds anyway."""
        self._hypervisor.watch(self._changed.set)
        taken = True
        while True:
            try:
                waits = taken and not self._some_may_come
                async with asyncio.timeout(self._report_seconds if waits else AGAIN_SECONDS):
                    await self._changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)
            except TimeoutError:
                pass  # nothing has changed; the view in the store may still be old
            self._changed.clear()
            taken = await self.report()
