"""What a node's worker does for operators: pauses, reconciles, and reports its steps, its log and its storage."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from drivers.base import Power, StartFailed
from drivers.fake import FakeHypervisor
from drivers.fake_faults import Effect, Happening
from drivers.fake_state import FakeServer
from tests.integration.conftest import ACCOUNT, SERVER, Cell, nothing_more
from tests.queueing import PATIENCE_SECONDS, until, until_told
from worker.inventory import Inventory
from worker.job_log import MAX_JOBS, MAX_LINES, JobLog
from worker.journal import Journal
from worker.procedures.work import Policy
from worker.program.log_fields import with_fields
from worker.publisher import Publisher
from worker.reconcile import Reconciler
from worker.runner import Limits, Runner
from worker.store import errors
from worker.store.calls import Cursor
from worker.store.model import ServerState, Step
from worker.store.operators.operator_store import OperatorStore


@dataclass(frozen=True, kw_only=True)
class Node:
    cell: Cell
    operators: OperatorStore
    hypervisor: FakeHypervisor
    runner: Runner
    reconciler: Reconciler
    inventory: Inventory
    job_log: JobLog


@pytest.fixture
async def node(cell: Cell, tmp_path: Path) -> AsyncIterator[Node]:
    hypervisor = FakeHypervisor(
        [FakeServer(name="web-server-01", server_id=SERVER, account_id=ACCOUNT, power=Power.ON)]
    )
    journal, job_log = Journal(tmp_path / "journal.sqlite"), JobLog()
    runner = Runner(
        journal=journal,
        hypervisor=hypervisor,
        store=cell.node,
        publisher=Publisher(cell.node, publish_again=nothing_more, log_of=job_log.taken),
        policy=Policy(grace_seconds=0.1),
        limits=Limits(first_retry_seconds=0.01, start_seconds=0.1),
    )
    reconciler = Reconciler(
        hypervisor=hypervisor,
        store=cell.node,
        journal=journal,
        runner=runner,
        safety_kept_seconds=3600,
        look_seconds=60,
    )
    yield Node(
        cell=cell,
        operators=OperatorStore(cell.redis, cell.store),
        hypervisor=hypervisor,
        runner=runner,
        reconciler=reconciler,
        inventory=Inventory(hypervisor, cell.node, publish=reconciler.server, reconcile=reconciler.soon),
        job_log=job_log,
    )
    journal.close()


@pytest.fixture
def logged(node: Node) -> Iterator[None]:
    """Write a line to the job's log."""
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[with_fields, node.job_log, *before])
    yield
    structlog.configure(processors=before)


async def test_a_paused_node_takes_no_job_and_resumes_at_once(cell: Cell) -> None:
    operators = OperatorStore(cell.redis, cell.store)
    await operators.pause("n1", by="alice", reason="a new disk")
    job_id = (await cell.create()).job.id
    assert await cell.node.take(running=[], free=1, seconds=0.2) == ()  # the wake-up of the create has been used
    taking = asyncio.create_task(cell.node.take(running=[], free=1, seconds=PATIENCE_SECONDS))
    await operators.resume("n1")
    assert await taking == (job_id,)


async def test_changes_on_the_hypervisor_are_reported_at_once(node: Node) -> None:
    inventory = Inventory(node.hypervisor, node.cell.node, publish=node.reconciler.server, report_seconds=3600)
    reporting = asyncio.create_task(inventory.keep_reporting())
    await asyncio.sleep(0)  # it starts listening

    async def told(state: ServerState | None) -> None:
        async def is_so() -> bool:
            return await _state(node) == state

        await until_told(is_so)

    await node.hypervisor.cut_power(SERVER)
    await told(ServerState.STOPPED)
    await node.hypervisor.start(SERVER)
    await told(ServerState.ACTIVE)
    node.hypervisor.remove(SERVER)
    await told(None)
    reporting.cancel()
    with suppress(asyncio.CancelledError):
        await reporting


