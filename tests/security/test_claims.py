"""A node's claims about others' records, and impossible ones, are refused and reported, and change nothing."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from tests.claims import FAILED, MOMENT
from tests.integration.conftest import ACCOUNT, SERVER
from tests.integration.front_end import DONE
from tests.integration.test_bounds import milliseconds
from tests.security.conftest import ITS_ACCOUNT, ITS_SERVER, Hostile
from worker.store.bounds import Bounds
from worker.store.chores.chores import Chores
from worker.store.customers.customer_store import AdmittedJob, BriefSnapshot
from worker.store.model import (
    Contents,
    Failure,
    HeldDisk,
    JobId,
    JobKind,
    JobState,
    Note,
    NoteCode,
    ServerId,
    SnapshotId,
    SnapshotStatus,
    Step,
)
from worker.store.nodes.claims import (
    BeginRefused,
    BegunJob,
    ClaimRefused,
    LeaseLost,
    PublishedSnapshot,
    ReportedServer,
)
from worker.store.outcome import Outcome
from worker.store.reports import JobReport, StepBegun

UNKNOWN = JobId("f" * 32)


def published(snapshot_id: int, **others: object) -> PublishedSnapshot:
    snapshot = PublishedSnapshot(
        id=SnapshotId(snapshot_id),
        name="mine",
        description="",
        created_at=MOMENT,
        size_mb=1,
        status=SnapshotStatus.COMPLETED,
    )
    return replace(snapshot, **others)  # type: ignore[arg-type]


def begun(snapshot_id: int, kind: JobKind = JobKind.DELETE, job_id: JobId = UNKNOWN) -> BegunJob:
    return BegunJob(
        id=job_id,
        kind=kind,
        snapshot_id=SnapshotId(snapshot_id),
        snapshot_name="mine",
        snapshot_description="",
        snapshot_created_at=MOMENT,
        request_id="r",
        undoes=None,
    )


class Victim:
    """Account 77's completed snapshot and its job on the honest node."""

    def __init__(self, hostile: Hostile, snapshot: BriefSnapshot, job: AdmittedJob) -> None:
        self.node, self.snapshot, self.job = hostile.node, snapshot.id, job.id


async def victim_of(hostile: Hostile, *, begin: bool) -> Victim:
    cell = hostile.cell
    made = await cell.create("kept")
    await cell.node.begin(made.job.id)
    await cell.node.finish(made.job.id, DONE)
    job = (await cell.create("under-way")).job
    if begin:
        await cell.node.begin(job.id)
    return Victim(hostile, made.snapshot, job)


CLAIMS: dict[str, Callable[[Victim], Awaitable[object]]] = {
    "begin other_node": lambda v: v.node.begin(v.job),
    "progress other_node": lambda v: v.node.progress(v.job, Step.STOPPING),
    "finish other_node": lambda v: v.node.finish(v.job, FAILED, power="off"),
    "lose other_node": lambda v: v.node.lose(SERVER, v.snapshot),
    "lose other_server": lambda v: v.node.lose(ITS_SERVER, v.snapshot),
    "regain other_node": lambda v: v.node.regain(SERVER, v.snapshot, size_mb=1),
    "regain other_server": lambda v: v.node.regain(ITS_SERVER, v.snapshot, size_mb=1),
    "known other_node": lambda v: v.node.known(SERVER, [v.snapshot]),
    "findings other_node": lambda v: v.node.tell_findings(SERVER, [{"finding": "x", "tag": "y", "at": "1"}]),
    "publish other_node": lambda v: v.node.publish(SERVER, [published(5)], [begun(v.snapshot)]),
}


@pytest.mark.parametrize("begin", [False, True], ids=["queued", "in progress"])
@pytest.mark.parametrize("claim", CLAIMS)
async def test_claims_about_another_nodes_objects_change_nothing_and_are_shown(
    hostile: Hostile, claim: str, begin: bool
) -> None:
    call, reason = claim.split()
    victim = await victim_of(hostile, begin=begin)
    before = await hostile.everything()
    for _ in range(2):
        with pytest.raises((ClaimRefused, BeginRefused)) as refused:
            await CLAIMS[claim](victim)
        assert str(refused.value) == reason
    assert await hostile.everything() == before
    assert hostile.refused == [(call, reason)] * 2
    assert await hostile.told() == {f"n2:{call}:{reason}".encode(): 2}


