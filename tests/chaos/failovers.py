"""`make failovers N=20 SEED=7`: under load, Redis's primary is killed, frozen or cut off, and front ends are killed.

WAIT=0: answers do not wait for a replica. MIN=0: the primary also accepts writes without replicas. HOW=split: only that
fault.
"""

import asyncio
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tests.chaos.customers import Customers
from tests.chaos.redundant import SERVERS, Redundant, redundant
from worker.store.model import JobState

FIRST_SERVER = 12345
LOAD_SECONDS = 1.0  # load before a fault
BACK_SECONDS = 60.0  # until the service must work again
BEHIND_SECONDS = 2.0  # the promise after a failover, on an idle machine
LATE_SHARE = 0.1  # of the failovers, which may take longer: the machine has other work


class Fault(StrEnum):
    KILL = "kill"
    FREEZE = "freeze"
    CUT = "cut"  # from all machines
    SPLIT = "split"  # from the other machines, but not from front ends and gateways


@dataclass(kw_only=True)
class Summary:
    faults: Counter[str] = field(default_factory=Counter)
    failover_seconds: list[float] = field(default_factory=list)
    behind_seconds: list[float] = field(default_factory=list)
    admitted: int = 0
    create_seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    front_ends_killed: int = 0
    most_errors: int = 0  # of one call with its repetitions, while front ends were killed
    violations: list[str] = field(default_factory=list)

    @property
    def late(self) -> int:
        """How many failovers missed the promise."""
        return sum(seconds > BEHIND_SECONDS for seconds in self.behind_seconds)

    def text(self) -> str:
        rows = [
            f"faults: {dict(self.faults)}; jobs admitted: {self.admitted}",
            f"a create that was admitted at once: {_spread(self.create_seconds)}",
            f"failover: {_spread(self.failover_seconds)}",
            f"first job after it: {_spread(self.behind_seconds)}; {self.late} later than {BEHIND_SECONDS:.0f} s",
            f"front ends killed: {self.front_ends_killed}; most errors of one call: {self.most_errors}",
            f"errors that customers saw: {dict(self.errors)}",
            f"violations: {len(self.violations)}",
        ]
        return "\n".join([*rows, *(f"  {violation}" for violation in self.violations)])


def _spread(seconds: Sequence[float]) -> str:
    times = sorted(seconds) or [0.0]
    return f"median {times[len(times) // 2]:.3f} s, longest {times[-1]:.1f} s"


async def campaign(
    folder: Path,
    *,
    faults: Sequence[Fault],
    wait_for_replicas: int = 1,
    min_replicas: int = 1,
    say: Callable[[str], None] = print,
) -> Summary:
    """Each of the faults in turn, then a kill of each front end. `folder`: a short path: sockets are below it."""
    async with redundant(folder, wait_for_replicas=wait_for_replicas, min_replicas=min_replicas) as cell:
        servers = [FIRST_SERVER + n for n in range(SERVERS)]
        customers = Customers(url=cell.url, token=cell.token, servers=servers)
        played = _Played(cell, customers, say)
        load = asyncio.create_task(customers.run())
        try:
            for fault in faults:
                await played.fail_over(fault)
            await played.kill_front_ends()
            customers.stop()
            async with asyncio.timeout(BACK_SECONDS):
                await load
        finally:
            load.cancel()
            await asyncio.wait({load})
        await played.look()
        return played.summary


