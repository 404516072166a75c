"""Wall clocks that are set forward or back: Redis's, a front end's, a node's. No single one decides."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.conftest import RedisServer
from tests.integration.browsing import dashboard_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.front_end import READ_WRITE, SNAPSHOTS, serving
from tests.integration.test_api_program import Program
from tests.integration.test_limits_and_audit import entries
from tests.integration.test_schedules import NIGHTLY, SCHEDULES
from tests.integration.test_webhooks import WEBHOOKS, receiving
from tests.stepped_clock import SteppedClock
from worker.store.access.audit import Audit, AuditKeeper
from worker.store.access.tokens import Permission, Tokens
from worker.store.calls import Scripts
from worker.store.chores.cell_clock import AGREE_SECONDS, CellClock
from worker.store.chores.chores import Chores
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import NODE_SILENT_SECONDS, ServerId
from worker.store.redis_client import RedisSettings, connect

OTHER = ServerId(4)
HOUR = timedelta(hours=1)
STEPS = [HOUR, -HOUR]


@dataclass(frozen=True, kw_only=True)
class Stepping:
    """A cell whose Redis has a clock that the test can set."""

    cell: Cell
    server: RedisServer
    clock: SteppedClock

    async def set(self, ahead: timedelta) -> None:
        """Set Redis's clock."""
        self.clock.set(ahead)
        await noticed(self.cell.redis, ahead)

    async def now(self) -> datetime:
        """The time of the cell, without a process that measures it."""
        return datetime.fromtimestamp((await self.compared(wall=None))[0] / 1000, UTC)

    async def compared(self, *, wall: datetime | None, counted: datetime | None = None) -> list[int]:
        """The result of a comparison for a process with these clocks; None: its clocks are no evidence."""
        ask = {
            "wall_ms": round(wall.timestamp() * 1000) if wall else 0,
            "counted_ms": round(counted.timestamp() * 1000) if counted else "",
            "unsure_ms": 3000,
            "agree_ms": round(AGREE_SECONDS * 1000),
            "each_ms": 5000,
        }
        answer: list[int] = await Scripts(self.cell.redis)._call("chores/compare_clocks", ask)
        return answer


async def noticed(redis: Redis, ahead: timedelta) -> None:
    """Wait until Redis's clock is ahead by this much. Valkey 9 does not read the clock for each command."""
    async with asyncio.timeout(30):
        while True:
            seconds, microseconds = await redis.time()
            shown = datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)
            if abs(shown - datetime.now(UTC) - ahead) < timedelta(seconds=1):
                return


@pytest.fixture(scope="module")
def clock() -> Iterator[SteppedClock]:
    with tempfile.TemporaryDirectory(prefix="vps-clock-") as folder:
        yield SteppedClock(Path(folder))


@pytest.fixture(scope="module")
def server(clock: SteppedClock) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder), environment=clock.environment)
        server.start()
        yield server
        server.kill()


@pytest.fixture
async def stepping(server: RedisServer, clock: SteppedClock) -> AsyncIterator[Stepping]:
    clock.set(timedelta())
    # as in production: Redis ends a blocking command by its wall clock, the client by its own limit
    redis = connect(RedisSettings(url=f"unix://{server.socket}"))
    await noticed(redis, timedelta())
    await redis.flushall()
    node = node_store(redis)
    assert await node.take_lease(seconds=60) is None
    cell = Cell(redis=redis, store=CustomerStore(redis), node=node)
    await cell.have()
    yield Stepping(cell=cell, server=server, clock=clock)
    await redis.aclose(close_connection_pool=True)


def about(one: datetime, other: datetime) -> bool:
    return abs(one - other) < timedelta(seconds=30)


