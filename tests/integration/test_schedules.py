"""Scheduled snapshots: when they are taken, what makes room for them, and when they expire."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from api.gateway.scheduler import Scheduler
from api.gateway.settings import GatewaySettings
from api.settings import ApiSettings
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import BROKE, DONE, SNAPSHOTS, FrontEnd, serving
from worker.store.access.tokens import Permission
from worker.store.chores.chores import Chores
from worker.store.model import AccountId, ServerId
from worker.store.nodes.node_store import BATCH
from worker.store.outcome import Outcome
from worker.store.schedules.timing import BadCron, check, cron_of, next_run

SCHEDULES = "/api/v1/schedules/"
NIGHTLY = {"server_id": SERVER, "name": "nightly", "when": "0 3 * * *", "keep": 2}
OTHERS = AccountId(78)
NOW = datetime(2025, 1, 16, 16, 15, tzinfo=UTC)


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, body_seconds=2.0) as front_end:
        yield front_end


async def made(api: FrontEnd, body: dict[str, Any] = NIGHTLY) -> dict[str, Any]:
    answer = await api.call("POST", SCHEDULES, body=body)
    assert answer.status == 201, answer.raw
    return dict(answer.body)


async def fall_due(api: FrontEnd, schedule_id: str, *, minutes_ago: int = 0) -> None:
    moment = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    await api.cell.redis.zadd("schedules:due", {schedule_id: moment.timestamp() * 1000 // 1})


async def run(api: FrontEnd, schedule_id: str, *, minutes_ago: int = 0, outcome: Outcome | None = DONE) -> None:
    """Make the schedule due, admit its snapshot, and let the node take it."""
    await fall_due(api, schedule_id, minutes_ago=minutes_ago)
    await Scheduler(chores=Chores(api.cell.redis)).round()
    if outcome is not None:
        await end_job(api, outcome)


async def end_job(api: FrontEnd, outcome: Outcome = DONE) -> None:
    job_id = await api.cell.holder()
    await api.cell.node.begin(job_id)
    await api.cell.node.finish(job_id, outcome)


async def listed(api: FrontEnd) -> list[str]:
    return [result["name"] for result in (await api.call("GET", f"{SNAPSHOTS}?sort=created_at")).body["results"]]


async def shown(api: FrontEnd, schedule_id: str) -> dict[str, Any]:
    return dict((await api.call("GET", f"{SCHEDULES}{schedule_id}/")).body)


class TestOperators:
    async def test_they_see_what_will_run_and_when(self, api: FrontEnd) -> None:
        other = ServerId(2)
        await api.cell.have([SERVER, other])
        operator = await api.new_token(account=None, permissions={Permission.OPERATOR_READ})
        made_at = {
            hour: await made(api, NIGHTLY | {"when": f"0 {hour} * * *", "name": f"at-{hour}", "server_id": server})
            for hour, server in ((4, SERVER), (2, other), (3, SERVER))
        }
        disabled = await made(api, NIGHTLY | {"name": "never", "enabled": False})
        for hour, schedule in made_at.items():
            moment = datetime(2030, 1, 1, hour, tzinfo=UTC).timestamp() * 1000
            await api.cell.redis.zadd("schedules:due", {schedule["id"]: moment})

        async def names(query: str = "") -> tuple[list[str], int | None]:
            body = (await api.call("GET", f"/api/v1/ops/schedules/{query}", token=operator)).body
            return [one["name"] for one in body["results"]], body["count"]

        assert await names("?target=all") == (["at-2", "at-3", "at-4"], 3)
        assert await names() == (["at-2", "at-3", "at-4"], None)
        assert await names("?target=labels") == ([], None)
        assert await names("?target=all&since=2030-01-01T03:00:00Z") == (["at-3", "at-4"], 2)
        period = "since=2030-01-01T02:30:00Z&until=2030-01-01T04:00:00Z"
        assert await names(f"?target=all&{period}") == (["at-3"], 1)
        assert await names(f"?server_id={SERVER}") == (["at-3", "at-4"], None)
        assert await names(f"?account_id={OTHERS}") == ([], None)
        first = (await api.call("GET", "/api/v1/ops/schedules/?target=all&limit=2", token=operator)).body
        assert await names(f"?target=all&limit=2&after={first['after']}") == (["at-4"], 3)
        assert (first["results"][0]["account_id"], first["results"][0]["server"]["id"]) == (ACCOUNT, other)
        assert disabled["id"] not in str(first)


class TestCalls:
    async def test_one_is_made_shown_changed_and_deleted(self, api: FrontEnd) -> None:
        schedule = await made(api)
        path = f"{SCHEDULES}{schedule['id']}/"

        assert schedule["server"] == {"id": SERVER, "name": "web-server-01"}
        assert (schedule["when"], schedule["keep"], schedule["enabled"]) == ("0 3 * * *", 2, True)
        assert schedule["next_run_at"].endswith("T03:00:00Z")
        assert schedule["last_run"] is None
        assert await shown(api, schedule["id"]) == schedule
        assert (await api.call("GET", f"{SCHEDULES}?server_id={SERVER}")).body == {"count": 1, "results": [schedule]}

        changed = (await api.call("PATCH", path, body={"when": "weekly", "expire_after_hours": 48})).body
        assert (changed["when"], changed["expire_after_hours"], changed["keep"]) == ("weekly", 48, 2)
        off = (await api.call("PATCH", path, body={"enabled": False, "expire_after_hours": None})).body
        assert (off["next_run_at"], off["expire_after_hours"]) == (None, None)
        assert await api.cell.redis.zcard("schedules:due") == 0
        assert (await api.call("PATCH", path, body={"enabled": True})).body["next_run_at"]

        assert (await api.call("DELETE", path)).status == 204
        (await api.call("GET", path)).refused(404, "schedule_not_found")
        assert await api.cell.redis.zcard("schedules:due") == 0
        assert (await api.call("GET", SCHEDULES)).body["count"] == 0

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"when": "* * * * *"}, "when"),
            ({"when": "0,30 3 * * *"}, "when"),
            ({"when": "59 3 * * *\n"}, "when"),
            ({"when": "0 3 * * * *"}, "when"),
            ({"when": "0 0 31 2 *"}, "when"),
            ({"when": "x" * 101}, "when"),
            ({"when": None}, "when"),
            ({"keep": 0}, "keep"),
            ({"keep": 101}, "keep"),
            ({"name": "x" * 51}, "name"),
            ({"expire_after_hours": 0}, "expire_after_hours"),
            ({"server_id": 0}, "server_id"),
            ({"color": "red"}, "color"),
        ],
    )
    async def test_what_cannot_be_is_named(self, api: FrontEnd, change: dict[str, Any], field: str) -> None:
        assert (await api.call("POST", SCHEDULES, body=NIGHTLY | change)).refused_fields() == [field]
        assert (await api.call("GET", SCHEDULES)).body["count"] == 0

    async def test_another_accounts_is_not_found_and_five_are_the_limit(self, api: FrontEnd) -> None:
        schedule = await made(api)
        path, stranger = f"{SCHEDULES}{schedule['id']}/", await api.new_token(account=OTHERS)
        for method in ("GET", "DELETE"):
            (await api.call(method, path, token=stranger)).refused(404, "schedule_not_found")
        (await api.call("PATCH", path, body={"keep": 1}, token=stranger)).refused(404, "schedule_not_found")
        (await api.call("POST", SCHEDULES, body=NIGHTLY, token=stranger)).refused(404, "server_not_found")
        (await api.call("GET", f"{SCHEDULES}x/")).refused(404, "schedule_not_found")
        assert await shown(api, schedule["id"]) == schedule

        for _ in range(4):
            await made(api)
        (await api.call("POST", SCHEDULES, body=NIGHTLY)).refused(400, "schedule_limit_reached")

    async def test_a_create_that_is_retried_makes_one(self, api: FrontEnd) -> None:
        key = {"Idempotency-Key": "k"}
        answers = await asyncio.gather(*[api.call("POST", SCHEDULES, body=NIGHTLY, headers=key) for _ in range(10)])
        assert len({answer.raw for answer in answers}) == 1
        assert (await api.call("GET", SCHEDULES)).body["count"] == 1


class TestRuns:
    async def test_a_snapshot_is_taken_when_due_and_the_next_run_is_shown(self, api: FrontEnd) -> None:
        schedule = await made(api, NIGHTLY | {"expire_after_hours": 48})
        await Scheduler(chores=Chores(api.cell.redis)).round()
        assert await listed(api) == []

        await run(api, schedule["id"])

        (result,) = (await api.call("GET")).body["results"]
        snapshot = (await api.call("GET", f"{SNAPSHOTS}{result['id']}/")).body
        assert snapshot["name"].startswith("nightly-2")
        assert snapshot["schedule_id"] == schedule["id"]
        lives = datetime.fromisoformat(snapshot["expires_at"]) - datetime.fromisoformat(snapshot["created_at"])
        assert abs(lives - timedelta(hours=48)) <= timedelta(seconds=1)
        after = await shown(api, schedule["id"])
        assert after["next_run_at"] == schedule["next_run_at"]
        assert after["last_run"]["job_id"]
        assert after["last_run"]["error"] is None

    async def test_of_many_concurrent_rounds_one_runs_it(self, api: FrontEnd) -> None:
        schedule = await made(api)
        await fall_due(api, schedule["id"])
        await asyncio.gather(*[Scheduler(chores=Chores(api.cell.redis)).round() for _ in range(20)])
        assert len(await listed(api)) == 1

    async def test_one_of_the_missed_runs_is_made_up_for(self, api: FrontEnd) -> None:
        schedule = await made(api)
        await run(api, schedule["id"], minutes_ago=3 * 24 * 60)
        await Scheduler(chores=Chores(api.cell.redis)).round()
        assert len(await listed(api)) == 1
        assert (await shown(api, schedule["id"]))["next_run_at"] == schedule["next_run_at"]

    async def test_the_newest_stay_and_none_is_deleted_before_the_new_one_exists(self, api: FrontEnd) -> None:
        schedule = await made(api)
        await api.have_snapshot("by-hand")
        for minutes_ago in (9, 8):
            await run(api, schedule["id"], minutes_ago=minutes_ago)
        before = await listed(api)

        await run(api, schedule["id"], minutes_ago=7, outcome=BROKE)
        assert (await listed(api))[:3] == before
        await run(api, schedule["id"], minutes_ago=6)

        assert [name for name in await listed(api) if name in before] == ["by-hand", before[2]]
        assert await api.cell.redis.zcard("node:n1:deleting") == 1

    async def test_the_oldest_scheduled_one_makes_room_a_manual_or_protected_one_never(self, api: FrontEnd) -> None:
        schedule = await made(api, NIGHTLY | {"keep": 5})
        for minutes_ago in (9, 8):
            await run(api, schedule["id"], minutes_ago=minutes_ago)
        oldest, second = await listed(api)
        (newest_result, oldest_result) = (await api.call("GET")).body["results"]
        await api.call("PATCH", f"{SNAPSHOTS}{oldest_result['id']}/", body={"protected": True})
        for n in range(3):
            await api.have_snapshot(f"by-hand-{n}")

        await run(api, schedule["id"], minutes_ago=7)
        names = await listed(api)
        assert len(names) == 5
        assert second not in names
        assert names[:4] == [oldest, "by-hand-0", "by-hand-1", "by-hand-2"]
        assert newest_result["name"] == second

        await api.call(
            "PATCH", f"{SNAPSHOTS}{(await api.call('GET')).body['results'][0]['id']}/", body={"protected": True}
        )
        await run(api, schedule["id"], minutes_ago=6, outcome=None)
        assert await listed(api) == names
        assert (await shown(api, schedule["id"]))["last_run"]["error"] == "snapshot_limit_reached"

    async def test_a_busy_server_is_tried_again_soon(self, api: FrontEnd) -> None:
        half_a_day_away = (datetime.now(UTC).hour + 12) % 24  # the next run would be sooner otherwise
        schedule = await made(api, NIGHTLY | {"when": f"0 {half_a_day_away} * * *"})
        await api.create("holder")

        await run(api, schedule["id"], outcome=None)

        refused = await shown(api, schedule["id"])
        assert refused["last_run"]["error"] == "server_busy"
        wait = datetime.fromisoformat(refused["next_run_at"]) - datetime.now(UTC)
        assert timedelta(minutes=4) < wait <= timedelta(minutes=5)
        await end_job(api)
        await run(api, schedule["id"])
        assert len(await listed(api)) == 2

    async def test_a_server_that_has_changed_hands_loses_its_schedules(self, api: FrontEnd) -> None:
        schedule = await made(api)
        await api.cell.give(OTHERS)

        await run(api, schedule["id"], outcome=None)

        assert not await api.cell.redis.exists(f"schedule:{schedule['id']}")
        stranger = await api.new_token(account=OTHERS)
        assert (await api.call("GET", token=stranger)).body["count"] == 0


class TestNodes:
    async def test_a_silent_node_gets_no_run(self, api: FrontEnd) -> None:
        schedule = await made(api)
        await fall_due(api, schedule["id"])
        hasty = Chores(api.cell.redis, node_silent_seconds=0.001)
        await asyncio.sleep(0.01)
        await Scheduler(chores=hasty).round()
        assert (await shown(api, schedule["id"]))["last_run"]["error"] == "node_unavailable"

    @pytest.mark.parametrize("setting", ["node_silent_seconds", "waiting_seconds"])
    def test_front_ends_and_gateways_decide_by_the_same_times(self, setting: str) -> None:
        of_api, of_gateway = ApiSettings.model_fields[setting], GatewaySettings.model_fields[setting]
        assert of_api.default == of_gateway.default
        assert of_api.description == of_gateway.description


class TestUnreadable:
    """Records of a newer release, or damaged ones, are left to a worker that can read them."""

    @pytest.mark.parametrize(
        "damage",
        [
            *({"when": "monthly"}, {"when": "0 0 30 2 *"}, {"when": ""}),
            *({"server": "web"}, {"server": ""}, {"expire_after_ms": "a month"}),
        ],
        ids=lambda damage: ",".join(f"{field}={text}" for field, text in damage.items()),
    )
    async def test_an_unreadable_one_is_skipped_and_reported_and_the_others_run(
        self, api: FrontEnd, damage: dict[str, str]
    ) -> None:
        odd, good = await made(api), await made(api)
        key = f"schedule:{odd['id']}"
        await api.cell.redis.hset(key, mapping=damage)  # type: ignore[misc] # redis-py's types
        left = await api.cell.redis.hgetall(key)  # type: ignore[misc]
        for schedule in (odd, good):
            await fall_due(api, schedule["id"], minutes_ago=5 if schedule is odd else 0)
        told: list[str] = []
        scheduler = Scheduler(chores=Chores(api.cell.redis), unreadable=lambda: told.append("once"))

        with structlog.testing.capture_logs() as lines:
            await scheduler.round()
            await scheduler.round()

        assert len(await listed(api)) == 1
        assert (await shown(api, good["id"]))["last_run"]["job_id"]
        assert await api.cell.redis.hgetall(key) == left  # type: ignore[misc]
        assert await api.cell.redis.zscore("schedules:due", odd["id"]) is not None
        assert told == ["once"]
        (line,) = [line for line in lines if line["event"] == "schedule.unreadable"]
        assert line["schedule_id"] == odd["id"]

    async def test_an_unknown_when_is_named_by_the_gateway_that_would_run_it(self, api: FrontEnd) -> None:
        schedule = await made(api, NIGHTLY | {"enabled": False})
        path = f"{SCHEDULES}{schedule['id']}/"
        await api.cell.redis.hset(f"schedule:{schedule['id']}", "when", "monthly")  # type: ignore[misc] # redis-py's types
        unknown = schedule | {"when": "monthly"}

        refused = await api.call("PATCH", path, body={"enabled": True, "keep": 4})
        assert refused.refused_fields() == ["when"]
        assert "monthly" in refused.body["detail"]
        assert await shown(api, schedule["id"]) == unknown
        assert (await api.call("GET", SCHEDULES)).body == {"count": 1, "results": [unknown]}
        assert (await api.call("PATCH", path, body={"keep": 4})).body == unknown | {"keep": 4}
        assert (await api.call("PATCH", path, body={"enabled": False})).status == 200
        assert (await api.call("PATCH", path, body={"enabled": True, "when": "daily"})).body["next_run_at"]
        await api.cell.redis.hset(f"schedule:{schedule['id']}", "when", "monthly")  # type: ignore[misc] # redis-py's types
        assert (await api.call("PATCH", path, body={"enabled": False})).body["next_run_at"] is None
        assert (await api.call("DELETE", path)).status == 204

    @pytest.mark.parametrize("field", ["keep", "expire_after_ms", "server", "created_ms"])
    async def test_one_that_cannot_be_shown_hides_no_other_and_can_be_deleted(self, api: FrontEnd, field: str) -> None:
        odd, good = await made(api), await made(api)
        path = f"{SCHEDULES}{odd['id']}/"
        await api.cell.redis.hset(f"schedule:{odd['id']}", field, "a new word")  # type: ignore[misc] # redis-py's types

        (await api.call("GET", path)).refused(409, "record_unreadable")
        (await api.call("PATCH", path, body={"keep": 1})).refused(409, "record_unreadable")
        assert (await api.call("GET", SCHEDULES)).body == {"count": 2, "results": [good]}
        assert (await api.call("DELETE", path)).status == 204
        assert (await api.call("GET", SCHEDULES)).body == {"count": 1, "results": [good]}

    async def test_many_do_not_hide_those_behind_them(self, api: FrontEnd) -> None:
        good = await made(api)
        odd = {f"odd-{n}": 1 for n in range(2 * BATCH + 1)}
        await api.cell.redis.zadd("schedules:due", odd)
        for schedule_id in odd:
            await api.cell.redis.hset(
                f"schedule:{schedule_id}", mapping={"name": "n", "when": "monthly", "server": "1"}
            )  # type: ignore[misc]
        await fall_due(api, good["id"])

        await Scheduler(chores=Chores(api.cell.redis)).round()

        assert len(await listed(api)) == 1


class TestExpiry:
    async def test_a_snapshot_is_deleted_when_its_time_is_over(self, api: FrontEnd) -> None:
        snapshot_id = await api.have_snapshot()
        path = f"{SNAPSHOTS}{snapshot_id}/"
        soon = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert (await api.call("PATCH", path, body={"expires_at": soon})).body["expires_at"] == soon
        await Scheduler(chores=Chores(api.cell.redis)).round()
        assert (await api.call("GET", path)).status == 200

        await api.cell.raw("HSET", f"snapshot:{snapshot_id}", "expires_ms", 1)
        await api.cell.redis.zadd("snapshots:expiring", {str(snapshot_id): 1})
        await Scheduler(chores=Chores(api.cell.redis)).round()

        (await api.call("GET", path)).refused(404, "snapshot_not_found")
        assert await api.cell.redis.zcard("node:n1:deleting") == 1
        assert await api.cell.node.retry_deletes() == 1

    @pytest.mark.parametrize("held_by", ["protection", "job"])
    async def test_protected_and_busy_snapshots_stay(self, api: FrontEnd, held_by: str) -> None:
        snapshot_id = await api.have_snapshot()
        path = f"{SNAPSHOTS}{snapshot_id}/"
        if held_by == "protection":
            await api.call("PATCH", path, body={"protected": True})
        else:
            await api.call("POST", f"{path}restore/")
        await api.cell.raw("HSET", f"snapshot:{snapshot_id}", "expires_ms", 1)
        await api.cell.redis.zadd("snapshots:expiring", {str(snapshot_id): 1})

        await Scheduler(chores=Chores(api.cell.redis)).round()

        assert (await api.call("GET", path)).status == 200
        assert await api.cell.redis.zscore("snapshots:expiring", str(snapshot_id)) > 1

    async def test_an_end_can_be_lifted_and_must_be_to_come(self, api: FrontEnd) -> None:
        path = f"{SNAPSHOTS}{await api.have_snapshot()}/"
        await api.call("PATCH", path, body={"expires_at": "2030-01-01T00:00:00Z"})
        assert (await api.call("PATCH", path, body={"labels": {}})).body["expires_at"] == "2030-01-01T00:00:00Z"
        assert (await api.call("PATCH", path, body={"expires_at": None})).body["expires_at"] is None
        assert await api.cell.redis.zcard("snapshots:expiring") == 0
        past = await api.call("PATCH", path, body={"expires_at": "2020-01-01T00:00:00Z"})
        assert past.refused_fields() == ["expires_at"]


class TestCron:
    def test_each_server_has_its_own_moment(self) -> None:
        assert cron_of("hourly", ServerId(61)) == "1 * * * *"
        assert cron_of("daily", ServerId(61)) == "1 1 * * *"
        assert cron_of("weekly", ServerId(1440 * 6 + 61)) == "1 1 * * 6"

    def test_the_next_run_is_after_now_in_utc(self) -> None:
        east = NOW.astimezone().replace(microsecond=0)
        assert next_run("0 3 * * *", east) == datetime(2025, 1, 17, 3, tzinfo=UTC)
        assert next_run("15 16 * * *", NOW) == NOW + timedelta(days=1)

    @pytest.mark.parametrize("cron", ["", "x", "60 * * * *", "0 0 30 2 *", "0  3 * * *", "0 3 * * *\n", "@daily"])
    def test_an_invalid_cron_expression_is_refused(self, cron: str) -> None:
        with pytest.raises(BadCron):
            check(cron, NOW)

    @pytest.mark.parametrize("cron", ["0 * * * *", "59 23 * * MON#2", "0 0 L * *", "0 0 29 2 *"])
    def test_at_most_one_run_an_hour_is_accepted(self, cron: str) -> None:
        check(cron, NOW)
