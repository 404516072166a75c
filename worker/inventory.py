"""Reports to the store which servers this node has, as read from the hypervisor."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from importlib.metadata import version

import structlog

from drivers.base import About, Domain, DriverError, Hypervisor, HypervisorUnavailable
from worker.metrics import Metrics
from worker.program.loop import guarded
from worker.store.errors import StoreUnavailable
from worker.store.model import AccountId, ServerId
from worker.store.nodes.claims import ClaimRefused, LeaseLost, ReportedServer
from worker.store.nodes.port import NodePort
from worker.store.reports import NodeFacts, Pool

FACTS_SECONDS = 60.0  # interval between reads of versions and free space
FACTS_WAIT_SECONDS = 5.0  # how long a report waits for them; if they take longer, a later report includes them
REPORT_SECONDS = 5.0  # as often as the heartbeat, because some changes fire no event
CONFLICT_SECONDS = 15.0  # much longer than the end of a migration takes
RETRY_SECONDS = 1.0  # after a failed report; short, because a store that lost its data must be filled again quickly
MARKS_SECONDS = 60.0  # age of servers' IDs in a report if no event says that one has changed; reading 50 takes 8 ms
LIST_SECONDS = 30.0  # limit for listing the node's domains; listing hundreds takes milliseconds
SETTLE_SECONDS = 0.1  # a starting guest fires several events at once

log = structlog.stdlib.get_logger()


class Inventory:
    def __init__(  # noqa: PLR0913 - each is named where it is given
        self,
        hypervisor: Hypervisor,
        store: NodePort,
        publish: Callable[[ServerId], Awaitable[None]],
        reconcile: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
        *,
        slots: Callable[[], int] = lambda: 0,
        slots_max: int = 0,
        boot: str = "",
        report_seconds: float = REPORT_SECONDS,
        conflict_seconds: float = CONFLICT_SECONDS,
    ) -> None:
        """`publish` sends a server's snapshots to the store when the store does not know the server. `reconcile` is
        called when an operator has requested reconciliation. `slots`: how many jobs the node runs at a time now;
        `slots_max`: how many at most; 0: not reported. `boot`: the kernel's boot ID; "": not reported.
        `report_seconds`: interval between reports while nothing changes. `conflict_seconds`: how long two nodes may
        both report a server before it is logged as an error."""
        self._hypervisor = hypervisor
        self._store = store
        self._publish = publish
        self._reconcile = reconcile
        self._metrics = metrics or Metrics()
        self._slots = slots
        self._slots_max = slots_max
        self._boot = boot
        self._report_seconds = report_seconds
        self._conflict_seconds = conflict_seconds
        self._reconcile_asked = ""
        self._facts_at = -FACTS_SECONDS
        self._reading_facts: asyncio.Task[About] | None = None
        self._changed = asyncio.Event()
        self._conflicts: dict[ServerId, float] = {}  # server -> start of the conflict, on the monotonic clock
        self._logged_conflicts: frozenset[ServerId] = frozenset()
        self._duplicates: frozenset[int] = frozenset()
        self._told_trouble: str | None = None  # why the last report was refused
        self._fresh: set[ServerId] = set()
        self._has_fresh = asyncio.Event()

    def tell_facts(self) -> None:
        """Send the node's facts with the next report, and send that report soon."""
        self._facts_at = -FACTS_SECONDS
        self._changed.set()

    async def report(self) -> bool:
        """Send the store this node's servers. Returns whether the store accepted the report."""
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
        except (DriverError, StoreUnavailable, LeaseLost, ClaimRefused) as error:
            self._not_reported(error)
            return False
        self._told_trouble = None
        counts = Counter(domain.server_id for domain in domains)
        duplicates = frozenset(server_id for server_id, count in counts.items() if count > 1)
        for server_id in duplicates - self._duplicates:
            log.error("inventory.server_twice_on_node", server_id=server_id)
        self._duplicates = duplicates
        self._note_conflicts(reported.conflicts)
        for server_id, account_id in reported.accounts.items():
            await self._correct(servers[server_id], AccountId(account_id))
        for server_id in reported.gone:  # undefined, moved to another node, or its mark was removed
            log.warning("inventory.server_gone", server_id=server_id)
        if reported.reconcile_asked != self._reconcile_asked:
            self._reconcile_asked = reported.reconcile_asked
            self._reconcile()
        self._fresh |= reported.fresh
        self._has_fresh.set()
        return True

    def _not_reported(self, error: Exception) -> None:
        """Log the reason once, until it changes or a report is accepted."""
        trouble = f"{type(error).__name__} {error}"
        if trouble != self._told_trouble:
            cause = error.__cause__ if isinstance(error, StoreUnavailable) else None
            log.warning("inventory.not_reported", reason=type(error).__name__, detail=str(cause or error))
        self._told_trouble = trouble

    async def _correct(self, domain: Domain, account_id: AccountId) -> None:
        """Write the store's account into the domain, which is the only copy if the store loses its data."""
        known = {"server_id": domain.server_id, "account_id": account_id}
        try:
            await self._hypervisor.adopt(domain.name, **known)
        except DriverError as error:
            log.warning("inventory.account_not_corrected", reason=str(error), **known)
        else:
            log.warning("inventory.account_corrected", reported_account_id=domain.account_id, **known)

    def _note_conflicts(self, conflicts: frozenset[ServerId]) -> None:
        now = time.monotonic()
        self._conflicts = {server_id: self._conflicts.get(server_id, now) for server_id in conflicts}
        lasting = frozenset(
            server_id for server_id, since in self._conflicts.items() if now - since > self._conflict_seconds
        )
        for server_id in lasting - self._logged_conflicts:
            log.error("inventory.server_on_two_nodes", server_id=server_id)
        self._logged_conflicts = lasting

    @property
    def _awaits_migration(self) -> bool:
        """Whether a server was migrated here and its former node still reports it."""
        return self._conflicts.keys() > self._logged_conflicts

    async def _domains(self) -> list[Domain]:
        try:
            async with asyncio.timeout(LIST_SECONDS):
                return await self._hypervisor.domains(marks_seconds=MARKS_SECONDS)
        except TimeoutError as error:
            raise HypervisorUnavailable("the hypervisor did not list its domains in time") from error

    async def keep_publishing(self) -> None:
        """Run until cancelled: publish the servers that the store does not know yet, one at a time."""
        while True:
            await self._has_fresh.wait()
            self._has_fresh.clear()
            await self.publish_fresh()

    async def publish_fresh(self) -> None:
        while self._fresh:
            server_id = self._fresh.pop()
            with guarded("inventory", server_id=server_id):
                await self._publish(server_id)

    async def _facts(self) -> NodeFacts | None:
        """The node's versions and storage, at most once every FACTS_SECONDS; otherwise None, also while the read is
        slow."""
        if time.monotonic() - self._facts_at < FACTS_SECONDS:
            return None
        # Only one read at a time: while a disk hangs, every further read would block another thread.
        reading = self._reading_facts = self._reading_facts or asyncio.create_task(self._hypervisor.about())
        await asyncio.wait({reading}, timeout=FACTS_WAIT_SECONDS)
        if not reading.done():
            return None
        self._reading_facts, self._facts_at = None, time.monotonic()
        about = reading.result()
        pools = tuple(Pool.model_validate(pool, from_attributes=True) for pool in about.pools)
        self._metrics.storage(pools)
        return NodeFacts(
            worker=version("vps-snapshots"),
            hypervisor=about.hypervisor,
            emulator=about.emulator,
            pools=pools,
            slots=self._slots(),
            slots_max=self._slots_max,
            boot=self._boot,
        )

    async def keep_reporting(self) -> None:
        """Run until cancelled: report soon after each change on the hypervisor, and at least every few seconds."""
        self._hypervisor.watch(self._changed.set)
        accepted = True
        while True:
            try:
                is_settled = accepted and not self._awaits_migration
                async with asyncio.timeout(self._report_seconds if is_settled else RETRY_SECONDS):
                    await self._changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)
            except TimeoutError:
                pass  # no event, but the store's view may still be out of date
            self._changed.clear()
            accepted = False
            with guarded("inventory"):
                accepted = await self.report()