@pytest.mark.parametrize("step", STEPS, ids=["forward", "back"])
class TestOfRedis:
    async def test_callers_are_let_in_and_counted_as_before(self, stepping: Stepping, step: timedelta) -> None:
        async with serving(stepping.cell, calls_per_minute=8) as api:
            before = [(await api.call("GET")).status for _ in range(4)]
            await stepping.set(step)
            after = [(await api.call("GET")).status for _ in range(7)]
        assert (before, after[:3]) == ([200] * 4, [200] * 3)
        # after a forward step, Redis drops the counter, which lives for a minute
        assert (429 in after) == (step < timedelta())

    async def test_a_queued_job_starts_and_so_does_a_later_one(self, stepping: Stepping, step: timedelta) -> None:
        waiting = (await stepping.cell.create()).job.id
        await stepping.set(step)
        assert await stepping.cell.node.take(running=[], free=2, seconds=0) == (waiting,)
        await stepping.cell.have([OTHER])
        came = (await stepping.cell.create(server=OTHER)).job.id
        assert await stepping.cell.node.take(running=[waiting], free=2, seconds=0) == (came,)

    async def test_leases_and_heartbeats_stay_as_they_are(self, stepping: Stepping, step: timedelta) -> None:
        await stepping.set(step)
        other = node_store(stepping.cell.redis, machine="m2", who="pid 2 on m2")
        held = await other.take_lease(seconds=60)
        assert held is not None
        assert 0 < held.seconds_left <= 60
        await stepping.cell.create()  # its node does not count as silent
        assert await Chores(stepping.cell.redis).fail_stale_jobs() == ()

    async def test_scheduled_times_are_kept(self, stepping: Stepping, step: timedelta) -> None:
        chores = Chores(stepping.cell.redis)
        async with serving(stepping.cell) as api:
            snapshot_id = await api.have_snapshot()
            soon = datetime.now(UTC) + HOUR / 2
            kept = await api.call("PATCH", f"{SNAPSHOTS}{snapshot_id}/", body={"expires_at": soon.isoformat()})
            assert kept.status == 200, kept.raw
            schedule = {**NIGHTLY, "when": f"{soon.minute} {soon.hour} * * *"}
            assert (await api.call("POST", SCHEDULES, body=schedule)).status == 201
        await stepping.cell.redis.zadd(
            "snapshots:failed", {"4711": datetime.now(UTC).timestamp() * 1000 - 6.99 * 864e5}
        )

        await stepping.set(step)
        assert await chores.expire() == 0
        assert await chores.due_schedules() == ()
        assert await chores.forget_failed() == 0

    async def test_operators_stay_logged_in(self, stepping: Stepping, step: timedelta) -> None:
        async with dashboard_of(stepping.cell, session_idle_seconds=600) as dashboard:
            await stepping.set(step)
            assert (await dashboard.browser.get("/ops/")).status == 200

    async def test_webhooks_are_called_at_once_and_again_when_that_is_due(
        self, stepping: Stepping, step: timedelta
    ) -> None:
        async with (
            receiving(answers=[500, 200]) as receiver,
            serving(stepping.cell, webhooks_to_private=True) as api,
        ):
            body = {"url": receiver.url, "events": ["job.queued"]}
            secret = (await api.call("POST", WEBHOOKS, body=body)).body["secret"]
            await stepping.set(step)
            await stepping.cell.create()
            await receiver.has(1)
            await stepping.set(timedelta())
            await receiver.has(2)  # the first retry comes after five seconds
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        receiver.messages(secret)  # each has its own timestamp

    async def test_a_repeated_request_is_known(self, stepping: Stepping, step: timedelta) -> None:
        body, key = {"server_id": SERVER, "name": "once", "description": ""}, {"Idempotency-Key": "one"}
        async with serving(stepping.cell) as api:
            first = await api.call("POST", body=body, headers=key)
            await stepping.set(step)
            assert (await api.call("POST", body=body, headers=key)).raw == first.raw

    async def test_the_time_of_the_cell_is_as_before_also_when_the_clock_is_right_again(
        self, stepping: Stepping, step: timedelta
    ) -> None:
        for ahead in (step, timedelta(), -step, timedelta()):
            await stepping.set(ahead)
            assert about(await stepping.now(), datetime.now(UTC))

    async def test_operators_are_notified(self, stepping: Stepping, step: timedelta) -> None:
        seen: list[float] = []
        clock = CellClock(stepping.cell.redis, compared=lambda errors: seen.append(errors.redis))
        with capture_logs() as lines:
            await clock.compare()
            await stepping.set(step)
            await clock.compare()
            await clock.compare()  # reported once
            assert about(clock.now(), datetime.now(UTC))
        assert [abs(error - ahead) < 5 for error, ahead in zip(seen, (0, step.total_seconds()), strict=False)] == [
            True
        ] * 2
        told = [line for line in lines if line["log_level"] == "warning"]
        assert [(line["event"], line["clock"]) for line in told] == [("clock.stepped", "redis")]

    async def test_it_is_kept_over_a_restart_of_redis(self, stepping: Stepping, step: timedelta) -> None:
        clock = CellClock(stepping.cell.redis)
        await clock.compare()
        await stepping.set(step)
        await clock.compare()
        stepping.server.kill()
        stepping.server.start()
        await stepping.cell.redis.connection_pool.disconnect()
        await clock.compare()
        assert about(clock.now(), datetime.now(UTC))
        assert about(await stepping.now(), datetime.now(UTC))


