"""The metrics of one worker: jobs and their steps, the node's storage, the lease and the journal."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry

from worker.program.metrics import COMMAND_BUCKETS, Instruments, ProgramMetrics
from worker.store.model import STEPS, Job, JobKind, Step
from worker.store.outcome import Outcome
from worker.store.reports import Pool

GATEWAY_ERRORS = ("connection", "timeout", "refused")
COMPLETED, FAILED, STRANDED = "completed", "failed", "stranded"  # values of the label `outcome`

# Seconds. A create takes 3 to 10 minutes if the guest shuts down slowly, otherwise seconds.
JOB_BUCKETS = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
STEP_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 360, 900)
PICKUP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60, 300, 900)


class GatewayMetrics(Instruments):
    """The gateway as this node sees it: reachability, latency, errors."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self._up = self._gauge("gateway_up", "1 if the last call was answered.")
        text = "Duration of this node's answered calls, without the wait for jobs."
        self._seconds = self._histogram("gateway_request_duration_seconds", text, COMMAND_BUCKETS)
        text = "Calls of this node without a valid answer."
        self._errors = self._counter("gateway_request_errors", text, "error")
        for error in GATEWAY_ERRORS:
            self._errors.labels(error)

    def answered(self, seconds: float) -> None:
        self._up.set(1)
        self._seconds.observe(seconds)

    def failed(self, error: Exception) -> None:
        self._up.set(0)
        told = bool(getattr(error, "code", ""))
        self._errors.labels("refused" if told else "timeout" if isinstance(error, TimeoutError) else "connection").inc()


class Metrics(ProgramMetrics):
    """The metrics of one worker."""

    def __init__(self) -> None:
        super().__init__()
        self.gateway = GatewayMetrics(self.registry)
        self._jobs = self._counter("jobs", "Jobs that have ended.", "kind", "outcome")
        self._failures = self._counter("job_failures", "Jobs that failed or stranded a server, by error code.", "code")
        self._retries = self._counter("job_step_retries", "Retries of a step.", "kind", "step")
        self._resumptions = self._counter("job_resumptions", "Jobs resumed after a worker process died.", "kind")
        self._findings = self._counter("reconcile_findings", "Findings of reconciliation.", "finding")
        self._seconds = self._histogram("job_duration_seconds", "From a job's start to its end.", JOB_BUCKETS, "kind")
        self._step_seconds = self._histogram(
            "job_step_duration_seconds", "Duration of a step including its retries.", STEP_BUCKETS, "kind", "step"
        )
        self._downtime = self._histogram(
            "guest_downtime_seconds", "From asking a guest to shut down until it runs again.", JOB_BUCKETS, "kind"
        )
        self._pickup = self._histogram(
            "job_pickup_seconds", "From a job's admission to its start.", PICKUP_BUCKETS, "kind"
        )
        self._free = self._gauge("storage_free_bytes", "Free space of a file system that holds disks.", "pool")
        self._size = self._gauge("storage_size_bytes", "Size of a file system that holds disks.", "pool")
        self._pools: set[str] = set()
        self._running = self._gauge("jobs_running", "Jobs that are working on a VM.")
        self._allowed = self._gauge("jobs_allowed", "Jobs that may run at a time: fewer while the disks are busy.")
        self._owed = self._gauge("jobs_owed", "Started jobs whose outcome is not in the store yet.")
        self._lease = self._gauge("lease_held", "1 if this worker holds the node's lease.")
        self._journal = self._gauge("journal_bytes", "Size of the journal and its write-ahead log.")
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Create the series at 0: `increase` does not count an event that creates its series."""
        for kind in JobKind:
            for outcome in (COMPLETED, FAILED, STRANDED):
                self._jobs.labels(kind, outcome)
            self._resumptions.labels(kind)
            for step in STEPS[kind]:
                self._retries.labels(kind, step)

    def follow(
        self,
        *,
        running: Callable[[], int],
        allowed: Callable[[], int],
        owed: Callable[[], int],
        lease_held: Callable[[], bool],
        journal_bytes: Callable[[], int],
    ) -> None:
        """Set the functions that are called at each scrape, in the scrape's thread."""
        self._running.set_function(running)
        self._allowed.set_function(allowed)
        self._owed.set_function(owed)
        self._lease.set_function(lease_held)
        self._journal.set_function(journal_bytes)

    # --- events ---

    def begun(self, job: Job) -> None:
        if job.attempts == 1 and job.started_at is not None:
            self._pickup.labels(job.kind).observe((job.started_at - job.queued_at).total_seconds())

    def resumed(self, kind: JobKind) -> None:
        self._resumptions.labels(kind).inc()

    def step(self, kind: JobKind, step: Step) -> AbstractContextManager[object]:
        return self._step_seconds.labels(kind, step).time()

    def tried_again(self, kind: JobKind, step: Step) -> None:
        self._retries.labels(kind, step).inc()

    def ended(self, kind: JobKind, outcome: Outcome, *, seconds: float) -> None:
        """Called once per job, by the process that ended it. `seconds`: since the job's start."""
        failure = outcome.failure
        if failure is None:
            self._jobs.labels(kind, COMPLETED).inc()
        else:
            self._jobs.labels(kind, STRANDED if failure.stranded else FAILED).inc()
            self._failures.labels(failure.code).inc()
        self._seconds.labels(kind).observe(seconds)
        if outcome.downtime_seconds is not None:
            self._downtime.labels(kind).observe(outcome.downtime_seconds)

    def found(self, finding: str, *, times: int = 1) -> None:
        self._findings.labels(finding).inc(times)

    def storage(self, pools: Iterable[Pool]) -> None:
        now = {pool.path: pool for pool in pools}
        for path, pool in now.items():
            self._free.labels(path).set(pool.free_bytes)
            self._size.labels(path).set(pool.total_bytes)
        for path in self._pools - now.keys():
            self._free.remove(path)
            self._size.remove(path)
        self._pools = set(now)
