"""Claims of a hostile node: about others' objects, about its own, and about objects that do not exist."""

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from tests.integration.front_end import BROKE, DONE
from worker.store.model import (
    AccountId,
    Failure,
    JobId,
    JobKind,
    JobState,
    ServerId,
    SnapshotId,
    SnapshotStatus,
    Step,
)
from worker.store.nodes.claims import BegunJob, PublishedSnapshot, ReportedServer
from worker.store.outcome import Outcome
from worker.store.reports import JobReport, NodeFacts, StepBegun

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
FAILED = Outcome(
    state=JobState.FAILED,
    failure=Failure(code="disk_failed", detail="vda", stranded=True),
    snapshot_status=SnapshotStatus.FAILED,
)
TEXTS = ["", "x", "x" * 5000, "\x00", "\u2028", "<b>", "a:b", "${x}", "🎉" * 100]
NUMBERS = [0, 1, -1, 5, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 10**25]


class Liar:
    """Makes random claims. It knows `servers`, `snapshots` and `jobs`, and adds IDs that do not exist.

    The protocol itself refuses most of `TEXTS` and `NUMBERS`.
    """

    def __init__(
        self,
        chance: random.Random,
        *,
        servers: Sequence[ServerId],
        accounts: Sequence[AccountId],
        snapshots: Sequence[SnapshotId] = (),
        jobs: Sequence[JobId] = (),
        texts: Sequence[str] = TEXTS,
        numbers: Sequence[int] = NUMBERS,
    ) -> None:
        self.snapshots, self.jobs = snapshots, jobs
        self._chance = chance
        self._servers = servers
        self._accounts = accounts
        self._texts, self._numbers = texts, numbers

    def claim(self) -> tuple[str, dict[str, Any]]:
        """A random call of `NodePort`, with its arguments."""
        finding = {
            "finding": self._one("torn_snapshot", *self._texts),
            "tag": self._one(*self._texts),
            "at": self._one("1", "x"),
        }
        facts = NodeFacts(worker=self._one(*self._texts), hypervisor=self._one(*self._texts), emulator="", pools=())
        job, server, snapshot = self._job(), self._server(), self._snapshot()
        outcome = self._one(DONE, BROKE, FAILED)
        size_mb = self._one(*self._numbers)
        return self._one(  # type: ignore[no-any-return]
            ("begin", {"job_id": job}),
            ("progress", {"job_id": job, "step": self._one(*Step), "report": self._report()}),
            (
                "finish",
                {"job_id": job, "outcome": outcome, "report": self._report(), "power": self._one("on", *self._texts)},
            ),
            ("report", {"servers": self._many(self._reported), "about": self._one(None, facts)}),
            (
                "publish",
                {"server_id": server, "snapshots": self._many(self._published), "begun": self._many(self._begun)},
            ),
            ("known", {"server_id": server, "on_disk": self._many(self._snapshot)}),
            ("lose", {"server_id": server, "snapshot_id": snapshot}),
            ("regain", {"server_id": server, "snapshot_id": snapshot, "size_mb": size_mb}),
            ("tell_findings", {"server_id": server, "findings": [finding]}),
            ("retry_deletes", {}),
            ("republish", {}),
            ("take_lease", {"seconds": self._one(1.0, 60.0)}),
        )

    def _one(self, *choices: Any) -> Any:
        return self._chance.choice(choices)

    def _many(self, make: Callable[[], Any]) -> list[Any]:
        return [make() for _ in range(self._chance.randrange(6))]

    def _server(self) -> ServerId:
        return self._one(*self._servers, *map(ServerId, self._numbers))  # type: ignore[no-any-return]

    def _snapshot(self) -> SnapshotId:
        return self._one(*self.snapshots, *map(SnapshotId, self._numbers))  # type: ignore[no-any-return]

    def _job(self) -> JobId:
        nobodys = ("f" * 32, "x", "", uuid4().hex)
        return self._one(*self.jobs, *map(JobId, nobodys))  # type: ignore[no-any-return]

    def _published(self) -> PublishedSnapshot:
        return PublishedSnapshot(
            id=self._snapshot(),
            name=self._one(*self._texts),
            description=self._one(*self._texts),
            created_at=MOMENT,
            size_mb=self._one(None, *self._numbers),
            status=self._one(*SnapshotStatus),
        )

    def _begun(self) -> BegunJob:
        return BegunJob(
            id=self._job(),
            kind=self._one(*JobKind),
            snapshot_id=self._snapshot(),
            snapshot_name=self._one(*self._texts),
            snapshot_description=self._one(*self._texts),
            snapshot_created_at=MOMENT,
            request_id=self._one(*self._texts),
            undoes=self._one(None, self._job()),
        )

    def _reported(self) -> ReportedServer:
        return ReportedServer(
            id=self._server(),
            account_id=self._one(*self._accounts, *map(AccountId, self._numbers)),
            name=self._one(*self._texts),
            power=self._one("on", "off", "paused", *self._texts),
        )

    def _report(self) -> JobReport:
        return JobReport(
            steps=tuple(
                self._many(lambda: StepBegun(step=self._one(None, *Step), at=1.0, attempt=self._one(*self._numbers)))
            ),
            log=tuple(self._many(lambda: self._one(*self._texts))),
            resumed=self._one(*self._numbers),
        )
