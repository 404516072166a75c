"""Rounds in which a server with snapshots moves between two nodes while a job runs for it and a process is killed."""

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import libvirt

from deploy.demo.client import Answer
from tests.acceptance.cell import AcceptanceCell
from tests.chaos import model
from tests.chaos.asking import Asking
from tests.chaos.deaths import LOST
from tests.chaos.learning import Learning
from tests.chaos.model import Expected
from tests.chaos.summary import Summary
from tests.libvirtd import DaemonLab
from tests.migrating import LIVE, PATIENCE_SECONDS, SERVER, Node, Two
from worker.housekeeping import ROUND_SECONDS
from worker.store.outcome import DELETE_RETRY_SECONDS

WORKERS = ("the source's worker", "the target's worker")
QEMUS = SOURCE_QEMU, TARGET_QEMU = ("the source's qemu", "the target's qemu")
LIBVIRTDS = ("the source's libvirtd", "the target's libvirtd")
VIRSH, REDIS = "virsh", "redis"
TARGETS = (*WORKERS, *WORKERS, *QEMUS, *QEMUS, TARGET_QEMU, *LIBVIRTDS, VIRSH, VIRSH, REDIS, LOST)
# After a kill of these, libvirt may leave the server off or paused, because it prefers no running guest to two.
MAY_TURN_OFF = (*QEMUS, *LIBVIRTDS, VIRSH)
REFUSALS = {"server_busy", "server_not_on_node", "node_unavailable"}  # of a job during or after the move
AGAIN_SECONDS = 2 * ROUND_SECONDS + DELETE_RETRY_SECONDS
LIBVIRT_SECONDS = 3.0  # until libvirt resumes the guest after a failed migration
MOMENTS_SECONDS = 3.0  # in which everything starts; a migration takes about as long