class TestTimeThatHasPassed:
    """Redis's clock also jumps if everything was down meanwhile."""

    async def test_it_jumps_as_far_as_a_process_measured(self, stepping: Stepping) -> None:
        began = await stepping.now()
        await stepping.set(2 * HOUR)
        now, ahead, leapt = await stepping.compared(wall=None, counted=began + HOUR)  # and no further than measured
        assert about(datetime.fromtimestamp(now / 1000, UTC), began + HOUR)
        assert (abs(ahead + 3_600_000) < 30_000, abs(leapt - 3_600_000) < 30_000) == (True, True)

        assert (await stepping.compared(wall=None, counted=began + 5 * HOUR))[
            1
        ] == 0  # and no further than Redis's clock

    async def test_it_jumps_if_all_is_new_and_another_clock_agrees(self, stepping: Stepping) -> None:
        began = await stepping.now()
        await stepping.set(HOUR)
        assert (await stepping.compared(wall=began - HOUR))[2] == 0
        assert (await stepping.compared(wall=began + HOUR))[1:] != [0, 0]
        assert about(await stepping.now(), began + HOUR)

    async def test_a_new_process_does_not_make_a_step_of_what_others_know_for_one(self, stepping: Stepping) -> None:
        began = await stepping.now()
        await stepping.set(HOUR)
        assert (await stepping.compared(wall=None, counted=began))[2] == 0
        assert (await stepping.compared(wall=began + HOUR))[2] == 0
        assert about(await stepping.now(), began)

    async def test_no_process_can_set_the_time_past_redis(self, stepping: Stepping) -> None:
        began = await stepping.now()
        assert (await stepping.compared(wall=began + HOUR, counted=began + HOUR))[1:] == [0, 0]
        await stepping.set(-HOUR)
        assert (await stepping.compared(wall=began + HOUR, counted=began + HOUR))[2] == 0
        assert about(await stepping.now(), began)

    async def test_after_a_jump_each_node_has_time_to_report(self, stepping: Stepping) -> None:
        began = await stepping.now()
        await stepping.set(HOUR)
        await stepping.compared(wall=None, counted=began + HOUR)
        await stepping.cell.create()
        assert await Chores(stepping.cell.redis, waiting_seconds=NODE_SILENT_SECONDS).fail_stale_jobs() == ()

    @pytest.mark.parametrize("step", STEPS, ids=["forward", "back"])
    async def test_it_nears_a_clock_that_others_agree_with_a_little_at_a_time(
        self, stepping: Stepping, step: timedelta
    ) -> None:
        began = await stepping.now()
        await stepping.set(step)
        await stepping.compared(wall=None, counted=began)
        distances = []
        for n in range(1, 4):  # as if five seconds apart
            await stepping.set(step + timedelta(seconds=5.5) * n)
            distances.append(abs((await stepping.compared(wall=began + step, counted=began))[1]))
        assert [round(one - other) for one, other in pairwise(distances)] == [500, 500]

    async def test_a_redis_that_takes_no_writes_is_read_by_its_own_clock(self, stepping: Stepping) -> None:
        await stepping.cell.raw("CONFIG", "SET", "maxmemory", "1")
        await stepping.set(HOUR)
        try:
            chores = Chores(stepping.cell.redis)
            assert await chores.due_schedules() == ()
        finally:
            await stepping.cell.raw("CONFIG", "SET", "maxmemory", "0")


