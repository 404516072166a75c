"""Runs jobs: records each in the journal, runs its procedure step by step, records and publishes the outcome."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import structlog

from drivers.base import AgentFailed, DomainNotFound, DriverError, Hypervisor, Power, ServerInUse
from worker import left_frozen, traces
from worker.journal import KEPT_FOR_A_PERSON, Entry, JobUnreadable, Journal, JournalFailed
from worker.left import has_left
from worker.metrics import Metrics
from worker.procedures import PROCEDURES
from worker.procedures.disks import NotEnoughSpace
from worker.procedures.work import FORWARD, Facts, Next, Policy, Procedure, Task, Work
from worker.program import log_fields
from worker.program.loop import Outage
from worker.publisher import RETRY_SECONDS, Publisher
from worker.safety import SafetySnapshots
from worker.store.errors import StoreUnavailable
from worker.store.model import Failure, Job, JobId, JobKind, JobState, ServerId, SnapshotStatus, Step, bounded_cause
from worker.store.nodes.claims import BeginRefused, LeaseLost
from worker.store.nodes.port import NodePort
from worker.store.outcome import LEFT_ITS_NODE, Outcome

RETRY_MOST_SECONDS = 5.0  # longest wait between two attempts at a step
POWER_SECONDS = 2.0  # limit for reading a server's power state at the end of a job
LAST_WORDS_SECONDS = 3.0  # at exit, for outcomes to reach the store

NODE_REPLACED = Failure(code="node_replaced", detail="Another worker has taken over the node; the job was stopped.")

log = structlog.stdlib.get_logger()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits for one step of one job. Times are in seconds."""

    # Limit for one step; the step `stopping` also gets the grace period. Ten times what `qemu-img snapshot -c` took for
    # three disks of 1 TB (12 s each).
    step_seconds: float = 360.0
    # How long the job retries a thaw; after that, housekeeping continues. A guest that never answers must not block
    # other jobs.
    thaw_seconds: float = 60.0
    tries: int = 4  # attempts at a step whose error may be transient
    first_retry_seconds: float = 0.5  # doubled with each attempt
    journal_retry_seconds: float = 5.0  # after a failed read or write of the journal
    # How long a persistent error is retried, for example while libvirtd restarts: the VM could not start without it.
    lasting_seconds: float = 30.0
    # How long a failed start is retried: a device, a lock or a machine name may not be free yet.
    start_seconds: float = 60.0
    interruptions: int = 3  # worker deaths in one step; one more, and the step is assumed to be the cause and fails
    safety_kept_seconds: float = 86_400.0  # retention of a restore's safety snapshot


async def _always() -> bool:
    return True