Items = tuple[list[PublishedSnapshot], list[BegunJob]]
ITEMS: dict[str, Callable[[Victim], Items]] = {
    "other_server": lambda v: ([published(v.snapshot)], []),
    "other_server of a job": lambda v: ([], [begun(v.snapshot)]),
    "other_node": lambda v: ([], [begun(v.snapshot, job_id=v.job)]),
    "id_not_given": lambda _: ([published(2**53)], []),
    "id_not_given of a job": lambda _: ([], [begun(2**53)]),
    "malformed": lambda _: ([published(5, name="x" * 1000)], []),
    "malformed description": lambda _: ([published(5, description="x" * 10_000)], []),
    "malformed size": lambda _: ([published(5, size_mb=2**50)], []),
    "malformed job": lambda _: ([], [begun(5, job_id=JobId("x" * 100_000))]),
    "status_impossible": lambda _: ([published(5, status=SnapshotStatus.IN_PROGRESS)], []),
    "status_impossible deleting": lambda _: ([published(5, status=SnapshotStatus.DELETING)], []),
}


@pytest.mark.parametrize("why", ITEMS)
async def test_invalid_parts_of_a_publication_are_omitted(hostile: Hostile, why: str) -> None:
    victim = await victim_of(hostile, begin=True)
    before = await hostile.everything()
    snapshots, jobs = ITEMS[why](victim)
    assert await hostile.node.publish(ITS_SERVER, snapshots, jobs) == ()
    assert await hostile.everything() == before
    assert hostile.refused == [("publish", why.split(maxsplit=1)[0])]


async def test_valid_parts_are_accepted_beside_invalid_ones(hostile: Hostile) -> None:
    new = await hostile.node.publish(ITS_SERVER, [published(2**53), published(7)], [])
    assert new == (7,)


@pytest.mark.parametrize(
    "outcome",
    [
        replace(DONE, snapshot_status=SnapshotStatus.FAILED),
        replace(DONE, snapshot_status=SnapshotStatus.DELETING),
        replace(DONE, size_mb=-1),
        replace(DONE, size_mb=2**50),
        replace(DONE, undoable_seconds=60.0),
        replace(DONE, state=JobState.IN_PROGRESS),
        replace(DONE, failure=FAILED.failure),
        replace(FAILED, failure=None),
        replace(FAILED, failure=Failure(code="a code\n", detail="")),
        replace(FAILED, snapshot_status=SnapshotStatus.IN_PROGRESS),
    ],
    ids=str,
)
async def test_an_outcome_that_a_create_cannot_have_is_refused(hostile: Hostile, outcome: Outcome) -> None:
    cell = hostile.cell
    job = (await cell.create()).job
    await cell.node.begin(job.id)
    before = await hostile.everything()
    with pytest.raises(ClaimRefused, match="result_impossible"):
        await cell.node.finish(job.id, outcome)
    assert await hostile.everything() == before
    assert await cell.node.finish(job.id, DONE) == "published"


async def test_the_text_of_an_outcome_and_of_a_report_is_cut_short(hostile: Hostile) -> None:
    cell = hostile.cell
    job = (await cell.create()).job
    await cell.node.begin(job.id)
    steps = tuple(StepBegun(step=Step.STOPPING, at=1.0, attempt=n) for n in range(3000))
    report = JobReport(steps=steps, log=("x" * 1000,) * 3000, resumed=2**60)
    failure = Failure(code="disk_failed", detail="x" * 100_000)
    outcome = replace(FAILED, failure=failure, downtime_seconds=float("inf"), cause="x" * 100_000)
    await cell.node.finish(job.id, outcome, report)
    assert await cell.raw("HSTRLEN", f"job:{job.id}", "failure_cause") < 8192
    assert await cell.raw("LLEN", f"job:{job.id}:steps") == 200
    assert sum(len(line) for line in await cell.raw("LRANGE", f"job:{job.id}:log", 0, -1)) <= 32_768
    ended = await cell.store.job(account_id=ACCOUNT, job_id=job.id)
    assert ended.failure is not None
    assert (len(ended.failure.detail), ended.attempts) == (2000, 1)


async def test_a_step_of_another_kind_is_refused(hostile: Hostile) -> None:
    job = (await hostile.cell.create()).job
    await hostile.cell.node.begin(job.id)
    with pytest.raises(ClaimRefused, match="step_unknown"):
        await hostile.cell.node.progress(job.id, Step.REVERTING)