@asynccontextmanager
async def api_program(program: Program, clock: SteppedClock, socket: Path) -> AsyncIterator[ClientSession]:
    settings: dict[str, Any] = {"unix_socket": str(socket), "webhooks_to_private": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        async with (
            program.serving("serve", **settings),
            ClientSession("http://front-end", connector=UnixConnector(str(socket))) as client,
        ):
            yield client


@pytest.mark.parametrize("step", [timedelta(days=200), -timedelta(days=200)], ids=["forward", "back"])
async def test_a_front_end_with_a_wrong_clock_serves_as_any_other(
    step: timedelta, cell: Cell, clock: SteppedClock, redis_server: RedisServer, tmp_path: Path
) -> None:
    tokens = Tokens(cell.redis)
    customer = await tokens.create(name="c", account_id=ACCOUNT, permissions=READ_WRITE)
    operator = await tokens.create(name="o", account_id=None, permissions=frozenset({Permission.OPERATOR}))
    await Audit(cell.redis, keeper=AuditKeeper(cell.redis, kept=None)).write({"path": "before"})
    clock.set(step)
    program = Program(redis_url=f"unix://{redis_server.socket}")
    async with receiving() as receiver, api_program(program, clock, tmp_path / "s") as client:

        async def post(path: str, body: object = None, *, status: int = 201, token: str = customer.secret) -> Any:
            async with client.post(path, json=body, headers={"Authorization": f"Bearer {token}"}) as answer:
                assert answer.status == status, await answer.text()
                return await answer.json()

        schedule = await post(SCHEDULES, {**NIGHTLY, "when": "0 3 * * *"})
        assert timedelta() < datetime.fromisoformat(schedule["next_run_at"]) - datetime.now(UTC) <= timedelta(days=1)
        limited = {"name": "t", "permissions": ["operator"], "lifetime_hours": 1}
        made = await post("/api/v1/ops/tokens/", limited, token=operator.secret)
        await post("/api/v1/ops/tokens/", limited, token=made["secret"])  # the token is valid
        hook = await post(WEBHOOKS, {"url": receiver.url, "events": ["job.failed"]})
        await post(f"{WEBHOOKS}{hook['id']}/test/", status=202)
        await receiver.has(1)
        receiver.messages(hook["secret"])  # which refuses a timestamp that is off by five minutes
    assert "before" in [entry.fields["path"] for entry in await entries(cell)]


A_NODES_LOOKS = """
import sqlite3, struct, sys
from pathlib import Path
from worker.journal import Journal
from worker.program.wall_clock import WallClock
from worker.store.model import JobId, ServerId, Step
from tests.unit.test_journal import OUTCOME, TASK

def set_clock(days):
    with Path(sys.argv[2]).open("r+b") as file:
        file.write(struct.pack("q", days * 86_400_000))

path = Path(sys.argv[1])
journal, clock = Journal(path), WallClock()
journal.conclude(journal.begin(TASK, Step.PREFLIGHT), OUTCOME, safety_kept_seconds=0)
journal.published(TASK.job_id)
journal.track_safety_tag(ServerId(1), "vps-safety-1", kept_seconds=86_400)
journal.track_safety_tag(ServerId(1), "vps-safety-2", kept_seconds=86_400)
with sqlite3.connect(path) as db:  # as an earlier version has written it
    db.execute("UPDATE spare_tags SET left_seconds = NULL WHERE tag = 'vps-safety-2'")
set_clock(days=int(sys.argv[3]))
stepped = clock.stepped_by()
journal.age_safety_tags(30)
journal.forget_old()
set_clock(days=0)
print(round(stepped / 86_400), len(journal.due_safety_tags()), journal.find(TASK.job_id) is not None)
"""


@pytest.mark.parametrize("days", [365, -365], ids=["forward", "back"])
def test_a_node_with_a_wrong_clock_deletes_nothing_and_notices(days: int, clock: SteppedClock, tmp_path: Path) -> None:
    clock.set(timedelta())
    said = subprocess.run(
        [sys.executable, "-c", A_NODES_LOOKS, str(tmp_path / "journal.sqlite"), str(clock.file), str(days)],
        env={**os.environ, **clock.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout.split() == [str(days), "0", "True"], said.stderr
