"""A node whose worker dies where a test requests it, and the checks of its state afterward."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from drivers.base import Power
from drivers.fake import FakeHypervisor
from drivers.fake_faults import Effect, Happening, Killed
from drivers.fake_state import FakeDisk, FakeServer
from tests.integration.conftest import ACCOUNT, SERVER, Cell, nothing_more
from tests.integration.pasts import Found, Held, Past, befall
from worker.journal import Journal
from worker.metrics import Metrics
from worker.procedures.work import Policy
from worker.publisher import Publisher
from worker.reconcile import Reconciler
from worker.runner import Limits, Runner
from worker.store.customers.customer_store import SnapshotFilter
from worker.store.model import Job, JobId, JobKind, JobState, ServerId, SnapshotId, SnapshotStatus
from worker.store.nodes.claims import Known
from worker.store.nodes.node_store import NodeStore
from worker.store.nodes.port import NodePort

TARGETS = ("vda", "vdb")
BEFORE, NOW = "at the snapshot", "now"  # the content of the disks at the snapshot, and the current one
LIMITS = Limits(first_retry_seconds=0.001, start_seconds=0.02, safety_kept_seconds=3600)


class _Watched:
    """The node's store; `asked` is told of each question about a server."""

    def __init__(self, store: NodeStore, asked: Callable[[str], None]) -> None:
        self._store = store
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def known(self, server_id: ServerId, on_disk: Sequence[SnapshotId]) -> Known:
        self._asked("known")
        return await self._store.known(server_id, on_disk)


