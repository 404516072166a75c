"""The interface of the store for workers: `NodeStore` on Redis, or `worker.gateway_client` through a gateway."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from worker.store.model import Job, JobId, ServerId, SnapshotId, Step
from worker.store.nodes.claims import (
    BegunJob,
    Known,
    LeaseHeld,
    PublishedSnapshot,
    Reported,
    ReportedServer,
)
from worker.store.outcome import Outcome
from worker.store.reports import EMPTY_REPORT, JobReport, NodeFacts


class NodePort(Protocol):
    """The calls of `NodeStore`, which documents them. Every call may raise StoreUnavailable."""

    @property
    def node(self) -> str: ...

    async def take_lease(self, *, seconds: float) -> LeaseHeld | None: ...

    async def lease_holder(self) -> LeaseHeld | None: ...

    async def take(self, *, running: Sequence[JobId], free: int, seconds: float) -> tuple[JobId | Job, ...]:
        """As in `NodeStore`. Jobs that have not begun are begun and returned as records, if the store supports that."""
        ...

    async def stop_taking(self) -> None: ...

    async def begin(self, job_id: JobId) -> Job: ...

    async def progress(self, job_id: JobId, step: Step, report: JobReport = EMPTY_REPORT) -> None: ...

    async def finish(
        self, job_id: JobId, outcome: Outcome, report: JobReport = EMPTY_REPORT, power: str = ""
    ) -> str: ...

    async def report(self, servers: Iterable[ReportedServer], about: NodeFacts | None = None) -> Reported: ...

    async def publish(
        self, server_id: ServerId, snapshots: Iterable[PublishedSnapshot], begun: Iterable[BegunJob]
    ) -> tuple[SnapshotId, ...]: ...

    async def known(self, server_id: ServerId, on_disk: Sequence[SnapshotId]) -> Known: ...

    async def lose(self, server_id: ServerId, snapshot_id: SnapshotId) -> bool: ...

    async def regain(self, server_id: ServerId, snapshot_id: SnapshotId, *, size_mb: int) -> bool: ...

    async def tell_findings(self, server_id: ServerId, findings: Sequence[dict[str, str]]) -> None: ...

    async def republish(self) -> int: ...

    async def retry_deletes(self) -> int: ...