async def test_a_node_learns_nothing_of_a_snapshot_of_another_server(hostile: Hostile) -> None:
    victim = await victim_of(hostile, begin=True)
    known = await hostile.node.known(ITS_SERVER, [victim.snapshot, SnapshotId(1)])
    assert known.on_disk == {victim.snapshot: None, SnapshotId(1): None}
    assert known.elsewhere == {victim.snapshot}


async def test_a_short_question_has_no_endless_answer(hostile: Hostile) -> None:
    """Else a few calls would fill the memory of Redis and of the gateway with answers."""
    disks = tuple(HeldDisk(target="vda", path="/" + "x" * 1000, virtual_bytes=1) for _ in range(60))
    await hostile.node.publish(ITS_SERVER, [published(7, contents=Contents(disks=disks))], [])
    assert (await hostile.node.known(ITS_SERVER, [SnapshotId(7)] * 100)).on_disk
    with pytest.raises(ClaimRefused, match="too_many"):
        await hostile.node.known(ITS_SERVER, [SnapshotId(7)] * 500)
    assert await hostile.told() == {b"n2:known:too_many": 1}


async def test_the_list_of_a_server_is_bounded(hostile: Hostile) -> None:
    """A lost snapshot takes no slot, but stays listed."""
    ids = iter(range(1, 1000))
    for turn in range(3):
        new = await hostile.node.publish(ITS_SERVER, [published(next(ids)) for _ in range(101)], [])
        assert len(new) == 100
        lost = [await hostile.node.lose(ITS_SERVER, snapshot_id) for snapshot_id in new if turn < 2]
        assert all(lost)
    with pytest.raises(ClaimRefused, match="too_many"):
        await hostile.node.lose(ITS_SERVER, new[0])
    assert await hostile.cell.raw("HGET", f"snapshot:{new[0]}", "status") == b"completed"
    assert hostile.refused == [*[("publish", "too_many")] * 3, ("lose", "too_many")]


async def test_jobs_that_a_node_adds_are_bounded(hostile: Hostile) -> None:
    await Chores(hostile.cell.redis).keep_bounds(Bounds(jobs_per_server=1000))  # no ended job is deleted before
    for _ in range(130):
        await hostile.node.publish(ITS_SERVER, [], [begun(5, job_id=JobId(uuid4().hex))])
    jobs = f"account:66:jobs:server:{ITS_SERVER}:in_progress"
    assert await hostile.cell.redis.zcard(jobs) == 100
    # ended jobs free their slots; then the rate limit applies
    for _ in range(600):
        job_id = JobId(uuid4().hex)
        await hostile.node.publish(ITS_SERVER, [], [begun(5, job_id=job_id)])
        for held in await hostile.cell.redis.zrange(jobs, 0, -1):
            await hostile.node.finish(JobId(held.decode()), Outcome(state=JobState.COMPLETED))
    assert 400 < await hostile.cell.redis.zcard("jobs:node:n2") <= 520
    assert ("publish", "too_many") in hostile.refused


async def used_up(hostile: Hostile, key: str, *, left_ms: int, window_ms: int) -> None:
    """Use up a rate limit, except what it allows in that many milliseconds."""
    now_ms = await milliseconds(hostile.cell)
    await hostile.cell.raw("SET", key, now_ms + window_ms - left_ms)