class Migrations:
    """`say` prints progress. `chance` makes all random decisions."""

    def __init__(
        self, two: Two, cell: AcceptanceCell, expected: Expected, *, chance: random.Random, say: Callable[[str], None]
    ) -> None:
        self.summary = Summary()
        self._two = two
        self._cell = cell
        self._expected = expected
        self._chance = chance
        self._say = say
        self._asking = Asking(cell, chance)
        self._nodes = (two.first, two.second)
        self._labs = {node.name: DaemonLab(node.daemon) for node in self._nodes}
        self._learning = {
            node.name: Learning(cell, [expected], self.summary, refusals=REFUSALS) for node in self._nodes
        }
        self._rounds = 0

    async def run(self, kills: int) -> Summary:
        """Run until that many processes were killed, or a check fails."""
        for node in self._nodes:
            await node.start_worker()
        await self._two.until_on(self._two.first)
        await asyncio.to_thread(self._write, self._two.first)
        while self.summary.killed < kills and not self.summary.violations:
            await self._round()
        return await self._end()

    async def _round(self) -> None:
        self._rounds += 1
        chance, source = self._chance, self._at()[0]
        target = next(node for node in self._nodes if node is not source)
        if chance.random() < 0.4:
            await asyncio.to_thread(self._write, source)
        dying = chance.choice(TARGETS) if chance.random() < 0.9 else "nothing"
        operation = self._asking.possible(self._expected)
        asking = asyncio.create_task(self._ask(operation, after_seconds=chance.random() * MOMENTS_SECONDS))
        await asyncio.sleep(chance.random() * MOMENTS_SECONDS / 2)
        ways = ("--bandwidth", chance.choice(("1", "2", "4")), *chance.choice(((), ("--p2p",))))
        virsh = self._two.migration(*LIVE, *ways, back=source is self._two.second)
        at = await self._kill(dying, source, target, virsh)
        await asyncio.wait_for(asyncio.to_thread(virsh.communicate), PATIENCE_SECONDS)
        went = virsh.returncode == 0
        answer = await asking
        restarted = await self._start_again(dying)
        await self._until(lambda: not any(node.is_sending() for node in self._nodes))  # some need no virsh
        host = await self._settle(dying, source, target, went=went)
        known = time.monotonic()
        outcome = self._learn(dying, host) or await self._of_no_node(answer, dying)
        way = "moved" if host is target else "stayed"
        self.summary.operations.update((f"{operation} {outcome}", f"migration {way}"))
        refused = operation == "delete" and outcome != "completed"  # its node retries it later
        await self._look(host, within_seconds=AGAIN_SECONDS if refused else PATIENCE_SECONDS)
        self._learn(dying, host)  # the retried delete
        self.summary.settle_seconds.append((known if refused else time.monotonic()) - restarted)
        await self._restore(host)
        what = f"round {self._rounds:4} {source.name} to {target.name} {way} {operation:7} killed {dying} ({at})"
        self._say(f"{what:90} {self.summary.settle_seconds[-1]:5.1f} s {outcome}")

    async def _ask(self, operation: str, *, after_seconds: float) -> Answer | None:
        await asyncio.sleep(after_seconds)
        return await self._asking.ask(operation, self._expected)

    async def _kill(self, dying: str, source: Node, target: Node, virsh: "subprocess.Popen[str]") -> str:
        """Kill at any moment of the migration. Returns the step of the job at that moment."""
        if dying == TARGET_QEMU:
            with suppress(TimeoutError):  # the migration was refused
                await asyncio.wait_for(target.gets_it(), MOMENTS_SECONDS)
        await asyncio.sleep(self._chance.random() * MOMENTS_SECONDS / 2)
        jobs = [job for node in self._nodes for job in model.under_way(_journal(node)).values()]
        when = "while it moved" if virsh.poll() is None else "before or after"
        step = f"{jobs[0].step if jobs else 'no job'} {when}"
        node = source if dying.startswith("the source") else target
        if dying == "nothing" or not await self._die(dying, node, virsh.pid):
            return "not killed"
        self.summary.kills[dying] += 1
        self.summary.steps[step] += 1
        return step

    async def _die(self, dying: str, node: Node, virsh: int) -> bool:
        expected = self._expected
        if dying in WORKERS:
            expected.change_was_killed = True
            await node.worker_ends()
        elif dying in LIBVIRTDS:
            await asyncio.to_thread(node.daemon.kill)
        elif dying in {REDIS, LOST}:
            await asyncio.to_thread(self._cell.redis.kill)
        else:
            pid = virsh if dying == VIRSH else node.qemu()
            if pid is None:
                return False
            expected.qemu_was_killed |= dying in QEMUS
            os.kill(pid, signal.SIGKILL)
        return True

    async def _start_again(self, dying: str) -> float:
        """Start everything that was killed or ended because of it. Returns the time from which the worker could
        work."""
        redis = self._cell.redis
        if redis.process is None:
            if dying == LOST:
                redis.lose_data()
            await asyncio.to_thread(redis.start)
        for node in self._nodes:
            if node.daemon.pid is None:
                await node.daemon.start()
        ready = time.monotonic()
        for node in self._nodes:
            if node.worker is None or node.worker.process.returncode is not None:
                await node.worker_ends()
                await node.start_worker()
        if dying == LOST:  # the token was lost with the data
            await self._cell.enroll()
            self._expected.undoable = None
        return ready

    async def _settle(self, dying: str, source: Node, target: Node, *, went: bool) -> Node:
        """Wait until no job is running and the store is up to date. Returns the server's place."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._jobs_have_ended()
        except TimeoutError:
            self._violated("a job does not end")
        await self._until(lambda: bool(self._at()), within_seconds=LIBVIRT_SECONDS)
        if not self._at():
            await self._start_by_hand(dying, target if went else source, *(target, source), went=went)
        hosts = self._at()
        if len(hosts) != 1:
            self._violated(f"it runs on {len(hosts)} nodes")
        elif went and hosts[0] is not target:
            self._violated("virsh says that it moved, and it did not")
        host = hosts[0] if hosts else source
        try:
            await self._two.until_on(host)
            for node in self._nodes:  # an operator completes what a killed libvirt has left
                if node is not host:
                    with suppress(libvirt.libvirtError):  # nothing is left
                        node.ask("undefine")
            await self._two.until_on(host)
        except TimeoutError:
            self._violated(f"the store does not learn that it is on {host.name}")
        return host

    async def _start_by_hand(self, dying: str, *nodes: Node, went: bool) -> None:
        """Start the server on the first node that has it, as an operator would."""
        whole = (dying == TARGET_QEMU and not went) or (dying == SOURCE_QEMU and went)
        if dying not in MAY_TURN_OFF or whole:
            self._violated("it is off")
        self.summary.operations["started by hand"] += 1
        for node in nodes:
            with suppress(libvirt.libvirtError):  # it has none, or is only receiving one
                if node.ask("isActive"):
                    node.ask("destroy")
                await asyncio.to_thread(node.ask, "create")
                return

    async def _jobs_have_ended(self) -> None:
        while await self._is_busy():  # noqa: ASYNC110 - other processes decide
            await asyncio.sleep(0.02)

    async def _is_busy(self) -> bool:
        if any(model.owed(_journal(node)) for node in self._nodes):
            return True
        return await self._two.field("server", SERVER, "job") != [""]

    async def _until(self, is_so: Callable[[], bool], *, within_seconds: float = PATIENCE_SECONDS) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while not await asyncio.to_thread(is_so):  # noqa: ASYNC110 - libvirt decides
                    await asyncio.sleep(0.02)

    def _learn(self, dying: str, host: Node) -> str:
        """Learn the outcomes of the jobs, each on one node."""
        self._cell.lab = self._labs[host.name]
        outcomes = [
            learning.learn(_journal(node), {}, may_vanish=dying == LOST, may_fail=False).get(SERVER)
            for node in self._nodes
            if (learning := self._learning[node.name])
        ]
        began = [outcome for outcome in outcomes if outcome]
        if len(began) > 1:
            self._violated(f"a job was begun on both nodes: {began}")
        return " ".join(began)

    async def _of_no_node(self, answer: Answer | None, dying: str) -> str:
        """The state of a job that no node has started."""
        if answer is None:
            return "no answer"
        if answer.status >= HTTPStatus.BAD_REQUEST:
            return f"refused: {answer.body['code']}"
        status, job = await self._cell.call("GET", answer.headers["Operation-Location"])
        error: Any = job.get("error") or {}
        if status != HTTPStatus.OK and dying == LOST:
            return "lost"
        if error.get("code") not in REFUSALS:
            self._violated(f"an accepted job has vanished: {status} {job}")
        return "given up"

    async def _look(self, host: Node, *, within_seconds: float) -> None:
        """Wait until everything is as expected: the receiving node must first check the disks."""
        deadline = time.monotonic() + within_seconds
        while found := await model.violations(self._cell, self._expected, model.safety_tags(_journal(host))):
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.2)
        for violation in found:
            self._violated(violation)

    async def _restore(self, host: Node) -> None:
        """Restore one of its snapshots on its current node."""
        if not self._expected.snapshots or self.summary.violations:
            return
        snapshot = self._chance.choice(sorted(self._expected.snapshots))
        job = await self._cell.restore(snapshot)
        if job["state"] != "completed":
            self._violated(f"snapshot {snapshot} can't be restored: {job}")
        async with asyncio.timeout(PATIENCE_SECONDS):  # the node must first record that it has reported
            await self._jobs_have_ended()
        outcomes = self._learning[host.name].learn(_journal(host), {}, may_vanish=False, may_fail=False)
        if SERVER not in outcomes:
            self._violated("its restore was another node's job")
        await self._look(host, within_seconds=PATIENCE_SECONDS)

    def _at(self) -> list[Node]:
        """The node on which it is running."""
        return [node for node in self._nodes if node.daemon.pid and node.has_it()]

    def _write(self, node: Node) -> None:
        """Turn the server off, write, and turn it on, as its owner would."""
        if node.has_it():
            node.ask("destroy")
        model.write(self._expected, self._chance.randrange(1, 256))
        node.ask("create")

    def _violated(self, what: str) -> None:
        self.summary.violations.append(f"round {self._rounds}: {what}")

    async def _end(self) -> Summary:
        """Check its disks once more while nobody uses them."""
        host, expected = self._at()[0], self._expected
        for node in self._nodes:
            await node.worker_ends()
        host.ask("destroy")
        expected.running = False
        safety = model.safety_tags(_journal(host))
        self.summary.violations += model.disk_violations(expected, set(expected.snapshots), safety)
        return self.summary


def _journal(node: Node) -> Path:
    return node.state_dir / "journal.sqlite"