class Runner:
    """Runs the jobs of one node, one job per server at a time."""

    def __init__(  # noqa: PLR0913 - each is named where it is given
        self,
        *,
        journal: Journal,
        hypervisor: Hypervisor,
        store: NodePort,
        publisher: Publisher,
        policy: Policy,
        limits: Limits,
        metrics: Metrics | None = None,
        may_continue: Callable[[], Awaitable[bool]] = _always,
        absences: Callable[[], int] = lambda: 0,
        on_work_done: Callable[[JobId], None] = lambda _: None,
    ) -> None:
        """`may_continue`: returns whether this worker still holds the node; called before each forward step.
        `absences`: see `Lease`. `on_work_done`: called when a job no longer works on its VM, before its outcome is
        published."""
        self._journal = journal
        self._hypervisor = hypervisor
        self._store = store
        self._publisher = publisher
        self._policy = policy
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._may_continue = may_continue
        self._absences = absences
        self._on_work_done = on_work_done
        self._running: dict[JobId, asyncio.Task[None]] = {}
        # The running jobs, and those whose run broke, as the journal has them: a guest must be thawed also if the
        # journal cannot be read.
        self._entries: dict[JobId, Entry] = {}
        self._executing = 0
        self.still_held: set[ServerId] = set()  # servers that no job holds, although libvirt still shows the hold
        # The ended jobs that may have left their guests frozen, for the same reason. The holds of the servers stay.
        self._left_frozen = {entry.task.job_id: entry for entry in journal.left_frozen()}
        self._drained = False  # the process is about to exit
        self._idle = asyncio.Event()  # set while no job works on a VM
        self._idle.set()
        self._servers: defaultdict[ServerId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.safety = SafetySnapshots(
            journal=journal,
            hypervisor=hypervisor,
            locks=self._servers,
            free_floor_bytes=policy.free_floor_bytes,
            step_seconds=limits.step_seconds,
        )

    async def run(self, job_id: JobId, begun: Job | None = None) -> None:
        """Run a job from the queue; returns once its outcome is published, or if the store refuses the job. `begun`:
        the job, if the store has already begun it.

        A job that has already started is not started again: this waits for its current run. One that the journal has
        from a newer version, or that undoes such a one, waits for that version.
        """
        with log_fields.bound(job_id=job_id):
            try:
                await self._run(job_id, begun)
            except JobUnreadable as error:
                log.error("job.unreadable", reason=str(error))  # noqa: TRY400 - the reason is enough

    async def _run(self, job_id: JobId, begun: Job | None) -> None:
        entry = self._journal.find(job_id)
        known = entry is not None
        if entry is not None and entry.outcome is not None and entry.published:
            # Delivered again: the worker died before the queue was updated, or Redis was restored from a backup.
            await self._publisher.outcome(job_id, entry.task.server_id, entry.outcome)
            return
        if entry is None:
            job = begun or await self._begin(job_id)
            if job is None:
                return
            self._metrics.begun(job)
            entry = self._journal.begin(self._task_of(job), PROCEDURES[job.kind].first)
        await asyncio.shield(self._run_to_end(entry, resumed=known))

    def _task_of(self, job: Job) -> Task:
        undone = self._journal.find(job.undoes) if job.undoes else None
        overwritten = undone.facts.targets if undone is not None and undone.task.present_only else None
        return replace(Task.of(job), overwritten=overwritten)

    def resume(self) -> list[asyncio.Task[None]]:
        """Resume the unfinished jobs of an earlier process, immediately and without the store."""
        return [self._run_to_end(entry, resumed=True) for entry in self._journal.owed()]

    async def thaw_left(self) -> None:
        """Thaw the guests that failed jobs have left frozen, and let go of their servers. Raises JournalFailed."""
        left, locks = self._left_frozen, self._servers
        await left_frozen.thaw_all(left, self._journal, self._hypervisor, locks, thawed=self._thawed_late)

    async def _thawed_late(self, server_id: ServerId) -> None:
        try:
            owed = self._journal.owed()
        except (JournalFailed, JobUnreadable):
            self.still_held.add(server_id)  # reconciliation lets go of it
            return
        if not any(entry.outcome is None and entry.task.server_id == server_id for entry in owed):
            await self.let_go(server_id)

    async def drain(self, seconds: float) -> None:
        """Return once no job is working on a VM, or after `seconds`.

        From then on, no job freezes its guest. Outcomes get LAST_WORDS_SECONDS to be published; the next process
        publishes the rest.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        self._drained = True
        if self._running:
            await asyncio.wait(self._running.values(), timeout=LAST_WORDS_SECONDS)

    async def thaw_interrupted(self) -> None:
        """End the jobs whose guests are frozen, and thaw the guests, because the next process may start much later."""
        frozen = [entry for entry in self._entries.values() if self._may_be_frozen(entry)]
        tasks = [self._running[entry.task.job_id] for entry in frozen if entry.task.job_id in self._running]
        for task in tasks:
            task.cancel()
        if tasks:  # a hung call must delay neither the thaw nor the stop
            await asyncio.wait(tasks, timeout=LAST_WORDS_SECONDS)
        await asyncio.gather(*(left_frozen.thaw(self._hypervisor, entry) for entry in frozen))

    def _may_be_frozen(self, entry: Entry) -> bool:
        newest = entry if entry.outcome is None else self._left_frozen.get(entry.task.job_id)
        return newest is not None and newest.facts.frozen

    @property
    def working(self) -> int:
        """The number of jobs that are working on a VM."""
        return self._executing

    @property
    def owed(self) -> int:
        """The number of started jobs whose outcome the store does not have yet."""
        return len(self._running)

    def lock_of(self, server_id: ServerId) -> asyncio.Lock:
        """The lock to hold while touching the server's disks."""
        return self._servers[server_id]

    async def _begin(self, job_id: JobId) -> Job | None:
        """Claim a queued job in the store; None if it refuses. No job starts while the store is unreachable or the
        lease is lost."""
        wait, longest = RETRY_SECONDS
        outage = Outage()
        while True:
            try:
                return await self._store.begin(job_id)
            except BeginRefused as refused:
                log.warning("job.refused", reason=str(refused))
                return None
            except (StoreUnavailable, LeaseLost) as error:
                outage.tell("job.not_begun", reason=type(error).__name__)
                await asyncio.sleep(wait)
                wait = min(2 * wait, longest)

    def _run_to_end(self, entry: Entry, *, resumed: bool) -> asyncio.Task[None]:
        """The task that runs the job to its end. There is one per job, and only the exit of the process cancels it."""
        job_id = entry.task.job_id
        if job_id not in self._running:
            self._entries[job_id] = entry
            task = asyncio.create_task(self._to_the_end(entry, resumed=resumed), name=f"job {job_id}")
            self._running[job_id] = task
            task.add_done_callback(lambda _: self._running.pop(job_id))
        return self._running[job_id]

    def _newest(self, job_id: JobId) -> Entry:
        """The running job as the journal has it; if that cannot be read, as this process has last written it."""
        with suppress(JournalFailed, JobUnreadable):
            if entry := self._journal.find(job_id):
                self._entries[job_id] = entry
        return self._entries[job_id]

    async def _to_the_end(self, entry: Entry, *, resumed: bool) -> None:
        task = entry.task
        with (
            log_fields.bound(job_id=task.job_id, request_id=task.request_id, kind=task.kind, server_id=task.server_id),
            traces.job(task, node=self._store.node, resumed=resumed),
        ):
            outcome, recorded, died = entry.outcome, entry, resumed
            if entry.facts.domain is not None:
                self._hypervisor.recall(task.server_id, entry.facts.domain)
            while outcome is None:
                try:
                    async with self._servers[task.server_id], self._busy():
                        if resumed:
                            entry = await left_frozen.thaw_first(self._hypervisor, entry)
                            if await has_left(self._store, task.server_id):
                                outcome = self._give_up(entry)
                                break
                        await self.safety.repair_interrupted(task.server_id)
                        if died:  # not after a failed write: the process lives
                            entry, died = self._resume(entry), False
                        outcome = await self._execute(entry, resumed=resumed)
                except JournalFailed as error:
                    wait = self._limits.journal_retry_seconds
                    log.error("job.not_written_down", reason=str(error), again_in_seconds=wait)  # noqa: TRY400 - the reason is enough
                    found, resumed = self._newest(task.job_id), True  # resume the job as after a crash
                    # otherwise the job has not gone on since its guest was thawed
                    if (found.step, found.facts) != (recorded.step, recorded.facts):
                        entry = recorded = found
                    async with self._servers[task.server_id]:
                        entry = await left_frozen.thaw_first(self._hypervisor, entry)
                    await asyncio.sleep(wait)
            traces.job_over(outcome)
            self._on_work_done(task.job_id)
            power = await self._power(task.server_id)
            await self._publisher.outcome(task.job_id, task.server_id, outcome, power=power)
            with suppress(JournalFailed):  # the next process publishes it again, which is harmless
                self._journal.published(task.job_id)
            del self._entries[task.job_id]

    async def _power(self, server_id: ServerId) -> str:
        """The server's power state; "" if the hypervisor does not answer within POWER_SECONDS."""
        looking = asyncio.ensure_future(self._hypervisor.power(server_id))
        await asyncio.wait({looking}, timeout=POWER_SECONDS)  # not cancelled: a cancellation waits for the call to end
        if not looking.done():
            looking.add_done_callback(lambda late: late.cancelled() or late.exception())
            return ""
        if isinstance(error := looking.exception(), Exception) and not isinstance(error, DriverError):
            log.error("power.broke", server_id=server_id, exc_info=error)  # a bug must not delay the outcome
        return "" if error else looking.result()

    @asynccontextmanager
    async def _busy(self) -> AsyncIterator[None]:
        self._executing += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._executing -= 1
            if not self._executing:
                self._idle.set()

    async def _execute(self, entry: Entry, *, resumed: bool) -> Outcome:
        """Run the steps, each recorded before its first effect, and record the outcome."""
        task, procedure = entry.task, PROCEDURES[entry.task.kind]
        step: Step | None = entry.step
        facts, interruptions, interrupted, absences = entry.facts, entry.interruptions, resumed, self._absences()
        while step is not None:
            if (now := self._absences()) != absences:
                absences = now
                entry = replace(entry, step=step, facts=facts)
                entry = await left_frozen.thaw_first(self._hypervisor, entry, interrupted=interrupted)
                facts, interrupted = entry.facts, interrupted or entry.facts.frozen
                if await has_left(self._store, task.server_id):
                    return self._give_up(entry)
            with traces.step(step, resumed=interrupted), self._metrics.step(task.kind, step):
                if interruptions > self._limits.interruptions:
                    detail = f"The node's worker died {interruptions} times in this step."
                    reason = Failure(code="interrupted", detail=detail)
                    after = await self._failed(procedure, step, self._work(task, facts, interrupted=True), reason)
                else:
                    work = self._work(task, facts, interrupted=interrupted)
                    after = await self._take(procedure, step, work, tried=interruptions)
            step, facts, interruptions, interrupted = after.step, after.facts, 0, False
            if step is Step.FREEZING and self._drained:
                raise asyncio.CancelledError  # the next process continues; the exit could leave the guest frozen
            if step is not None:
                self._journal.enter(task.job_id, step, facts)
                self._entries[task.job_id] = replace(entry, step=step, facts=facts, interruptions=0)
        if not (task.kind.only_looks or facts.frozen):
            await self.let_go(task.server_id)
        outcome = _outcome(task, facts, safety_kept_seconds=self._limits.safety_kept_seconds)
        self._conclude(replace(entry, facts=facts), outcome, safety_kept_seconds=self._keep(outcome))
        return outcome

    def _resume(self, entry: Entry) -> Entry:
        """Count the death of an earlier process in the job's current step."""
        task, interruptions = entry.task, entry.interruptions + 1
        self._journal.interrupted(task.job_id)
        self._metrics.resumed(task.kind)
        self._publisher.resumed(task.job_id)
        log.warning("job.resumed", step=entry.step, interruptions=interruptions)
        return replace(entry, interruptions=interruptions)

    def _give_up(self, entry: Entry) -> Outcome:
        """End a job whose server another node has: its disks are left as they are."""
        task = entry.task
        snapshot_status = SnapshotStatus.FAILED if task.kind is JobKind.CREATE else None
        outcome = replace(LEFT_ITS_NODE, snapshot_status=snapshot_status)
        self._conclude(entry, outcome, safety_kept_seconds=KEPT_FOR_A_PERSON)
        return outcome

    def _conclude(self, entry: Entry, outcome: Outcome, *, safety_kept_seconds: float) -> None:
        self._journal.conclude(entry, outcome, safety_kept_seconds=safety_kept_seconds)
        self._entries[entry.task.job_id] = ended = replace(entry, outcome=outcome)
        if entry.facts.frozen:
            self._left_frozen[entry.task.job_id] = ended
        seconds = max(0.0, time.time() - entry.facts.begun_at)  # wall clock: the job may span several processes
        self._metrics.ended(entry.task.kind, outcome, seconds=seconds)
        _log_end(outcome, seconds=seconds)

    def _keep(self, outcome: Outcome) -> float:
        if outcome.failure is not None and outcome.failure.stranded:
            return KEPT_FOR_A_PERSON  # it may be the only copy of the disks' former state
        return self._limits.safety_kept_seconds if outcome.state is JobState.COMPLETED else 0.0

    def _work(self, task: Task, facts: Facts, *, interrupted: bool) -> Work:
        # Running jobs share the free space: each needs its own reserve.
        policy = replace(self._policy, free_floor_bytes=self._policy.free_floor_bytes * self._executing)
        return Work(task=task, facts=facts, hypervisor=self._hypervisor, policy=policy, interrupted=interrupted)

    async def _take(self, procedure: Procedure, step: Step, work: Work, *, tried: int) -> Next:
        """Run one step, with retries. `tried`: how many times earlier processes have started it."""
        if step in FORWARD and not await self._may_continue():
            return await self._failed(procedure, step, work, NODE_REPLACED)
        wait = self._limits.first_retry_seconds
        limit = self._limits.step_seconds + (self._policy.grace_seconds if step is Step.STOPPING else 0)
        strands = step in procedure.strands
        began, tries, cause = time.monotonic(), 0, ""
        while True:
            tries += 1
            self._publisher.step(work.task.job_id, step, attempt=tried + tries)
            traces.step_tried(tried + tries)
            try:
                async with asyncio.timeout(limit):
                    return await procedure.steps[step](work)
            except TimeoutError:
                reason = Failure(code="step_timeout", detail=f"The step took longer than {limit:.0f} seconds.")
                break
            except DriverError as error:
                reason, cause = Failure(code=error.code, detail=error.detail), error.cause
                if isinstance(error, NotEnoughSpace) and await self.safety.make_room_for(work.task):
                    continue
                # A step whose failure strands the VM is retried after any error, because giving up is the worst
                # outcome.
                waits = time.monotonic() - began < self._patience_seconds(step, error, limit if strands else None)
                if not waits and (tries >= self._limits.tries or not (strands or error.retryable)):
                    log.warning("step.failed", step=step, code=error.code, cause=cause or None, exc_info=error)
                    break
                log.warning("step.tried", step=step, code=error.code, cause=cause or None, again_in_seconds=wait)
                self._metrics.tried_again(work.task.kind, step)
                await asyncio.sleep(wait)
                wait, work = min(2 * wait, RETRY_MOST_SECONDS), replace(work, interrupted=True)
            except Exception as error:
                log.error("step.broke", step=step, exc_info=error)  # noqa: TRY400 - exc_info has it
                reason = Failure(code="internal_error", detail="An unexpected error occurred; it was logged.")
                cause = f"{type(error).__name__}: {error}"
                break
        return await self._failed(procedure, step, work, reason, cause)

    def _patience_seconds(self, step: Step, error: DriverError, limit: float | None) -> float:
        """How long a step is retried, beyond the number of tries. `limit`: for a step whose failure strands the
        server, otherwise None."""
        if error.lasting:
            patience = self._limits.lasting_seconds if limit is None else limit
            return min(patience, self._limits.thaw_seconds) if isinstance(error, AgentFailed) else patience
        return self._limits.start_seconds if step is Step.STARTING and error.retryable else 0.0

    async def _failed(self, procedure: Procedure, step: Step, work: Work, reason: Failure, cause: str = "") -> Next:
        """The step after one that has failed permanently. `cause`: the hypervisor's message."""
        facts = work.facts
        # The start may have succeeded even though the worker died or the reply was lost, so check before reporting it
        # as off.
        if step is Step.STARTING and await self._power(work.task.server_id) == Power.ON:
            log.warning("step.done_after_all", step=step, code=reason.code)
            facts = replace(facts, on_again=facts.on_again or time.time())
        else:
            traces.step_failed(reason.code)
            strands = step in procedure.strands and not _has_moved(facts, reason)
            facts = facts.failed(replace(reason, stranded=strands), f"{step}: {cause}" if cause else "")
        return Next(step=procedure.if_it_fails[step](facts), facts=facts)

    async def let_go(self, server_id: ServerId) -> None:
        """Allow others to migrate the server again. If this fails, reconciliation does it within seconds.

        No effect if an ended job may have left its guest frozen: on another node, no worker would thaw it.
        """
        if any(entry.task.server_id == server_id for entry in self._left_frozen.values()):
            return
        try:
            async with asyncio.timeout(self._limits.step_seconds):
                await self._hypervisor.let_go(server_id)
            self.still_held.discard(server_id)
        except (DriverError, TimeoutError) as error:
            self.still_held.add(server_id)
            log.warning("server.not_let_go", server_id=server_id, reason=str(error) or type(error).__name__)


def _has_moved(facts: Facts, reason: Failure) -> bool:
    """Whether the server has moved to another node: the job was refused during a migration, and the server has left
    this node. libvirt does not migrate a server that a job holds, so the job has changed nothing."""
    refused_as_in_use = facts.failure is not None and facts.failure.code == ServerInUse.code
    return refused_as_in_use and reason.code == DomainNotFound.code


def _outcome(task: Task, facts: Facts, *, safety_kept_seconds: float) -> Outcome:
    status = None
    undoable = facts.failure is None and task.kind.overwrites
    if task.kind is JobKind.CREATE:
        # complete on every disk, even if the guest did not start again
        status = SnapshotStatus.COMPLETED if facts.taken else SnapshotStatus.FAILED
    return Outcome(
        state=JobState.COMPLETED if facts.failure is None else JobState.FAILED,
        failure=facts.failure,
        cause=bounded_cause(facts.cause),
        downtime_seconds=facts.downtime_seconds,
        size_mb=facts.size_mb,
        snapshot_status=status,
        undoable_seconds=safety_kept_seconds if undoable else None,
        notes=facts.notes,
        contents=facts.contents,
    )


def _log_end(outcome: Outcome, *, seconds: float) -> None:
    """Log the one line that ends a job."""
    downtime = None if outcome.downtime_seconds is None else round(outcome.downtime_seconds, 3)
    fields = {"seconds": round(seconds, 3), "downtime_seconds": downtime, "size_mb": outcome.size_mb}
    if (failure := outcome.failure) is None:
        log.info("job.completed", **fields)
    elif failure.stranded:
        log.error("job.stranded", code=failure.code, detail=failure.detail, **fields)
    else:
        log.warning("job.failed", code=failure.code, detail=failure.detail, **fields)
