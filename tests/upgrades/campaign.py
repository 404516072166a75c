"""Upgrade and downgrade a cell under load: front ends, gateways and nodes, one after the other."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from drivers.base import Power
from drivers.fake_state import FakeServer
from tests.upgrades.cell import FIRST, NODES, SERVERS, Cell, running
from tests.upgrades.load import Restoring
from tests.upgrades.releases import Release
from worker.store.model import JobState

ENDS_SECONDS = 60.0  # until started jobs have ended
LOADED = [first + n for first in FIRST.values() for n in range(1, SERVERS)]


@dataclass(kw_only=True)
class Upgrade:
    """The results. Each violation is a broken promise."""

    cell: Cell
    say: Callable[[str], None] = print
    customers: list[Restoring] = field(default_factory=list)
    held: list[str] = field(default_factory=list)  # jobs that were running when their node changed
    violations: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Half of the customers call each front end."""
        token = self.cell.customer_token
        self.customers = [
            Restoring(url=url, token=token, servers=LOADED[place :: len(self.cell.urls)])
            for place, url in enumerate(self.cell.urls)
        ]
        async with asyncio.TaskGroup() as group:
            for some in self.customers:
                group.create_task(some.run())
            try:
                yield
            finally:
                for some in self.customers:
                    some.stop()

    def text(self) -> str:
        errors = sum((some.errors for some in self.customers), Counter())
        rows = [
            f"jobs admitted: {sum(len(some.admitted) for some in self.customers) + len(self.held)}",
            f"jobs that were at work while their node changed: {len(self.held)}",
            f"errors that customers saw, and repeated the call: {dict(errors)}",
            f"violations: {len(self.violations)}",
        ]
        return "\n".join([*rows, *(f"  {violation}" for violation in self.violations)])

    async def up(self, release: Release) -> None:
        await self.change_front_ends(release)
        await self.change_gateways(release)
        await self.change_nodes(release)

    async def up_from_the_first(self, first: Release, release: Release) -> None:
        """Upgrade from a release without gateways in the order of deploy/README.md. Redis keeps the nodes' account
        until the last node is upgraded."""
        self.cell.allow(first, beside=release)
        await self.change_front_ends(release)
        self.cell.allow(first, release)
        await self.cell.start_gateways(release)
        await self.cell.let_nodes_in()
        self.say(f"gateways run {release.name}")
        await self.change_nodes(release)
        self.cell.forbid("worker")

    async def back_to_the_first(self, first: Release, release: Release) -> None:
        """Downgrade to the first release, after draining each node, because that release does not know all steps."""
        self.cell.allow(release, first, beside=release)
        for node in NODES:
            await self._admitted()
            await self._drain(node)
            await self.cell.children[f"worker-{node}"].stop()
            await self.cell.start_node(node, first)
            await self._order(f"nodes/{node}/resume/", reason="it has the previous release")
            self.say(f"node {node} runs {first.name}")
        for place in range(len(self.cell.ports)):
            await self.cell.children[f"gateway-{place}"].stop()
        await self.change_front_ends(first)
        await self._admitted()
        self.cell.allow(first)

    async def back(self, release: Release) -> None:
        await self.change_nodes(release)
        await self.change_gateways(release)
        await self.change_front_ends(release)

    async def change_front_ends(self, release: Release) -> None:
        for place in range(len(self.cell.ports)):
            await self._admitted()
            await self.cell.children[f"api-{place}"].stop()
            await self.cell.start_front_end(place, release)
            self.say(f"front end {place} runs {release.name}")

    async def change_gateways(self, release: Release) -> None:
        for place in range(len(self.cell.ports)):
            await self._admitted()
            await self.cell.children[f"gateway-{place}"].stop()
            await self.cell.start_gateway(place, release)
            self.say(f"gateway {place} runs {release.name}")

    async def change_nodes(self, release: Release) -> None:
        """Stop the worker of the first node and kill that of the second. Both have running jobs."""
        for node, number in zip(NODES, (signal.SIGTERM, signal.SIGKILL), strict=True):
            await self._admitted()
            job = await self._hold(node)
            await self.cell.end_node(node, number)
            self.cell.work_slowly(node)
            began = time.monotonic()
            await self.cell.start_node(node, release)
            await self._ended(job)
            self.say(
                f"node {node} is of {release.name}; its job ended {time.monotonic() - began:.1f} s after the start"
            )

    async def look(self, *, old_workers: bool = False) -> None:
        """Check that each admitted job was completed once, each guest is running, and no disk has other snapshots.
        `old_workers`: whether workers from before gateways have run."""
        cell, violations = self.cell, self.violations
        for some in self.customers:
            violations += some.violations
        await self._all_ended()
        completed, admitted = cell.completed(), {*self.held, *(job for some in self.customers for job in some.admitted)}
        violations += [f"job {job} was admitted and not completed" for job in admitted - completed.keys()]
        violations += [f"job {job} was completed {times} times" for job, times in completed.items() if times > 1]
        held = {int(tag.removeprefix("vps-")) for tags in map(_tags, cell.servers().values()) for tag in tags}
        listed = (await cell.customer().call("GET", "/api/v1/snapshots/?page_size=500")).body["results"]
        if held != {snapshot["id"] for snapshot in listed}:
            violations.append(f"the disks have {held}, the API lists {listed}")
        violations += [f"{s.name} is {s.power}" for s in cell.servers().values() if s.power is not Power.ON]
        violations += [f"an error was logged: {e}" for e in cell.errors() if not (old_workers and _lacks_record(e))]

    async def _admitted(self) -> None:
        """Wait until each front end has admitted one more job."""
        now = time.monotonic()
        async with asyncio.timeout(ENDS_SECONDS):
            for some in self.customers:
                await some.admits(since=now)

    async def _hold(self, node: str) -> str:
        """A job that has started on the node and can continue only in another process."""
        server = FIRST[node]
        self.cell.work_slowly(node, hang=(server,))
        client = self.cell.customer()
        made = await client.call("POST", "/api/v1/snapshots/", {"server_id": server, "name": f"held-{len(self.held)}"})
        assert made.status == HTTPStatus.CREATED, made.body
        job = made.headers["X-Job-Id"]
        self.held.append(job)
        async with asyncio.timeout(ENDS_SECONDS):
            while await self._step(job) != "snapshotting":  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(0.02)
        return job

    async def _drain(self, node: str) -> None:
        await self._order(f"nodes/{node}/pause/", reason="upgrade")
        path = f"/api/v1/ops/jobs/?node={node}&state={JobState.IN_PROGRESS}"
        async with asyncio.timeout(ENDS_SECONDS):
            while (await self.cell.operator().call("GET", path)).body["results"]:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)

    async def _order(self, path: str, **body: str) -> None:
        answer = await self.cell.operator().call("POST", f"/api/v1/ops/{path}", body)
        assert answer.status == HTTPStatus.OK, answer.body

    async def _step(self, job: str) -> str | None:
        answer = await self.cell.operator().call("GET", f"/api/v1/ops/jobs/{job}/")
        return answer.body["steps"][-1]["step"] if answer.body["steps"] else None

    async def _ended(self, job: str) -> None:
        done = await self.cell.operator().follow(f"/api/v1/ops/jobs/{job}/", timeout_seconds=ENDS_SECONDS)
        if done["state"] != JobState.COMPLETED:
            self.violations.append(f"a running job did not complete: {done}")

    async def _all_ended(self) -> None:
        async with asyncio.timeout(ENDS_SECONDS):
            for state in (JobState.QUEUED, JobState.IN_PROGRESS):
                path = f"/api/v1/ops/jobs/?state={state}"
                while (await self.cell.operator().call("GET", path)).body["results"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)


def _lacks_record(error: Mapping[str, Any]) -> bool:
    """Whether it is what a worker from before gateways logs for a job of a new front end, which writes no record of
    arq."""
    program, _, _ = error["program"].partition("-")
    return (program, error["event"]) == ("worker", "queue.record_unusable")


def _tags(server: FakeServer) -> set[str]:
    return {tag for disk in server.disks.values() for tag in disk.tags if not tag.startswith("vps-safety-")}


async def up_and_back(folder: Path, before: Release, after: Release, *, say: Callable[[str], None] = print) -> Upgrade:
    """`folder`: a short path, because sockets are below it."""
    before.check()
    after.check()
    async with running(folder, before) as cell:
        upgrade = Upgrade(cell=cell, say=say)
        async with upgrade.under_load():
            if before.has_gateway:
                await upgrade.up(after)
                await upgrade.back(before)
            else:
                await upgrade.up_from_the_first(before, after)
                await upgrade.back_to_the_first(before, after)
        await upgrade.look(old_workers=not before.has_gateway)
    return upgrade
