"""A hostile node says anything about everything, thousands of times: nothing of the others changes."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.conftest import ACCOUNT, SERVER
from tests.integration.front_end import BROKE, DONE
from tests.security.conftest import ITS_ACCOUNT, ITS_SERVER, Hostile, kept
from tests.security.test_claims import FAILED, victim_of
from worker.store.model import AccountId, JobId, JobKind, ServerId, SnapshotId, SnapshotStatus, Step
from worker.store.nodes.node_store import (
    BeginRefused,
    BegunJob,
    ClaimRefused,
    NodeStore,
    Placement,
    PublishedSnapshot,
    ReportedServer,
)
from worker.store.reports import JobReport, NodeFacts, StepBegun

CALLS = 1500
TEXTS = ["", "x", "x" * 5000, "\x00", "\u2028", "<b>", "a:b", "${x}", "🎉" * 100]
NUMBERS = [0, 1, -1, 5, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 10**25]


class Liar:
    """Makes claims of what the victim has, of what is its own, and of what nobody has."""

    def __init__(self, hostile: Hostile, chance: random.Random, snapshot: SnapshotId, job: JobId) -> None:
        self.node, self._chance = hostile.node, chance
        self._snapshots = [snapshot, *map(SnapshotId, NUMBERS)]
        self._jobs = [job, JobId("f" * 32), JobId("x"), JobId("")]

    def one(self, *choices: Any) -> Any:
        return self._chance.choice(choices)

    @property
    def server(self) -> ServerId:
        return self.one(SERVER, ITS_SERVER, ITS_SERVER, *map(ServerId, NUMBERS))  # type: ignore[no-any-return]

    @property
    def snapshot(self) -> SnapshotId:
        return self.one(*self._snapshots)  # type: ignore[no-any-return]

    @property
    def job(self) -> JobId:
        return self.one(*self._jobs, JobId(uuid4().hex))  # type: ignore[no-any-return]

    def published(self) -> PublishedSnapshot:
        return PublishedSnapshot(
            id=self.snapshot,
            name=self.one(*TEXTS),
            description=self.one(*TEXTS),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            size_mb=self.one(None, *NUMBERS),
            status=self.one(*SnapshotStatus),
        )

    def begun(self) -> BegunJob:
        return BegunJob(
            id=self.job,
            kind=self.one(*JobKind),
            snapshot_id=self.snapshot,
            snapshot_name=self.one(*TEXTS),
            snapshot_description=self.one(*TEXTS),
            snapshot_created_at=datetime(2026, 1, 1, tzinfo=UTC),
            request_id=self.one(*TEXTS),
            undoes=self.one(None, *self._jobs),
        )

    def reported(self) -> ReportedServer:
        return ReportedServer(
            id=self.server,
            account_id=self.one(ACCOUNT, ITS_ACCOUNT, *map(AccountId, NUMBERS)),
            name=self.one(*TEXTS),
            power=self.one("on", "off", "paused", *TEXTS),
        )

    def many(self, make: Callable[[], Any]) -> list[Any]:
        return [make() for _ in range(self._chance.randrange(6))]

    def report_of_job(self) -> JobReport:
        return JobReport(
            steps=tuple(self.many(lambda: StepBegun(step=self.one(None, *Step), at=1.0, attempt=self.one(*NUMBERS)))),
            log=tuple(self.many(lambda: self.one(*TEXTS))),
            resumed=self.one(*NUMBERS),
        )

    def claim(self) -> Awaitable[object]:
        finding = {"finding": self.one("torn_snapshot", *TEXTS), "tag": self.one(*TEXTS), "at": self.one("1", *TEXTS)}
        facts = NodeFacts(worker=self.one(*TEXTS), hypervisor=self.one(*TEXTS), emulator="", pools=())
        node = self.node
        return self.one(  # type: ignore[no-any-return]
            lambda: node.begin(self.job),
            lambda: node.progress(self.job, self.one(*Step), self.report_of_job()),
            lambda: node.finish(self.job, self.one(DONE, BROKE, FAILED), self.report_of_job(), self.one("on", *TEXTS)),
            lambda: node.report([*self.many(self.reported)], self.one(None, facts)),
            lambda: node.publish(self.server, self.many(self.published), self.many(self.begun)),
            lambda: node.known(self.server, self.many(lambda: self.snapshot)),
            lambda: node.lose(self.server, self.snapshot),
            lambda: node.regain(self.server, self.snapshot, size_mb=self.one(*NUMBERS)),
            lambda: node.tell_findings(self.server, [finding]),
            node.retry_deletes,
            node.republish,
            lambda: node.take_lease(seconds=self.one(1.0, 60.0)),
        )()


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_of_another_changes(hostile: Hostile, seed: int) -> None:
    cell = hostile.cell
    victim = await victim_of(hostile, begin=bool(seed % 2))
    # where only declared servers are taken: else it can add new ones to any account
    hostile.node = NodeStore(
        cell.redis,
        node="n2",
        machine="m2",
        who="pid 2",
        placement=Placement.DECLARED,
        refused=lambda call, why: hostile.refused.append((call, why)),
    )
    await hostile.node.take_lease(seconds=60)
    liar = Liar(hostile, random.Random(seed), victim.snapshot, victim.job)  # noqa: S311 - no secret

    async def theirs() -> dict[bytes, object]:
        kinds = (f"server:{SERVER}", f"account:{ACCOUNT}:", f"job:{victim.job}", f"snapshot:{victim.snapshot}")
        starts = tuple(start.encode() for start in (*kinds, "node:n1", "arq:queue:n1", "jobs:node:n1"))
        return {k: await kept(cell, k) async for k in cell.redis.scan_iter(count=1000) if k.startswith(starts)}

    before = await theirs()
    for _ in range(CALLS):
        with suppress(ClaimRefused, BeginRefused):
            await liar.claim()
    assert await theirs() == before
    assert len(hostile.refused) > 100
    assert await cell.redis.scard("nodes") == 2  # type: ignore[misc]
    if not seed % 2:
        await cell.node.begin(victim.job)
    assert await cell.node.finish(victim.job, DONE) == "published"
    created = await cell.create("next")
    assert created.snapshot.account_id == ACCOUNT