class _Played:
    def __init__(self, cell: Redundant, customers: Customers, say: Callable[[str], None]) -> None:
        self.summary = Summary(
            errors=customers.errors, violations=customers.violations, create_seconds=customers.create_seconds
        )
        self._cell = cell
        self._customers = customers
        self._say = say

    async def fail_over(self, fault: Fault) -> None:
        redis, customers = self._cell.redis, self._customers
        async with asyncio.timeout(BACK_SECONDS):
            old = await redis.ready()
            await customers.admits(since=time.monotonic())
        await asyncio.sleep(LOAD_SECONDS)
        began, before = time.monotonic(), len(customers.admitted)
        self._break(fault, old)
        async with asyncio.timeout(BACK_SECONDS):
            while await redis.primary(without=old) is None:  # noqa: ASYNC110 - Sentinels decide
                await asyncio.sleep(0.02)
            over = time.monotonic()
            back = await customers.admits(since=over)
        self.summary.faults[fault] += 1
        self.summary.failover_seconds.append(over - began)
        self.summary.behind_seconds.append(back - over)
        self._mend(fault, old)
        async with asyncio.timeout(BACK_SECONDS):
            await redis.ready()
        self._say(
            f"{fault:7} of machine {old}: failover {over - began:.1f} s, first job {back - over:.1f} s later, "
            f"whole after {time.monotonic() - began:.1f} s; {before} jobs admitted before"
        )

    def _break(self, fault: Fault, place: int) -> None:
        match fault:
            case Fault.KILL:
                self._cell.redis.processes[place].kill()
            case Fault.FREEZE:
                self._cell.redis.processes[place].send_signal(signal.SIGSTOP)
            case Fault.CUT:
                self._cell.network.cut(place)
            case Fault.SPLIT:
                self._cell.network.split(place)

    def _mend(self, fault: Fault, place: int) -> None:
        match fault:
            case Fault.KILL:
                self._cell.redis.start_again(place)
            case Fault.FREEZE:
                self._cell.redis.processes[place].send_signal(signal.SIGCONT)
            case Fault.CUT:
                self._cell.network.join(place)
            case Fault.SPLIT:
                self._cell.network.heal(place)

    async def kill_front_ends(self) -> None:
        cell, customers = self._cell, self._customers
        async with asyncio.timeout(BACK_SECONDS):
            await customers.admits(since=time.monotonic())
            await asyncio.sleep(LOAD_SECONDS)
            customers.forget_errors()
            for place in range(len(cell.front_ends)):
                times = cell.times_up_again(place)
                cell.front_ends[place].kill()
                await cell.front_ends[place].ended()
                killed = time.monotonic()
                await customers.admits(since=killed)
                cell.front_ends[place] = await cell.front_end(place)
                self.summary.front_ends_killed += 1
                while cell.times_up_again(place) == times:  # noqa: ASYNC110 - a file tells nobody
                    await asyncio.sleep(0.05)
                await asyncio.sleep(LOAD_SECONDS)
        self.summary.most_errors = customers.most_errors_of_one
        if customers.most_errors_of_one > 1:
            self.summary.violations.append(
                f"a call failed {customers.most_errors_of_one} times: a front end was killed"
            )

    async def look(self) -> None:
        """Check that each admitted job was done exactly once, and that nothing else was done."""
        cell, customers, violations = self._cell, self._customers, self.summary.violations
        self.summary.admitted = len(customers.admitted)
        await self._all_ended()
        completed = cell.completed()
        for job_id in customers.admitted:
            if job_id not in completed:
                answer = await cell.client.call("GET", f"/api/v1/jobs/{job_id}/")
                violations.append(f"job {job_id} was admitted but not done: {answer.status} {answer.body}")
        violations += [f"job {job_id} was done {times} times" for job_id, times in completed.items() if times > 1]
        held = sum(len(tags) for tags in cell.tags().values())
        listed = (await cell.client.call("GET", "/api/v1/snapshots/")).body["count"]
        if held != listed:
            violations.append(f"the disks have {held} snapshots, the API lists {listed}")

    async def _all_ended(self) -> None:
        try:
            async with asyncio.timeout(BACK_SECONDS):
                for state in (JobState.QUEUED, JobState.IN_PROGRESS):
                    path = f"/api/v1/ops/jobs/?state={state}"
                    while (left := await self._cell.operator.call("GET", path)).body["results"]:  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
        except TimeoutError:
            self.summary.violations.append(f"jobs have not ended: {left.body}")


def main() -> int:
    rounds, seed = int(os.environ.get("N") or "20"), int(os.environ.get("SEED") or secrets.randbelow(10_000))
    wait, least = int(os.environ.get("WAIT") or "1"), int(os.environ.get("MIN") or "1")
    kinds = [Fault(os.environ["HOW"])] if os.environ.get("HOW") else list(Fault)
    faults = [kinds[n % len(kinds)] for n in range(rounds)]
    random.Random(seed).shuffle(faults)
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))
    print(f"{rounds} failovers, SEED={seed}, WAIT={wait}, MIN={least}, in {folder}")
    summary = asyncio.run(campaign(folder, faults=faults, wait_for_replicas=wait, min_replicas=least))
    print(summary.text())
    print(f"load of the machine: {os.getloadavg()[2]:.1f} in the last 15 minutes, on {os.cpu_count()} CPUs")
    if summary.late > LATE_SHARE * rounds:
        print(f"the service was back too late after {summary.late} failovers")
    if summary.violations or summary.late > LATE_SHARE * rounds:
        print(f"kept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
