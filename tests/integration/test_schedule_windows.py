"""Schedules by label, in a time zone, within a window: the servers covered, their start times, skipped runs."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import structlog

from api.gateway.scheduler import Scheduler
from tests.integration.browsing import dashboard_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import DONE, SNAPSHOTS, FrontEnd, serving
from tests.integration.test_dashboard import visible
from tests.integration.test_schedules import OTHERS, SCHEDULES, fall_due, made, shown
from worker.store.access.tokens import Permission
from worker.store.chores.chores import PLANNED_AT_ONCE, Chores
from worker.store.model import JobId, ServerId
from worker.store.schedules.timing import BadCron, check_zone, closest_runs, next_run, open_since, zone_of

SERVERS = [ServerId(number) for number in range(101, 107)]
NIGHTLY = {"backup": "nightly"}
RUNS = "schedules:runs"
WINDOW = timedelta(hours=2)


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    """Six servers with the labels, and one without."""
    async with serving(cell, body_seconds=2.0) as front_end:
        await cell.have([SERVER, *SERVERS])
        for server in SERVERS:
            await label(front_end, server, NIGHTLY)
        yield front_end


async def label(api: FrontEnd, server: ServerId, labels: dict[str, str]) -> None:
    answer = await api.call("PATCH", f"/api/v1/servers/{server}/", body={"labels": labels})
    assert (answer.status, answer.body["labels"]) == (200, labels)


def body(**more: Any) -> dict[str, Any]:
    """A schedule by label whose window is open now."""
    begun = datetime.now(UTC) - timedelta(minutes=1)
    when = f"{begun.minute} {begun.hour} * * *"
    return {"server_labels": NIGHTLY, "name": "nightly", "when": when, "window_minutes": 120} | more


async def round_of(api: FrontEnd) -> list[dict[str, Any]]:
    with structlog.testing.capture_logs() as lines:
        await Scheduler(chores=Chores(api.cell.redis)).round()
    return [dict(line) for line in lines]


async def planned(api: FrontEnd, **more: Any) -> dict[str, Any]:
    """The schedule, once its window has started and its runs are planned; no run has started."""
    schedule = await made(api, body(**more))
    await fall_due(api, schedule["id"])
    await api.cell.redis.zadd("schedules:due", {schedule["id"]: 1})
    chores = Chores(api.cell.redis)
    for window in await chores.due_schedules():
        await chores.plan_runs(window)  # type: ignore[arg-type] # it has a window
    return schedule


async def let_start(api: FrontEnd, *servers: ServerId) -> None:
    """Make these runs, or all, due now."""
    for run in await api.cell.redis.zrange(RUNS, 0, -1):
        if not servers or ServerId(int(run.split(b":")[1])) in servers:
            await api.cell.redis.zadd(RUNS, {run: 1})


async def let_end(api: FrontEnd, schedule_id: str) -> None:
    """End the window."""
    await api.cell.raw("HSET", f"schedule:{schedule_id}", "window_end_ms", 1000)


async def snapshots(api: FrontEnd, query: str = "") -> list[dict[str, Any]]:
    return list((await api.call("GET", f"{SNAPSHOTS}{query}")).body["results"])


async def counts(api: FrontEnd, schedule_id: str) -> dict[str, int]:
    window = (await shown(api, schedule_id))["window"]
    return {name: number for name, number in window.items() if number and not name.endswith("_at")}


async def covered(api: FrontEnd, schedule_id: str, query: str = "") -> list[dict[str, Any]]:
    return list((await api.call("GET", f"{SCHEDULES}{schedule_id}/servers/{query}")).body["results"])


class TestCovering:
    async def test_all_servers_with_the_labels_get_a_snapshot_and_no_other(self, api: FrontEnd) -> None:
        await label(api, SERVERS[0], NIGHTLY | {"env": "test"})
        schedule = await planned(api)
        assert await counts(api, schedule["id"]) == {"servers": 6, "waiting": 6}
        await let_start(api)
        lines = await round_of(api)

        made_of = {one["server"]["id"]: one["name"] for one in await snapshots(api)}
        assert set(made_of) == set(SERVERS)
        assert len(set(made_of.values())) == 1
        assert {line["server_id"] for line in lines if line["event"] == "schedule.ran"} == set(SERVERS)
        assert await counts(api, schedule["id"]) == {"servers": 6, "started": 6}
        assert not await api.cell.redis.exists(RUNS)
        assert (await shown(api, schedule["id"]))["next_run_at"] > datetime.now(UTC).isoformat()

    async def test_one_that_is_labeled_later_is_covered_and_one_that_lost_its_labels_is_not(
        self, api: FrontEnd
    ) -> None:
        schedule = await made(api, body())
        await label(api, SERVERS[0], {})
        await label(api, SERVERS[1], {"backup": "weekly"})
        await label(api, SERVER, NIGHTLY)
        assert [one["server"]["id"] for one in await covered(api, schedule["id"])] == [*SERVERS[2:], SERVER]

        await fall_due(api, schedule["id"])
        await round_of(api)
        await label(api, SERVERS[2], {})  # after it was planned
        await let_start(api)
        lines = await round_of(api)

        got = {one["server"]["id"] for one in await snapshots(api)}
        assert got == {*SERVERS[3:], SERVER}
        assert await counts(api, schedule["id"]) == {"servers": 4, "started": 4}
        assert not [line for line in lines if line["event"] == "schedule.refused"]

    async def test_all_of_several_labels_are_asked_for(self, api: FrontEnd) -> None:
        await label(api, SERVERS[0], NIGHTLY | {"env": "prod"})
        await label(api, SERVERS[1], {"env": "prod"})
        schedule = await made(api, body(server_labels=NIGHTLY | {"env": "prod"}))
        assert [one["server"]["id"] for one in await covered(api, schedule["id"])] == [SERVERS[0]]
        changed = await api.call("PATCH", f"{SCHEDULES}{schedule['id']}/", body={"server_labels": {"env": "prod"}})
        assert changed.body["server_labels"] == {"env": "prod"}
        assert [one["server"]["id"] for one in await covered(api, schedule["id"])] == SERVERS[:2]

    async def test_a_server_of_another_account_is_not_covered_and_loses_its_labels_with_its_owner(
        self, api: FrontEnd
    ) -> None:
        schedule = await planned(api)
        await api.cell.give(OTHERS, SERVERS[0])
        stranger = await api.new_token(account=OTHERS)
        given = (await api.call("GET", f"/api/v1/servers/{SERVERS[0]}/", token=stranger)).body
        assert given["labels"] == {}

        await let_start(api)
        await round_of(api)

        assert {one["server"]["id"] for one in await snapshots(api)} == set(SERVERS[1:])
        assert await counts(api, schedule["id"]) == {"servers": 5, "started": 5}

    async def test_another_accounts_schedule_shows_no_servers(self, api: FrontEnd) -> None:
        schedule = await made(api, body())
        stranger = await api.new_token(account=OTHERS)
        answer = await api.call("GET", f"{SCHEDULES}{schedule['id']}/servers/", token=stranger)
        answer.refused(404, "schedule_not_found")

    async def test_more_servers_than_one_call_plans_are_all_planned(self, api: FrontEnd) -> None:
        many = 2 * PLANNED_AT_ONCE + 10
        async with api.cell.redis.pipeline(transaction=False) as pipe:
            for server in range(1000, 1000 + many):
                record = {"v": "3", "account": ACCOUNT, "name": f"s{server}", "node": "n1", "power": "on"}
                pipe.hset(f"server:{server}", mapping=record | {"labels": json.dumps(NIGHTLY)})
                pipe.zadd(f"servers:account:{ACCOUNT}", {str(server): server})
            await pipe.execute()
        schedule = await planned(api)
        assert await api.cell.redis.zcard(RUNS) == many + len(SERVERS)
        assert (await shown(api, schedule["id"]))["window"]["servers"] == many + len(SERVERS)
        first = await api.call("GET", f"{SCHEDULES}{schedule['id']}/servers/?limit=500")
        rest = await covered(api, schedule["id"], f"?limit=500&after={first.body['after']}")
        assert len(first.body["results"]) == 500
        assert rest[0]["server"]["id"] > first.body["results"][-1]["server"]["id"]


class TestWindow:
    async def test_runs_are_spread_over_the_window_evenly_also_for_consecutive_ids(self, api: FrontEnd) -> None:
        schedule = await planned(api)
        starts = sorted([score for _, score in await api.cell.redis.zrange(RUNS, 0, -1, withscores=True)])
        window = (await shown(api, schedule["id"]))["window"]
        ends = datetime.fromisoformat(window["ends_at"])
        assert ends - datetime.fromisoformat(window["starts_at"]) == WINDOW
        left_ms = ends.timestamp() * 1000 - starts[0]
        gaps = [later - earlier for earlier, later in pairwise(starts)]
        assert min(gaps) > left_ms / 30
        assert starts[-1] < ends.timestamp() * 1000 - WINDOW.total_seconds() * 1000 * 0.15
        waiting = await covered(api, schedule["id"])
        assert all(one["starts_at"] and one["last_run"] is None for one in waiting)

    async def test_a_busy_server_is_tried_again_within_the_window_and_then_missed(self, api: FrontEnd) -> None:
        schedule = await planned(api)
        await api.cell.create("holder", server=SERVERS[0])
        await let_start(api, SERVERS[0])
        await round_of(api)
        (one, *_) = await covered(api, schedule["id"])
        assert one["last_run"]["error"] == "server_busy"
        wait = datetime.fromisoformat(one["starts_at"]) - datetime.now(UTC)
        assert timedelta(minutes=4) < wait <= timedelta(minutes=5)
        assert (await counts(api, schedule["id"]))["waiting"] == 6

        await let_end(api, schedule["id"])
        await let_start(api)
        lines = await round_of(api)

        assert await counts(api, schedule["id"]) == {"servers": 6, "missed": 6}
        assert {line["code"] for line in lines if line["event"] == "schedule.refused"} == {"window_missed"}
        assert {one["last_run"]["error"] for one in await covered(api, schedule["id"])} == {"window_missed"}
        assert [one["name"] for one in await snapshots(api)] == ["holder"]

    @pytest.mark.parametrize("how", ["the chore", "a node that takes it"])
    async def test_a_job_that_has_not_started_when_the_window_ends_is_given_up(self, api: FrontEnd, how: str) -> None:
        await planned(api)
        await let_start(api, SERVERS[0])
        await round_of(api)
        job_id = await api.cell.holder(SERVERS[0])
        await api.cell.raw("HSET", f"job:{job_id}", "start_by_ms", 1)
        if how == "the chore":
            await api.cell.redis.zadd("jobs:start_by", {job_id: 1})
            await round_of(api)
        else:
            assert await api.cell.node.take(running=[], free=1, seconds=0, begin=True) == ()
        job = (await api.call("GET", f"/api/v1/jobs/{job_id}/")).body
        assert (job["state"], job["error"]["code"]) == ("failed", "window_missed")
        assert not await api.cell.redis.exists("jobs:start_by")
        assert await api.cell.raw("HGET", f"server:{SERVERS[0]}", "job") is None
        assert (await snapshots(api))[0]["status"] == "failed"

    async def test_a_job_that_has_started_continues_when_the_window_ends(self, api: FrontEnd) -> None:
        await planned(api)
        await let_start(api, SERVERS[0])
        await round_of(api)
        job_id = JobId(await api.cell.holder(SERVERS[0]))
        await api.cell.node.begin(job_id)
        assert not await api.cell.redis.exists("jobs:start_by")
        await api.cell.redis.zadd("jobs:start_by", {job_id: 1})  # as an earlier release left it there
        await round_of(api)
        await api.cell.node.finish(job_id, DONE)
        assert (await snapshots(api))[0]["status"] == "completed"

    async def test_a_missed_window_is_reported_and_the_next_one_runs(self, api: FrontEnd) -> None:
        schedule = await made(api, body(window_minutes=10))
        hour = (datetime.now(UTC) - timedelta(hours=3)).hour
        await api.cell.raw("HSET", f"schedule:{schedule['id']}", "when", f"0 {hour} * * *")
        await fall_due(api, schedule["id"])
        lines = await round_of(api)
        after = await shown(api, schedule["id"])
        assert [line["event"] for line in lines if "schedule" in line["event"]] == ["schedule.window_missed"]
        assert (after["last_run"]["error"], after["window"]) == ("window_missed", None)
        assert datetime.fromisoformat(after["next_run_at"]).hour == hour
        assert await snapshots(api) == []

    async def test_a_disabled_or_deleted_schedule_starts_no_more_runs(self, api: FrontEnd) -> None:
        schedules = [await planned(api, name=name) for name in ("one", "two")]
        await api.call("PATCH", f"{SCHEDULES}{schedules[0]['id']}/", body={"enabled": False})
        assert (await api.call("DELETE", f"{SCHEDULES}{schedules[1]['id']}/")).status == 204
        await let_start(api)
        await round_of(api)
        assert await snapshots(api) == []
        assert not await api.cell.redis.exists(RUNS, f"schedule:{schedules[1]['id']}:runs")

    async def test_a_schedule_of_one_server_may_have_a_window(self, api: FrontEnd) -> None:
        target = {"server_id": SERVER, "name": "one", "window_minutes": 60}
        body_of_one = {name: value for name, value in body(**target).items() if name != "server_labels"}
        schedule = await made(api, body_of_one)
        await fall_due(api, schedule["id"])
        await round_of(api)
        await let_start(api)
        await round_of(api)
        assert [one["server"]["id"] for one in await snapshots(api)] == [SERVER]
        assert [one["last_run"]["error"] for one in await covered(api, schedule["id"])] == [None]
        path = f"{SCHEDULES}{schedule['id']}/"
        assert (await api.call("PATCH", path, body={"window_minutes": None})).body["window"] is None
        await _finish(api, SERVER)
        await api.cell.give(OTHERS, SERVER)
        await api.call("PATCH", path, body={"window_minutes": 60})
        await fall_due(api, schedule["id"])
        await round_of(api)
        (await api.call("GET", path)).refused(404, "schedule_not_found")


class TestRetention:
    async def test_each_server_keeps_its_newest_and_protected_and_manual_ones(self, api: FrontEnd) -> None:
        schedule = await made(api, body(keep=1, expire_after_hours=72))
        await label(api, SERVERS[1], {})
        manual = await api.cell.create("by-hand", server=SERVERS[0])
        await _finish(api, SERVERS[0])
        names: list[str] = []
        for night in range(3):
            await _night(api, schedule["id"], f"n{night}")
            for server in (SERVERS[0], SERVERS[2]):
                await _finish(api, server)
            newest = (await snapshots(api, f"?server_id={SERVERS[0]}"))[0]
            names.append(newest["name"])
            if night == 0:
                await api.call("PATCH", f"{SNAPSHOTS}{newest['id']}/", body={"protected": True})

        left = [one["name"] for one in await snapshots(api, f"?server_id={SERVERS[0]}")]
        assert left == [names[2], names[0], manual.snapshot.name]
        assert [one["name"] for one in await snapshots(api, f"?server_id={SERVERS[2]}")] == [names[2]]
        newest = (await snapshots(api, f"?server_id={SERVERS[2]}"))[0]
        details = (await api.call("GET", f"{SNAPSHOTS}{newest['id']}/")).body
        lives = datetime.fromisoformat(details["expires_at"]) - datetime.fromisoformat(details["created_at"])
        assert abs(lives - timedelta(hours=72)) <= timedelta(seconds=1)

    async def test_a_full_server_is_skipped_and_the_others_continue(self, api: FrontEnd) -> None:
        schedule = await planned(api)
        for number in range(5):
            await api.cell.create(f"by-hand-{number}", server=SERVERS[0])
            await _finish(api, SERVERS[0])
        await let_start(api)
        await round_of(api)
        assert await counts(api, schedule["id"]) == {"servers": 6, "started": 5, "refused": 1}
        assert (await covered(api, schedule["id"]))[0]["last_run"]["error"] == "snapshot_limit_reached"


async def _night(api: FrontEnd, schedule_id: str, name: str) -> None:
    """Run one window, with snapshots of its own name."""
    await api.cell.raw("HSET", f"schedule:{schedule_id}", "name", name)
    await api.cell.raw("HDEL", f"schedule:{schedule_id}", "window_start_ms")
    await fall_due(api, schedule_id)
    await round_of(api)
    await let_start(api)
    await round_of(api)


async def _finish(api: FrontEnd, server: ServerId) -> None:
    job_id = await api.cell.holder(server)
    await api.cell.node.begin(job_id)
    await api.cell.node.finish(job_id, DONE)


class TestCalls:
    async def test_a_schedule_by_label_is_in_a_list_of_its_own(self, api: FrontEnd) -> None:
        """The existing list has only schedules of servers, because older clients know no others."""
        schedule = await made(api, body(time_zone="Europe/Berlin"))
        assert (schedule["server"], schedule["server_labels"]) == (None, NIGHTLY)
        assert (schedule["time_zone"], schedule["window_minutes"]) == ("Europe/Berlin", 120)
        assert (await api.call("GET", SCHEDULES)).body["count"] == 0
        assert (await api.call("GET", f"{SCHEDULES}?target=labels")).body == {"count": 1, "results": [schedule]}
        operator = await api.new_token(account=None, permissions={Permission.OPERATOR_READ})
        for target, found in (("", 0), ("?target=labels", 1), ("?target=all", 1), (f"?server_id={SERVER}", 0)):
            listed = (await api.call("GET", f"/api/v1/ops/schedules/{target}", token=operator)).body["results"]
            assert len(listed) == found

        hourly = {"when": "0 * * * *"}
        path = f"{SCHEDULES}{schedule['id']}/"
        assert (await api.call("PATCH", path, body=hourly)).refused_fields() == ["window_minutes"]
        assert (await api.call("PATCH", path, body=hourly | {"window_minutes": 60})).body["when"] == "0 * * * *"
        assert (await api.call("PATCH", path, body={"window_minutes": None})).refused_fields() == ["window_minutes"]
        assert (await api.call("DELETE", path)).status == 204
        assert (await api.call("GET", f"{SCHEDULES}?target=labels")).body["count"] == 0

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"time_zone": "Mars/Olympus"}, "time_zone"),
            ({"time_zone": "../../etc/passwd"}, "time_zone"),
            ({"time_zone": None}, "time_zone"),
            ({"window_minutes": 9}, "window_minutes"),
            ({"window_minutes": 1441}, "window_minutes"),
            ({"when": "0 */2 * * *", "window_minutes": 121}, "window_minutes"),
            ({"server_labels": {}}, "server_labels"),
            ({"server_labels": {"a b": "c"}}, "server_labels"),
            ({"server_labels": None}, "server_labels"),
        ],
    )
    async def test_what_cannot_be_is_named(self, api: FrontEnd, change: dict[str, Any], field: str) -> None:
        (named,) = (await api.call("POST", SCHEDULES, body=body(**change))).refused_fields()
        assert named.partition(".")[0] == field

    async def test_it_has_one_server_or_labels(self, api: FrontEnd) -> None:
        for wrong in (body(server_id=SERVER), {"name": "nightly", "when": "daily"}):
            (await api.call("POST", SCHEDULES, body=wrong)).refused(400, "invalid_request")
        one = await made(api, {"server_id": SERVER, "name": "one", "when": "daily"})
        answer = await api.call("PATCH", f"{SCHEDULES}{one['id']}/", body={"server_labels": NIGHTLY})
        assert answer.refused_fields() == ["server_labels"]

    async def test_an_account_has_twenty_by_label(self, api: FrontEnd) -> None:
        for _ in range(20):
            await made(api, body())
        answer = await api.call("POST", SCHEDULES, body=body())
        answer.refused(400, "schedule_limit_reached")
        assert "20 schedules by label" in answer.body["detail"]

    async def test_a_time_zone_moves_the_next_run(self, api: FrontEnd) -> None:
        schedule = await made(api, body(when="0 3 * * *", time_zone="Asia/Tokyo"))
        assert schedule["next_run_at"].endswith("T18:00:00Z")
        changed = await api.call("PATCH", f"{SCHEDULES}{schedule['id']}/", body={"time_zone": "UTC"})
        assert changed.body["next_run_at"].endswith("T03:00:00Z")

    async def test_labels_of_a_server_leave_its_consistency_and_the_other_way_round(self, api: FrontEnd) -> None:
        path = f"/api/v1/servers/{SERVERS[0]}/"
        assert (await api.call("PATCH", path, body={"consistency": "stop"})).body["labels"] == NIGHTLY
        assert (await api.call("PATCH", path, body={"labels": {"a": ""}})).body["consistency"] == "stop"
        cleared = (await api.call("PATCH", path, body={"consistency": None})).body
        assert (cleared["consistency"], cleared["labels"]) == (None, {"a": ""})
        assert (await api.call("PATCH", path, body={})).body == cleared


class TestDashboard:
    async def test_it_shows_what_is_covered_and_how_far_the_window_has_come(self, cell: Cell, api: FrontEnd) -> None:
        await planned(api, time_zone="Etc/UTC")
        await let_start(api, SERVERS[0])
        await round_of(api)
        async with dashboard_of(cell) as dashboard:
            text = visible(await dashboard.browser.seen("/ops/schedules/"))
            for said in ("labels backup=nightly", "Etc/UTC", "2 h", "1 of 6 started"):
                assert said in text
            assert "backup=nightly" in visible(await dashboard.browser.seen(f"/ops/servers/{SERVERS[0]}/"))
            assert "No matching schedules" in visible(await dashboard.browser.seen("/ops/schedules/?target=server"))


class TestUnreadable:
    @pytest.mark.parametrize(
        "damage",
        [
            *({"server_labels": "{}"}, {"server_labels": "x"}, {"time_zone": "Mars/Olympus"}, {"window_ms": "long"}),
            *({"window_end_ms": "late"}, {"window_start_ms": "late"}),
        ],
        ids=lambda damage: ",".join(f"{field}={text}" for field, text in damage.items()),
    )
    async def test_one_is_left_out_and_the_others_run(self, api: FrontEnd, damage: dict[str, str]) -> None:
        odd, good = await made(api, body(name="odd")), await made(api, body(name="good"))
        is_of_run = next(iter(damage)) in {"window_end_ms", "window_start_ms"}
        if not is_of_run:
            await api.cell.redis.hset(f"schedule:{odd['id']}", mapping=damage)  # type: ignore[misc] # redis-py's types
        for schedule in (odd, good):
            await fall_due(api, schedule["id"])
        lines = await round_of(api)
        if is_of_run:
            await api.cell.redis.hset(f"schedule:{odd['id']}", mapping=damage)  # type: ignore[misc] # redis-py's types
        await let_start(api)
        lines += await round_of(api)
        assert {one["name"].split("-")[0] for one in await snapshots(api)} == {"good"}
        assert [line["schedule_id"] for line in lines if line["event"] == "schedule.unreadable"][:1] == [odd["id"]]

    async def test_a_server_whose_labels_cannot_be_read_is_not_covered(self, api: FrontEnd) -> None:
        await api.cell.raw("HSET", f"server:{SERVERS[0]}", "labels", "x")
        await api.cell.raw("HSET", f"server:{SERVERS[1]}", "labels", "7")
        schedule = await planned(api)
        assert (await counts(api, schedule["id"]))["servers"] == 4


class TestClockChanges:
    """Berlin's clocks went forward on 2026-03-29 from 02:00 to 03:00, and back on 2026-10-25 from 03:00 to 02:00."""

    @pytest.mark.parametrize(
        ("cron", "after", "runs"),
        [
            ("30 2 * * *", "2026-03-28T12:00", ["29T01:00", "30T00:30", "31T00:30"]),  # the gap ends at 03:00
            ("0 2,3 * * *", "2026-03-28T12:00", ["29T01:00", "30T00:00", "30T01:00"]),  # two times become one
            ("30 2 * * *", "2026-10-24T12:00", ["25T00:30", "26T01:30", "27T01:30"]),  # the first of the two times
            ("30 2 * * *", "2026-10-25T01:10", ["26T01:30", "27T01:30", "28T01:30"]),  # between the two times
            ("0 * * * *", "2026-10-24T23:30", ["25T00:00", "25T01:00", "25T02:00"]),  # each hour that passes
            ("0 3 * * *", "2026-03-28T12:00", ["29T01:00", "30T01:00", "31T01:00"]),
        ],
    )
    def test_a_run_comes_once_a_day_whatever_the_clocks_do(self, cron: str, after: str, runs: list[str]) -> None:
        found, moment = [], datetime.fromisoformat(after).replace(tzinfo=UTC)
        for _ in runs:
            moment = next_run(cron, moment, zone_of("Europe/Berlin"))
            found.append(f"{moment:%dT%H:%M}")
        assert found == runs

    def test_the_window_of_the_day_is_open_though_that_of_the_day_before_is_too(self) -> None:
        """On the day with 23 hours."""
        day, zone = timedelta(days=1), zone_of("Europe/Berlin")
        begun = datetime(2026, 3, 29, 1, 0, 5, tzinfo=UTC)
        assert open_since("0 3 * * *", begun, day, zone) == begun.replace(second=0)
        assert open_since("0 3 * * *", begun - timedelta(seconds=10), day, zone) == datetime(2026, 3, 28, 2, tzinfo=UTC)
        assert open_since("0 3 * * *", begun + timedelta(hours=2), timedelta(hours=2), zone) is None

    def test_a_zone_is_known_by_its_iana_name_only(self) -> None:
        check_zone("Europe/Berlin")
        check_zone("UTC")
        for wrong in ("", "berlin", "/etc/localtime", "localtime", "posixrules", "Europe"):
            with pytest.raises(BadCron):
                check_zone(wrong)

    def test_the_shortest_time_between_runs_bounds_the_window(self) -> None:
        now = datetime(2026, 11, 28, tzinfo=UTC)
        assert closest_runs("hourly", now) == timedelta(hours=1)
        assert closest_runs("0 3,5 * * *", now) == timedelta(hours=2)
        assert closest_runs("weekly", now) == timedelta(days=7)
