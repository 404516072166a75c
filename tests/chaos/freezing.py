"""Repeated live snapshots of a guest with an agent, with kills at and around the freeze: the guest must never stay
frozen.

Separate from the random campaign: there no guest boots, so that only the model writes to the disks.
"""

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

from deploy.lab.domain import disk
from deploy.lab.lab import make_disk
from tests.acceptance.cell import AcceptanceCell, eventually
from tests.chaos.campaign import Campaign
from tests.chaos.halts import Halt, Moment
from tests.chaos.model import Expected
from tests.chaos.summary import Summary
from worker.store.model import Consistency, Step

SERVER = 1
STEPS = (Step.FREEZING, Step.SNAPSHOTTING, Step.THAWING)
THAW_SECONDS = 60.0  # from the restart on, on a busy machine
LABELS = {Consistency.AGENT_FROZEN, Consistency.CRASH_CONSISTENT}
KEPT = 4  # snapshots before the oldest is deleted


async def furnish(cell: AcceptanceCell) -> list[Expected]:
    devices = [disk(make_disk(cell.lab.disk_path(name))) for name in ("f0", "f1")]
    server = await cell.add(SERVER, devices, agent=True)
    await server.ready()
    return [Expected(server=server, running=True, runs_by_nature=True, content=0)]


class Freezing:
    """`say` prints progress."""

    def __init__(
        self, campaign: Campaign, cell: AcceptanceCell, expected: Expected, *, say: Callable[[str], None]
    ) -> None:
        self._chance = campaign.chance
        self._halts = campaign.halts
        self._deaths = campaign.deaths
        self._cell = cell
        self._expected = expected
        self._say = say
        self._qemu = cell.pid(expected.server)
        self._kept: list[int] = []
        self.summary = Summary()

    async def run(self, kills: int) -> Summary:
        await eventually(self._agent_answers)
        for number in range(1, kills + 1):
            await self._round(number)
            if self.summary.violations:
                break
        return self.summary

    async def _agent_answers(self) -> bool:
        body = {"server_id": SERVER, "name": "dry", "consistency": "live"}
        _, checked = await self._cell.call("POST", "/api/v1/snapshots/?dry_run=true", body)
        return checked.get("consistency") == Consistency.AGENT_FROZEN

    async def _round(self, number: int) -> None:
        step, moment = self._chance.choice(STEPS), self._chance.choice(list(Moment))
        target = self._chance.choice(["worker", "worker", "libvirtd" if self._deaths.daemon else "worker", "redis"])
        self.summary.moments_wanted += 1
        self._halts.ask(Halt(kind="create", step=step, moment=moment, seconds=self._chance.uniform(0, 0.1)))
        answer = await self._cell.begin_create(self._expected.server, f"n{number}", consistency="live")
        if await self._reached(answer.headers["X-Job-Id"]):
            self.summary.moments_hit += 1
        frozen = self._is_frozen()
        await self._deaths.kill(target, self._expected)
        self.summary.kills[target] += 1
        self.summary.steps[f"{step}, {'frozen' if frozen else 'not frozen'}"] += 1
        self._halts.forget()
        began = await self._deaths.start_again(target)
        await self._look(number, answer.headers["Operation-Location"], answer.body["id"])
        self.summary.settle_seconds.append(time.monotonic() - began)
        self._say(f"round {number:4} {step:12} {moment:6} killed {target:8} {'frozen' if frozen else ''}")

    async def _reached(self, job_id: str) -> bool:
        """Whether the worker stopped at the moment. It never does if the agent did not answer: no freeze was tried."""

        async def halted_or_over() -> bool:
            if self._halts.reached() is not None:
                return True
            _, job = await self._cell.call("GET", f"/api/v1/jobs/{job_id}/")
            return job.get("state") in {"completed", "failed"}

        await eventually(halted_or_over)
        return self._halts.reached() is not None

    def _is_frozen(self) -> bool:
        """Whether the guest may be frozen according to the journal."""
        journal = self._cell.folder / "node" / "journal.sqlite"
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=5)) as database:
            rows = database.execute("SELECT facts FROM jobs WHERE outcome IS NULL").fetchall()
        return any(json.loads(facts)["frozen"] for (facts,) in rows)

    async def _look(self, number: int, job_path: str, snapshot_id: int) -> None:
        server, client = self._expected.server, self._cell.client
        assert client is not None
        try:
            await server.console.write(f"round-{number}", timeout_seconds=THAW_SECONDS)
        except TimeoutError:
            self._violated(number, "the guest was left frozen")
            return
        job = await client.follow(job_path, timeout_seconds=90)
        self.summary.operations[f"{job['state']} {job['consistency']}"] += 1
        if job["state"] != "completed" or job["consistency"] not in LABELS:
            self._violated(number, f"the job ended as {job['state']}, {job['consistency']}: {job['error']}")
            return
        if self._cell.pid(server) != self._qemu:
            self._violated(number, "the server was stopped")
        await server.console.write(f"after-{number}", timeout_seconds=THAW_SECONDS)
        self._kept.append(snapshot_id)
        if len(self._kept) > KEPT:
            await self._cell.delete(server, self._kept.pop(0))
        await self._cell.check_disks()

    def _violated(self, number: int, what: str) -> None:
        self.summary.violations.append(f"round {number}: {what}")