async def test_servers_that_a_node_adds_are_bounded(hostile: Hostile) -> None:
    """Otherwise it could fill Redis with servers that it reports and removes: their records stay."""
    minute, node = 60_000, hostile.node
    await used_up(hostile, "node:n2:added", left_ms=5 * minute + minute // 2, window_ms=4000 * minute)
    ids = [ITS_SERVER, *(ServerId(n) for n in range(1000, 1020))]
    await node.report([ReportedServer(id=one, account_id=ITS_ACCOUNT, name="evil", power="on") for one in ids])
    assert await hostile.cell.redis.zcard("servers:node:n2") == 1 + 5
    assert await hostile.told() == {b"n2:report:too_many": 15}


async def test_the_bytes_of_snapshots_that_a_node_adds_are_bounded(hostile: Hostile) -> None:
    day, at_once = 86_400_000, 64 << 20
    large = published(1, description="x" * 4000)
    left_ms = round(5.5 * (1500 + 4000 + len(large.name)) * day / at_once)
    await used_up(hostile, "node:n2:told", left_ms=left_ms, window_ms=day)
    known = await hostile.node.publish(ITS_SERVER, [replace(large, id=SnapshotId(n + 1)) for n in range(10)], [])
    assert len(known) == 5
    assert await hostile.told() == {b"n2:publish:too_many": 5}
    with_contents = published(
        1, contents=Contents(disks=(HeldDisk(target="vda", path="/" + "x" * 4000, virtual_bytes=1),))
    )
    await hostile.node.publish(ITS_SERVER, [with_contents], [])
    assert await hostile.cell.raw("HEXISTS", "snapshot:1", "contents") == 0
    assert await hostile.told() == {b"n2:publish:too_many": 6}


async def test_what_a_node_says_of_its_jobs_and_servers_is_bounded(hostile: Hostile) -> None:
    """Otherwise, it could fill Redis with logs, notes and contents of jobs. The end of a job is always recorded."""
    node, raw, job_id = hostile.node, hostile.cell.raw, JobId("a" * 32)
    await node.publish(ITS_SERVER, [], [begun(5, JobKind.CREATE, job_id)])

    async def left_bytes(count: int) -> None:
        """Each ms that the test takes adds 0.8 bytes."""
        await used_up(hostile, "node:n2:told", left_ms=round(count * day_ms / (64 << 20)), window_ms=day_ms)

    day_ms = 86_400_000
    before = await raw("XLEN", "account:66:events")
    await left_bytes(400)
    await node.progress(job_id, Step.STOPPING)
    await left_bytes(0)
    with pytest.raises(ClaimRefused, match="too_many"):
        await node.progress(job_id, Step.STOPPING)
    assert await raw("XLEN", "account:66:events") - before == 1
    await left_bytes(400)
    with pytest.raises(ClaimRefused, match="too_many"):
        await node.progress(job_id, Step.STOPPING, JobReport(log=("x" * 8000,)))
    await left_bytes(400)
    with pytest.raises(ClaimRefused, match="too_many"):
        await node.tell_findings(ITS_SERVER, [{"finding": "x", "tag": "y" * 250, "at": "1"}] * 10)
    contents = Contents(disks=(HeldDisk(target="vda", path="/" + "x" * 1000, virtual_bytes=1),))
    outcome = replace(DONE, notes=(Note(code=NoteCode.LEFT_OUT, detail="x" * 1000),), contents=contents)
    assert await node.finish(job_id, outcome) == "published"
    ended = await raw("HMGET", f"job:{job_id}", "state", "step", "notes", "contents")
    assert ended == [b"completed", b"stopping", None, None]
    assert await raw("EXISTS", f"job:{job_id}:log") == 0
    assert {*await hostile.told()} == {f"n2:{call}:too_many".encode() for call in ("progress", "findings", "finish")}


async def test_a_claim_without_the_lease_is_not_even_checked(hostile: Hostile) -> None:
    victim = await victim_of(hostile, begin=True)
    await hostile.cell.raw("HSET", "node:n2", "owner", "another")
    with pytest.raises(LeaseLost):
        await hostile.node.known(SERVER, [])
    with pytest.raises(LeaseLost):
        await CLAIMS["finish other_node"](victim)
    assert hostile.refused == []


async def test_a_dry_run_whose_server_has_left_ends_without_a_start(hostile: Hostile) -> None:
    cell = hostile.cell
    check = await cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="x", request_id="r")
    await cell.raw("HSET", f"server:{SERVER}", "node", "n2")
    with pytest.raises(BeginRefused, match="server_moved"):
        await cell.node.begin(check.id)
    ended = await cell.store.job(account_id=ACCOUNT, job_id=check.id)
    assert (ended.state, ended.failure and ended.failure.code) == (JobState.FAILED, "node_unavailable")
    assert await hostile.told() == {}


async def test_a_delete_that_is_due_by_a_broken_list_deletes_nothing(hostile: Hostile) -> None:
    victim = await victim_of(hostile, begin=False)
    await hostile.cell.redis.zadd("node:n2:deleting", {str(victim.snapshot): 0})
    await hostile.cell.redis.zadd("node:n1:deleting", {str(victim.snapshot): 0})
    before = await hostile.everything()
    assert await hostile.node.retry_deletes() == 0
    del before[b"node:n1:deleting"]
    assert await hostile.cell.node.retry_deletes() == 0
    assert await hostile.everything() == before
