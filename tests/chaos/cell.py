"""`make cell N=12 SEED=7`: during jobs, nodes are cut off, killed, drained, upgraded, servers move, Redis fails over.

After each event, the operators' calls and the dashboard's pages of both front ends are compared with libvirt, qemu-img
and the nodes' journals. N: events, each kind in turn.
"""

import asyncio
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import libvirt

from deploy.demo.client import Answer
from tests.acceptance.cell import is_sound
from tests.chaos import model
from tests.chaos.comparing import differences, look
from tests.chaos.hosts import Guest, Host
from tests.chaos.many import Many, many
from tests.queueing import until_told
from worker.store.model import JobState
from worker.store.redis_client import connect

PATIENCE_SECONDS = 90.0  # until an expected state is reached, on a busy machine
AGAIN_SECONDS = 0.2
LEFT, MOVING = {"node_unavailable", "server_not_on_node"}, {"server_busy"}
REVOKED = LEFT | MOVING


class Event(StrEnum):
    PARTITION = "partition"  # a node is cut off during a job and finishes it meanwhile
    OUTLAST = "outlast"  # the same, for longer than a job waits for it
    DEATH = "death"  # a node dies during a job; its servers are placed on others, and it comes back
    HANG = "hang"  # a node hangs during a job; its servers are placed on others, and it continues
    APART = "apart"  # both at once: one node is cut off, another one dies
    MIGRATION = "migration"
    DRAIN = "drain"  # a node with a job is drained; its worker restarts before the end
    UPGRADE = "upgrade"  # the worker finishes its job, and another version starts
    CRASH = "crash"  # the worker is killed during a job, and another version continues
    FAILOVER = "failover"  # Redis fails over during a job
    FRONT_END = "front end"  # one of them is killed
    GATEWAY = "gateway"  # one of them is killed


@dataclass(kw_only=True)
class Summary:
    events: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)  # by outcome
    looks: int = 0  # of both front ends, each compared with the machines
    agreed_seconds: list[float] = field(default_factory=list)  # until both front ends were correct
    violations: list[str] = field(default_factory=list)

    def text(self) -> str:
        times = sorted(self.agreed_seconds) or [0.0]
        rows = [
            f"events: {dict(self.events)}",
            f"jobs: {dict(self.jobs)}",
            f"looks: {self.looks}; told as it was: median {times[len(times) // 2]:.1f} s, longest {times[-1]:.1f} s",
            f"violations: {len(self.violations)}",
        ]
        return "\n".join([*rows, *(f"  {violation}" for violation in self.violations)])


async def campaign(
    folder: Path, *, events: Sequence[Event], seed: int, guests_each: int = 2, say: Callable[[str], None] = print
) -> Summary:
    """`folder`: a short path, because sockets are below it."""
    began = time.monotonic()
    async with many(folder, guests_each=guests_each) as cell:
        say(f"{len(cell.hosts)} nodes with {len(cell.guests)} servers running after {time.monotonic() - began:.1f} s")
        return await _Played(cell, random.Random(seed), say).run(events)