@dataclass(kw_only=True)
class DyingNode:
    """`happened`: the driver's effects since the last `start_over`; `die_at`: those at which it dies."""

    cell: Cell
    folder: Path
    hypervisor: FakeHypervisor
    limits: Limits = LIMITS
    happened: list[Happening] = field(default_factory=list)
    die_at: set[int] = field(default_factory=set)
    away_at: Effect | None = None  # the effect during which it is cut off for long
    absences: int = 0
    asked_while_frozen: list[str] = field(default_factory=list)  # the calls that could have waited for the cell
    past: Past = Past.QUIET
    without_a_stop: bool = False  # creates are live, and the guest has an agent
    held: dict[SnapshotId, Held] = field(default_factory=dict)
    found: Found | None = None  # by the job that was admitted last
    metrics: Metrics = field(default_factory=Metrics)  # of all its processes, as if each had been scraped at its end

    @classmethod
    async def make(
        cls,
        cell: Cell,
        folder: Path,
        *,
        power: Power,
        limits: Limits = LIMITS,
        past: Past = Past.QUIET,
        live: bool = False,
    ) -> "DyingNode":
        """Make a server with one snapshot, of BEFORE; the guest has NOW, after that past."""
        server = FakeServer(
            name="web-server-01",
            server_id=SERVER,
            account_id=ACCOUNT,
            power=power,
            disks={target: FakeDisk(content=BEFORE) for target in TARGETS},
            nvram=BEFORE,
            generation=1 if past is Past.WORN else None,
            agent=live,
        )
        node = cls(
            cell=cell, folder=folder, hypervisor=FakeHypervisor([server]), limits=limits, past=past, without_a_stop=live
        )
        await cell.have(power=power)
        admitted = await cell.create("first")
        await node.live(admitted.job.id)
        node.held[admitted.snapshot.id] = Held.now(server, BEFORE)
        node.write(NOW)
        befall(server, past, text=NOW)
        node.hypervisor.faults.hook = node._reach
        return node

    @property
    def first(self) -> SnapshotId:
        return next(iter(self.held))

    def write(self, text: str) -> None:
        self.hypervisor.write(SERVER, text)
        self.hypervisor.server(SERVER).nvram = text

    async def admit(self, kind: JobKind) -> JobId:
        """Admit a job of this kind, for the first snapshot if it needs one."""
        server, store, present_only = self.hypervisor.server(SERVER), self.cell.store, self.past is Past.REBUILT
        if kind is JobKind.CREATE:
            self.found = Found.now(server, goes_back_to=None)
            admitted = await self.cell.create("second", live=self.without_a_stop)
            self.held[admitted.snapshot.id] = Held.now(server, NOW)
            return admitted.job.id
        if kind is JobKind.DELETE:
            self.found = Found.now(server, goes_back_to=None)
            await store.delete(account_id=ACCOUNT, snapshot_id=self.first, request_id="r")
            return await self.cell.holder()
        self.found = Found.now(server, goes_back_to=self.held[self.first])
        overwritten = Held.now(server, NOW)
        restore = await store.restore(
            account_id=ACCOUNT, snapshot_id=self.first, request_id="r", present_only=present_only
        )
        if kind is JobKind.RESTORE:
            return restore.job.id
        await self.live(restore.job.id)
        befall(server, self.past, text=NOW)
        self.found = Found.now(server, goes_back_to=overwritten)
        return (await store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")).id

    async def live(self, job_id: JobId | None = None, begun: Job | None = None) -> bool:
        """Run the worker once: it resumes unfinished jobs, then does the job. Returns whether it survived."""
        journal = Journal(self.folder / "journal.sqlite")
        runner = self._runner(journal)
        try:
            for task in runner.resume():
                await task
            if job_id is not None:
                await runner.run(job_id, begun)
        except Killed:
            return False
        finally:
            journal.close()
        return True

    async def settle(self, job_id: JobId) -> Job:
        """Start the worker again until it survives. Returns the job at its end."""
        while not await self.live(job_id):
            pass
        self.die_at.clear()
        return await self.job(job_id)

    async def job(self, job_id: JobId) -> Job:
        return await self.cell.store.job(account_id=ACCOUNT, job_id=job_id)

    def start_over(self, *, die_at: Iterable[int] = ()) -> None:
        self.happened.clear()
        self.die_at = set(die_at)

    async def reconcile(self) -> None:
        journal = Journal(self.folder / "journal.sqlite")
        runner = self._runner(journal)
        reconciler = Reconciler(
            hypervisor=self.hypervisor,
            store=self.cell.node,
            journal=journal,
            runner=runner,
            safety_kept_seconds=3600,
            look_seconds=60,
        )
        with closing(journal):
            await reconciler.server(SERVER)
            journal.age_safety_tags(1)
            await runner.safety.drop_due()

    async def check(self, job: Job, *, power: Power) -> None:
        """Check the state after the end of a job that is not stranded."""
        server = self.hypervisor.server(SERVER)
        assert self.hypervisor.misuse == []
        assert job.state in {JobState.COMPLETED, JobState.FAILED}
        assert not (job.failure and job.failure.stranded), job.failure
        assert server.power is power
        assert not server.frozen
        assert not any(disk.dirty for disk in server.disks.values())
        assert not server.held, "nobody can migrate it any more"
        assert self.found is not None
        self.found.check(server, job)
        await self.check_snapshots()

    def data(self) -> set[str]:
        """The guest's data on all its disks and in its UEFI variables: one text, unless something is torn."""
        server = self.hypervisor.server(SERVER)
        return {*self.hypervisor.read(SERVER).values(), server.nvram or ""}

    async def completed(self) -> set[SnapshotId]:
        """The snapshots that the customer sees as completed."""
        page = await self.cell.store.snapshots(
            account_id=ACCOUNT, wanted=SnapshotFilter(server_id=SERVER), offset=0, limit=100
        )
        return {snapshot.id for snapshot in page.results if snapshot.status is SnapshotStatus.COMPLETED}

    async def check_snapshots(self) -> None:
        """Check that each completed snapshot is whole and has its data, and that the service left nothing else."""
        server = self.hypervisor.server(SERVER)
        page = await self.cell.store.snapshots(
            account_id=ACCOUNT, wanted=SnapshotFilter(server_id=SERVER), offset=0, limit=100
        )
        completed = {s.id for s in page.results if s.status is SnapshotStatus.COMPLETED}
        assert not [s for s in page.results if s.status is SnapshotStatus.IN_PROGRESS]
        for snapshot_id in completed:
            self.held[snapshot_id].check(server, f"vps-{snapshot_id}")
        journal = Journal(self.folder / "journal.sqlite")
        safety = journal.safety_tags(SERVER)
        journal.close()
        images = [*server.disks.values(), *server.detached.values()]
        on_disk = {tag for disk in images for tag in disk.tags} | {*server.listed, *server.nvram_copies}
        on_disk |= set(server.contents)
        assert on_disk - safety == {f"vps-{snapshot_id}" for snapshot_id in completed}
        assert await self.cell.raw("SCARD", f"server:{SERVER}:counted") == len(completed)
        assert not await self.cell.raw("HEXISTS", f"server:{SERVER}", "job")

    def _reach(self, happening: Happening) -> None:
        self.happened.append(happening)
        if happening.effect is self.away_at:
            self.absences += 1
        if len(self.happened) in self.die_at:
            raise Killed(happening)

    def _note(self, call: str) -> None:
        if self.hypervisor.server(SERVER).frozen:
            self.asked_while_frozen.append(call)

    async def _may_continue(self) -> bool:
        if self.absences:  # the lease is in doubt
            self._note("lease_holder")
        return True

    def _runner(self, journal: Journal) -> Runner:
        return Runner(
            journal=journal,
            hypervisor=self.hypervisor,
            store=cast("NodePort", _Watched(self.cell.node, self._note)),
            publisher=Publisher(self.cell.node, publish_again=nothing_more),
            policy=Policy(grace_seconds=0.05, press_again_seconds=0.01),
            limits=self.limits,
            metrics=self.metrics,
            may_continue=self._may_continue,
            absences=lambda: self.absences,
        )
