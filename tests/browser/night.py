"""A night with incidents, which the questions are about."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from random import Random

from drivers.fake_faults import Effect, Rule
from tests.bench import seeding
from tests.browser.stage import ACCOUNT, CUSTOMER, Stage, running
from worker.store.calls import Cursor
from worker.store.model import JobState

BROKEN, SILENT = "hv-7", "hv-9"
SERVERS = range(70_001, 70_004)
NIGHT_HOURS = 5  # ago
THEN = f"{7:032x}"
PADDING, PADDING_BYTES = "night:padding", 1 << 24


async def befall(stage: Stage) -> Mapping[str, str]:
    """Create incidents: a node that fails two jobs and blocks a restore, a silent node, and a store that is nearly
    full. Returns the facts."""
    node = await stage.start_node(BROKEN, [running(n, f"night-{n}") for n in SERVERS])
    first, second, stuck = node.servers
    deleted = (await stage.ended(await stage.create(stuck, "gone"))).snapshot_id
    await stage.ended(await stage.ask("DELETE", f"/api/v1/snapshots/{deleted}/"))
    made = await stage.ended(await stage.create(stuck))
    node.befall(
        Rule(effect=Effect.SNAPSHOT_DISK, server_id=first, fails=True),
        Rule(effect=Effect.SNAPSHOT_DISK, server_id=second, fails=True),
        Rule(effect=Effect.SNAPSHOT_DISK, server_id=stuck, seconds=3600),
    )
    broken = [await stage.ended(await stage.create(server_id)) for server_id in (first, second)]
    assert {job.state for job in broken} == {JobState.FAILED}
    restore = await stage.ask("POST", f"/api/v1/snapshots/{made.snapshot_id}/restore/")
    await stage.at_step(restore, "safeguarding")
    await seeding.write_rows(stage.redis, "nodes", iter([{"name": SILENT, "about": "", "free_bytes": 1 << 40}]))
    await stage.redis.hset(f"node:{SILENT}", "heartbeat_ms", "1000")  # type: ignore[misc] # redis-py: sync or async
    await stage.redis.zadd("nodes:by:heartbeat", {SILENT: 1000})
    then = seeding.job(
        7,
        state=JobState.COMPLETED,
        age_ms=NIGHT_HOURS * 3_600_000,
        server=(first, "night"),
        account=ACCOUNT,
        node=BROKEN,
        random=Random(7),
    )
    await seeding.write_jobs(stage.redis, iter([then | {"id": THEN}]))
    night = datetime.now(UTC) - timedelta(hours=NIGHT_HOURS) + timedelta(seconds=float(then["seconds"]))
    body = {"server_id": first, "name": "tonight", "when": "daily"}
    schedule = await (await stage.customer()).call("POST", "/api/v1/schedules/", body)
    unsaved = await stage.operators.servers(
        node=None,
        account_id=None,
        stranded=False,
        cursor=Cursor(limit=1),
        without_snapshot_of=timedelta(days=7),
    )
    await stage.redis.setrange(PADDING, PADDING_BYTES, "\0")  # so large that what a test adds hardly matters
    used = (await stage.redis.info("memory"))["used_memory"]
    await stage.redis.config_set("maxmemory", round(used * 1.18))  # above the alert, below the refusal of new jobs
    return {
        "restore": restore[:8],
        "silent": SILENT,
        "broken": BROKEN,
        "first": broken[0].id,
        "second": broken[1].id,
        "drained": BROKEN,
        "night": night.isoformat(),
        "schedule": schedule.body["id"],
        "deleted": str(deleted),
        "customer": CUSTOMER,
        "unsaved": str(unsaved.results[0].view.server.id),
        "then": f"#job-{THEN}",
    }