async def _state(node: Node) -> ServerState | None:
    try:
        return (await node.cell.store.server(account_id=ACCOUNT, server_id=SERVER)).server.state
    except errors.ServerNotFound:
        return None


async def test_every_step_is_reported_with_its_attempts_and_log_lines(node: Node, logged: None) -> None:
    node.hypervisor.faults.fail(Effect.START)
    job = (await node.cell.create()).job
    await node.runner.run(job.id)

    shown = await node.operators.job(job.id)
    assert [(step.step, step.attempt) for step in shown.steps] == [
        ("preflight", 1),
        ("stopping", 1),
        ("checking", 1),
        ("snapshotting", 1),
        ("starting", 1),
        ("starting", 2),
        ("measuring", 1),
    ]
    assert all(step.seconds is not None and step.seconds >= 0 for step in shown.steps)
    assert [line["event"] for line in shown.log] == ["step.tried", "job.completed"]
    assert (shown.power_found, shown.power_now) == ("on", "on")


async def test_a_report_tells_what_the_node_runs_on_and_how_much_is_free(node: Node) -> None:
    await node.inventory.report()
    facts = (await node.operators.node("n1")).facts
    assert facts is not None
    assert (facts.hypervisor, facts.emulator) == ("fake 1.0.0", "fake 1.0.0")
    assert facts.worker
    assert facts.free_bytes == node.hypervisor.free_bytes
    (first, *_) = (await node.operators.nodes(state=None, sort="free", cursor=Cursor(limit=1))).results
    assert first.name == "n1"


async def test_a_requested_reconciliation_starts_at_once(node: Node) -> None:
    await node.inventory.report()
    looks = 0

    def count(happening: Happening) -> None:
        nonlocal looks
        looks += happening.server_id == SERVER

    node.hypervisor.faults.hook = count
    rounds = asyncio.create_task(node.reconciler.keep_reconciling())
    await until(lambda: looks > 0)
    async with node.runner.lock_of(SERVER):  # the first round has ended
        before = looks
    await node.operators.reconcile("n1")
    await node.inventory.report()
    await until(lambda: looks > before)
    rounds.cancel()
    with suppress(asyncio.CancelledError):
        await rounds


async def test_the_lists_outlive_a_store_that_lost_its_data(node: Node) -> None:
    await node.cell.redis.flushdb()
    await node.cell.node.take_lease(seconds=60)
    await node.inventory.report()
    servers = await node.operators.servers(node="n1", account_id=None, stranded=False, cursor=Cursor(limit=10))
    assert [server.view.server.id for server in servers.results] == [SERVER]


def test_a_jobs_log_is_bounded_in_every_way() -> None:
    log = JobLog()
    for n in range(MAX_LINES + 10):
        log(None, "info", {"event": "x" * 10_000, "n": n, "job_id": "one"})
    log(None, "info", {"event": "of no job"})
    lines = log.taken("one")
    assert len(lines) == MAX_LINES
    assert {len(line) for line in lines} == {2000}
    assert log.taken("one") == ()
    for n in range(MAX_JOBS + 1):
        log(None, "info", {"event": "e", "job_id": str(n), "step": Step.STOPPING})
    assert log.taken("0") == ()
    assert json.loads(log.taken(str(MAX_JOBS))[0]) == {"event": "e", "step": "stopping"}


async def test_operators_see_qemus_own_message(node: Node, logged: None) -> None:
    refused = StartFailed("the server did not start")
    refused.__cause__ = OSError("internal error: process exited:\ncannot set up guest memory: Cannot allocate memory")
    node.hypervisor.faults.fail(Effect.START, times=1000, error=refused)
    job = (await node.cell.create()).job
    await node.runner.run(job.id)

    said = "internal error: process exited: cannot set up guest memory: Cannot allocate memory"
    shown = await node.operators.job(job.id)
    assert shown.job.failure is not None
    assert (shown.job.failure.code, shown.job.failure.detail) == ("start_failed", "The server did not start.")
    assert shown.cause == f"starting: {said}"
    assert {line["cause"] for line in shown.log if line["event"] in {"step.tried", "step.failed"}} == {said}