class _Played:
    def __init__(self, cell: Many, chance: random.Random, say: Callable[[str], None]) -> None:
        self.summary = Summary()
        self._cell = cell
        self._chance = chance
        self._say = say
        self._tellers = cell.tellers()
        self._paused: set[str] = set()
        self._asked: dict[str, Guest] = {}  # jobs
        self._names = 0
        self._releases = 0

    async def run(self, events: Sequence[Event]) -> Summary:
        plays = {
            Event.PARTITION: self._partition,
            Event.OUTLAST: self._outlast,
            Event.DEATH: self._death,
            Event.HANG: self._hang,
            Event.APART: self._apart,
            Event.MIGRATION: self._migration,
            Event.DRAIN: self._drain,
            Event.UPGRADE: self._upgrade,
            Event.CRASH: self._crash,
            Event.FAILOVER: self._failover,
            Event.FRONT_END: self._front_end,
            Event.GATEWAY: self._gateway,
        }
        await self._compare("at the start")
        for event in events:
            began = time.monotonic()
            await plays[event]()
            self.summary.events[event] += 1
            self._say(f"{event:10} {time.monotonic() - began:5.1f} s, {len(self.summary.violations)} violations")
            if self.summary.violations:
                break
        await self._end()
        return self.summary

    # --- events ---

    async def _partition(self) -> None:
        host = self._some_host()
        job = await self._held_job(host)
        host.cut()
        await self._compare(f"{host.name} is cut off, with its guest off")
        await self._goes_on_and_heals(host, job)

    async def _goes_on_and_heals(self, host: Host, job: str) -> None:
        host.let_go()
        await until_told(lambda: _are_on(host, self._cell.on(host)))
        await self._compare(f"{host.name} has ended its job, cut off")
        host.join()
        await self._ends(job, JobState.COMPLETED)
        await self._compare(f"{host.name} is reached again")

    async def _outlast(self) -> None:
        host = self._some_host(guests=2)
        job = await self._held_job(host)
        waiting = await self._job(next(guest for guest in self._cell.on(host) if guest is not self._asked[job]))
        host.cut()
        await self._compare(f"{host.name} is cut off, with a job that waits")
        await self._ends(waiting, JobState.FAILED, codes=LEFT)
        await self._compare(f"{host.name} was waited for long enough")
        host.let_go()
        host.join()
        await self._ends(job, JobState.COMPLETED)
        await self._compare(f"{host.name} is reached again")

    async def _death(self) -> None:
        host, *others = self._some_hosts(3)
        job = await self._held_job(host)
        await host.die()
        await self._compare(f"{host.name} is dead")
        await self._is_replaced(host, others, job)

    async def _hang(self) -> None:
        host, *others = self._some_hosts(3)
        job = await self._held_job(host)
        host.hang()
        await self._compare(f"{host.name} hangs")
        for guest in self._cell.on(host):  # an operator who starts the guests elsewhere makes sure that none runs here
            if (await asyncio.to_thread(host.domains))[guest.name] == "on":
                host.ask(guest, "destroy")
        await self._is_replaced(host, others, job)

    async def _apart(self) -> None:
        cut, dead, *others = self._some_hosts(4)
        jobs = [await self._held_job(host) for host in (cut, dead)]
        await self._place(self._cell.on(dead)[0], others[0], refused="server_on_live_node")
        cut.cut()
        await dead.die()
        await self._compare(f"{cut.name} is cut off, with its guest off, and {dead.name} is dead")
        await self._goes_on_and_heals(cut, jobs[0])
        await self._is_replaced(dead, others, jobs[1])

    async def _is_replaced(self, host: Host, others: Sequence[Host], job: str) -> None:
        guests = self._cell.on(host)
        for number, guest in enumerate(guests):
            heir = others[number % len(others)]
            await self._place(guest, heir)
            await asyncio.to_thread(heir.take_over, guest, host)
            self._cell.homes[guest.id] = heir
        await self._ends(job, JobState.FAILED, codes=LEFT)
        await self._compare(f"the servers of {host.name} are on {', '.join(heir.name for heir in others)}")
        again = await self._job(guests[0])
        if host.hangs:
            host.go_on()
            host.let_go()
        else:
            await host.boot()
            host.join()
            await host.start_worker()
        await self._ends(again, JobState.COMPLETED)
        await self._compare(f"{host.name} is back, with definitions of guests that others have")
        for guest in guests:
            with suppress(libvirt.libvirtError):  # the worker may already have done so
                host.ask(guest, "undefine")
        await self._compare(f"{host.name} is back and tidied up")

    async def _migration(self) -> None:
        source = self._some_host()
        target = self._chance.choice([host for host in self._cell.hosts if host is not source])
        guest = self._chance.choice(self._cell.on(source))
        command = source.migration_to(guest, target)
        virsh = await asyncio.create_subprocess_exec(
            *map(str, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        job = await self._job(guest, refused=REVOKED)
        _, trouble = await virsh.communicate()
        if virsh.returncode == 0:
            self._cell.homes[guest.id] = target
        elif b"snapshot" not in trouble:  # the job was first and holds the server
            self.summary.violations.append(f"{guest.name} does not migrate: {trouble.decode()}")
        if job:
            await self._ends(job, codes=REVOKED)
        await self._compare(f"{guest.name} went from {source.name} to {self._cell.homes[guest.id].name}")
        await self._ends(await self._job(guest), JobState.COMPLETED)

    async def _drain(self) -> None:
        host = self._some_host()
        job = await self._held_job(host)
        await self._operates("POST", f"nodes/{host.name}/pause/", {"reason": "a new disk"})
        self._paused.add(host.name)
        await self._compare(f"{host.name} is draining")
        host.let_go()
        await self._ends(job, JobState.COMPLETED)
        waiting = await self._job(self._cell.on(host)[0])
        await host.stop_worker()
        await host.start_worker()
        await self._compare(f"{host.name} is drained and was started again")
        await self._operates("POST", f"nodes/{host.name}/resume/", {"reason": "done"})
        self._paused.remove(host.name)
        await self._ends(waiting, JobState.COMPLETED)
        await self._compare(f"{host.name} works again")

    async def _upgrade(self) -> None:
        host = self._some_host()
        job = await self._held_job(host)
        stopping = asyncio.create_task(host.stop_worker())
        host.let_go()
        await stopping
        host.version = self._next_version()
        await host.start_worker()
        await self._ends(job, JobState.COMPLETED)
        await self._compare(f"{host.name} has {host.version}")

    async def _crash(self) -> None:
        host = self._some_host()
        job = await self._held_job(host)
        await host.worker_dies()
        host.version = self._next_version()
        await host.start_worker()
        await self._ends(job, JobState.COMPLETED)
        await self._compare(f"{host.name} has {host.version}, after a crash")

    async def _failover(self) -> None:
        redis, host = self._cell.redis, self._some_host()
        job = await self._held_job(host)
        async with asyncio.timeout(PATIENCE_SECONDS):
            old = await redis.ready()
        redis.processes[old].kill()
        host.let_go()
        await self._ends(job, JobState.COMPLETED)
        await self._compare(f"Redis on machine {old} is dead")
        redis.start_again(old)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await redis.ready()

    async def _front_end(self) -> None:
        place = self._chance.randrange(len(self._cell.front_ends))
        front_end = self._cell.front_ends[place]
        front_end.kill()
        await front_end.ended()
        await self._ends(await self._job(self._cell.on(self._some_host())[0]), JobState.COMPLETED)
        self._cell.front_ends[place] = await self._cell.front_end(place)
        await self._compare(f"front end {place} was started again")

    async def _gateway(self) -> None:
        place, host = self._chance.randrange(len(self._cell.gateways)), self._some_host()
        job = await self._held_job(host)
        self._cell.gateways[place].kill()
        await self._cell.gateways[place].ended()
        host.let_go()
        await self._ends(job, JobState.COMPLETED)
        await self._compare(f"gateway {place} is dead")
        self._cell.gateways[place] = await self._cell.gateway(place)

    def _some_host(self, *, guests: int = 1) -> Host:
        return self._chance.choice([host for host in self._cell.hosts if len(self._cell.on(host)) >= guests])

    def _some_hosts(self, count: int) -> list[Host]:
        """Hosts that have guests."""
        return self._chance.sample([host for host in self._cell.hosts if self._cell.on(host)], count)

    def _next_version(self) -> str:
        self._releases += 1
        return f"99.{self._releases}.0"

    # --- jobs ---

    async def _held_job(self, host: Host) -> str:
        """A create on that host that stops after its guest is off."""
        host.hold()
        job = await self._job(self._chance.choice(self._cell.on(host)))
        await host.is_holding()
        return job

    async def _job(self, guest: Guest, *, refused: Sequence[str] | set[str] = ()) -> str:
        """Create a snapshot. Returns its job, or None if it was refused with one of `refused`."""
        self._names += 1
        body = {"server_id": guest.id, "name": f"n{self._names}"}
        await self._has_room(guest)
        answer = await self._insist("POST", "/api/v1/snapshots/", body)
        if answer.status != HTTPStatus.CREATED:
            if answer.body["code"] not in refused:
                raise AssertionError(f"a create for {guest.name} was refused: {answer.body}")
            return ""
        job: str = answer.headers["X-Job-Id"]
        self._asked[job] = guest
        return job

    async def _has_room(self, guest: Guest) -> None:
        """Delete the oldest snapshot of a server that has reached its limit."""
        listed = (await self._insist("GET", f"/api/v1/snapshots/?server_id={guest.id}&page_size=500")).body["results"]
        if len(listed) >= 4:
            oldest = min(one["id"] for one in listed)
            await self._insist("DELETE", f"/api/v1/snapshots/{oldest}/")
            await until_told(lambda: self._is_free(guest))

    async def _is_free(self, guest: Guest) -> bool:
        return (await self._insist("GET", f"/api/v1/servers/{guest.id}/")).body["job"] is None

    async def _ends(self, job_id: str, state: JobState | None = None, *, codes: set[str] | None = None) -> None:
        """Wait until the job ends with that outcome, or with a failure that has one of these codes."""
        job: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while job.get("state") not in {JobState.COMPLETED, JobState.FAILED}:
                    job = (await self._insist("GET", f"/api/v1/jobs/{job_id}/")).body
                    await asyncio.sleep(AGAIN_SECONDS)
        except TimeoutError:
            self.summary.violations.append(f"job {job_id} has not ended: {job}")
            return
        code = (job["error"] or {}).get("code", "")
        self.summary.jobs[code or job["state"]] += 1
        if (state and job["state"] != state) or (code and code not in (codes or set())):
            self.summary.violations.append(f"job {job_id} ended as {job}, expected {state} {codes or ''}")

    async def _insist(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        """Repeat the call until it is answered without a 5xx and its server is published and not busy."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with suppress(aiohttp.ClientError, TimeoutError):
                    answer = await self._cell.client.call(method, path, body)
                    if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                        return answer
                await asyncio.sleep(AGAIN_SECONDS)

    async def _operates(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        answer = await self._cell.operator.call(method, f"/api/v1/ops/{path}", body)
        assert answer.status == HTTPStatus.OK, answer.body
        return answer

    async def _place(self, guest: Guest, host: Host, *, refused: str = "") -> None:
        path = f"/api/v1/ops/servers/{guest.id}/node/"
        answer = await self._cell.operator.call("PUT", path, {"node": host.name})
        code = answer.body.get("code", "")
        if code != refused:
            self.summary.violations.append(f"{guest.name} to {host.name}: {answer.status} {answer.body}")

    # --- checks ---

    async def _compare(self, when: str) -> None:
        """Wait until both front ends are correct."""
        began, found = time.monotonic(), list[str]()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while found := await self._of_nodes() or await self._differences():  # noqa: ASYNC110 - others decide
                    await asyncio.sleep(AGAIN_SECONDS)
        self.summary.looks += 1
        self.summary.agreed_seconds.append(time.monotonic() - began)
        self.summary.violations += [f"{when}: {difference}" for difference in found]
        self._say(f"           {when}: {self.summary.agreed_seconds[-1]:.1f} s")
        for difference in found:
            self._say(f"             {difference}")

    async def _of_nodes(self) -> list[str]:
        """Compare which nodes are alive. This comes first, because it takes longest and needs the fewest calls."""
        heard = {host.name: host.is_heard for host in self._cell.hosts}
        try:
            alive = await self._tellers[0].alive()
        except (aiohttp.ClientError, TimeoutError) as error:
            return [f"a front end does not answer: {error}"]
        return [f"alive are said to be {alive}, really {heard}"] if alive != heard else []

    async def _differences(self) -> list[str]:
        cell = self._cell
        truth = await look(cell.hosts, cell.guests, cell.homes, paused=self._paused)
        try:
            told = await asyncio.gather(*(teller.asked(cell.guests) for teller in self._tellers))
        except (aiohttp.ClientError, TimeoutError) as error:
            return [f"a front end does not answer: {error}"]
        return [f"front end {place}: {found}" for place, one in enumerate(told) for found in differences(truth, one)]

    async def _end(self) -> None:
        """Check that each job was reported and done once, and that each disk is sound."""
        redis = connect(self._cell.redis.settings)
        told = Counter(
            entry[b"job"].decode()
            for _, entry in await redis.xrange("events")
            if entry[b"state"].decode() in {JobState.COMPLETED, JobState.FAILED}
        )
        await redis.aclose(close_connection_pool=True)
        done = Counter(end.job_id for host in self._cell.hosts for end in model.ends(host.journal, after=0))
        found = self.summary.violations
        found += [f"job {job} was told {told[job]} times" for job in self._asked if told[job] != 1]
        found += [f"job {job} was done {times} times" for job, times in done.items() if times > 1]
        found += [f"{host.name} owes a job" for host in self._cell.hosts if model.owed(host.journal)]
        found += [
            f"{guest.disk.name} is not sound"
            for guest in self._cell.guests.values()
            if not is_sound(guest.disk, under_guest=True)
        ]


async def _are_on(host: Host, guests: Sequence[Guest]) -> bool:
    domains = await asyncio.to_thread(host.domains)
    return all(domains.get(guest.name) == "on" for guest in guests)


def main() -> int:
    rounds, seed = int(os.environ.get("N") or len(Event)), int(os.environ.get("SEED") or secrets.randbelow(10_000))
    chance, events = random.Random(seed), list(Event)
    chance.shuffle(events)
    folder = Path(tempfile.mkdtemp(prefix="many-", dir="/tmp"))
    print(f"{rounds} events, SEED={seed}, in {folder}")
    chosen = [events[number % len(events)] for number in range(rounds)]
    summary = asyncio.run(campaign(folder, events=chosen, seed=seed))
    print(summary.text())
    if summary.violations:
        print(f"kept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
