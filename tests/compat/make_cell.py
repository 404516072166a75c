"""Write `data/cell.json.gz`: the data that an older version leaves in Redis, in its journals and on simulated disks.

It runs with the code of that version and uses only modules that both versions have:

    git worktree add /tmp/old 0a79ed0 && cd /tmp/old && make setup-tests
    cp -r CHECKOUT/tests/compat tests/
    .venv/bin/python -m tests.compat.make_cell CHECKOUT/tests/compat/data/cell.json.gz

Customers and operators call the front end; workers run the jobs on two nodes. The worker of n1 is killed while it has a
job at each step of each kind. n2 is paused and has a queued job of each kind. The recording also contains the front
end's answers.
"""

import asyncio
import gzip
import json
import os
import signal
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from drivers.base import Power
from drivers.fake_faults import Effect, Rule
from drivers.fake_state import FakeDisk, FakeServer
from tests.browser.stage import staged
from tests.compat.making import ACCOUNT, DESCRIPTION, HANGS, KINDS, NAMES, NODES, Cell, of_node, until
from tests.compat.recording import dumped, packed
from tests.queueing import until_told

COMMIT = "0a79ed0"
HOOK = "http://127.0.0.1:9/hook"  # nothing listens there, so the deliveries wait
HUNG_SECONDS = 7200

# Effects that fail there first.
FAILING = {
    "create-cleaning": Effect.SNAPSHOT_DISK,
    "restore-undoing": Effect.REVERT_DISK,
    "restore-cleaning": Effect.REVERT_DISK,
}


async def all_of(jobs: Iterable[Awaitable[Any]]) -> None:
    await asyncio.gather(*jobs)


async def begin(cell: Cell) -> None:
    for node in NODES:
        cell.folder(node).mkdir()
        state = cell.state(node)
        for name, server_id in of_node(node).items():
            disks = {target: FakeDisk(content="A") for target in ("vda", "vdb")}
            server = FakeServer(name=name, server_id=server_id, account_id=ACCOUNT, power=Power.ON, disks=disks)
            server.nvram = "A"
            state.write(server)
        await cell.start_worker(node)
    cell.secrets["operator"] = (await cell.stage.new_operator("Olga Brandt")).secret
    wanted: dict[str, dict[str, Any]] = {
        "customer": {"permissions": ["snapshots:read", "snapshots:write"], "account_id": ACCOUNT},
        "service": {"permissions": ["snapshots:read", "snapshots:write"]},
        "visitor": {"permissions": ["snapshots:read"], "account_id": ACCOUNT, "lifetime_hours": 48},
        "revoked": {"permissions": ["operator"]},
    }
    for name, token in wanted.items():
        answer = await cell.call("POST", "ops/tokens/", {"name": name, **token}, by="operator")
        cell.secrets[name] = answer.body["secret"]
    await cell.call("DELETE", f"ops/tokens/{answer.body['id']}/", by="operator")


async def log_in(cell: Cell) -> str:
    """The cookie of a dashboard session."""
    form, headers = {"token": cell.secrets["operator"]}, {"Sec-Fetch-Site": "same-origin"}
    url = f"{cell.stage.url}/ops/login/"
    async with (
        ClientSession() as session,
        session.post(url, data=form, headers=headers, allow_redirects=False) as answer,
    ):
        return answer.headers["Set-Cookie"].split(";")[0]


async def make_webhooks(cell: Cell) -> list[dict[str, Any]]:
    events = ["job.queued", "job.in_progress", "job.completed", "job.failed"]
    made = []
    for description, some in (("all", events), ("rotated", events[2:]), ("disabled", events)):
        wanted = {"url": f"{HOOK}/{description}", "description": description, "events": some}
        made.append((await cell.call("POST", "webhooks/", wanted)).body)
    await cell.call("PATCH", f"webhooks/{made[2]['id']}/", {"enabled": False})
    rotated = await cell.call("POST", f"webhooks/{made[1]['id']}/rotate-secret/")
    await cell.call("POST", f"webhooks/{made[0]['id']}/test/")
    return [*made, rotated.body]


async def take_snapshots(cell: Cell) -> None:
    """Snapshot each server, except where the recording is to have its first job; the guests then write B."""
    first = [name for name in NAMES if name.startswith("create-") or name in ("untold", "failed", "cancelled-queued")]
    await all_of([cell.ended(await cell.create(name)) for name in NAMES if name not in first])
    for node, worker in cell.workers.items():
        await worker.stop()
        state = cell.state(node)
        for server in state.read().values():
            for disk in server.disks.values():
                disk.content = "B"
            server.nvram = "B"
            tag = f"vps-{cell.snapshots.get(server.name)}"
            for target in {"torn": ["vdb"], "lost": ["vda", "vdb"]}.get(server.name, []):
                del server.disks[target].tags[tag]
            if server.name == "lost":
                del server.listed[tag]
            state.write(server)
        await cell.start_worker(node)
    await until_told(lambda: _has_findings(cell))


async def _has_findings(cell: Cell) -> bool:
    return bool((await cell.call("GET", "ops/nodes/n1/", by="operator")).body["findings"] == len(("torn", "lost")))


async def work(cell: Cell) -> None:
    """Run the jobs that are completed at the end."""
    for n in range(4):
        await cell.ended(await cell.create("full", f"full-{n}"))
    kept = f"snapshots/{cell.snapshots['kept']}/"
    await cell.call("PATCH", kept, {"protected": True, "labels": {"tier": "gold", "stage": ""}, "description": "kept"})
    await cell.ended(await cell.restore("restored"))
    await cell.ended(await cell.restore("twice-restored"))
    await cell.ended(await cell.ask("DELETE", f"snapshots/{cell.snapshots['deleted']}/"))
    for name in ("undo-reverting", "undo-queued"):
        cell.jobs[name] = await cell.ended(await cell.restore(name))
    undone = await cell.ended(await cell.restore("quiet"))
    await cell.ended(await cell.ask("POST", f"restores/{undone}/undo/"))
    await cell.call("POST", "snapshots/?dry_run=true", {"server_id": NAMES["quiet"], "name": "dry"})
    await cell.call("POST", f"snapshots/{cell.snapshots['quiet']}/restore/?dry_run=true")
    body = {"server_id": NAMES["quiet"], "name": "once", "description": ""}
    answer = await cell.call("POST", "snapshots/", body, Idempotency_Key="once-only")
    await cell.ended(answer.headers["X-Job-Id"])
    cell.replays.append({"path": "snapshots/", "body": body, "key": "once-only", "answer": answer.body})
    by_service = await cell.call("GET", "snapshots/", by="service", X_Account_Id=str(ACCOUNT))
    assert by_service.body["count"]


async def fail(cell: Cell) -> None:
    for name in ("stranded", "stranded-restore", "resolved"):
        cell.befall(name, Rule(effect=Effect.START, fails=True))
    for name in ("failed", "retried"):
        cell.befall(name, Rule(effect=Effect.SNAPSHOT_DISK, fails=True))
    cell.befall("undeleted", Rule(effect=Effect.DELETE_TAG, fails=True))
    await cell.ended(await cell.create("stranded", "pre-deploy"), "failed")
    await cell.ended(await cell.restore("stranded-restore"), "failed")
    resolved = await cell.ended(await cell.create("resolved", "pre-deploy"), "failed")
    await cell.ended(await cell.create("failed"), "failed")
    retried = await cell.ended(await cell.create("retried", "pre-deploy"), "failed")
    await cell.ended(await cell.ask("DELETE", f"snapshots/{cell.snapshots['undeleted']}/"), "failed")
    for name in ("resolved", "retried"):
        cell.befall(name)
    reason = {"reason": "Made the bridge br7 again and started the guest by hand."}
    await cell.call("POST", f"ops/jobs/{resolved}/resolve/", reason, by="operator")
    await cell.call("POST", f"ops/jobs/{retried}/retry/", by="operator", Idempotency_Key="retry-once")


async def make_schedules(cell: Cell) -> str:
    """Returns the ID of the schedule that runs hourly; it has run once."""
    server = {"server_id": NAMES["scheduled"]}
    hourly = (await cell.call("POST", "schedules/", {**server, "name": "hourly", "when": "hourly", "keep": 2})).body
    await cell.call("POST", "schedules/", {**server, "name": "cron", "when": "17 3 * * 1-5", "expire_after_hours": 72})
    off = (await cell.call("POST", "schedules/", {**server, "name": "off", "when": "weekly"})).body
    await cell.call("PATCH", f"schedules/{off['id']}/", {"enabled": False})
    await let_be_due(cell, hourly["id"])

    async def has_run() -> bool:
        last = (await cell.call("GET", f"schedules/{hourly['id']}/")).body["last_run"]
        return bool(last and last["job_id"])

    await until_told(has_run)
    await cell.ended((await cell.call("GET", f"schedules/{hourly['id']}/")).body["last_run"]["job_id"])
    return str(hourly["id"])


async def let_be_due(cell: Cell, schedule_id: str) -> None:
    """Make the schedule due, as if the hour had passed."""
    await cell.stage.redis.zadd("schedules:due", {schedule_id: round(time.time() * 1000) - 1000})


async def queue(cell: Cell) -> None:
    """Queue a job of each kind for n2, which is paused, and cancel one more."""
    reason = {"reason": "Kernel update, back at 04:00"}
    await cell.call("POST", "ops/nodes/n2/pause/", reason, by="operator")
    for kind in KINDS:
        cell.jobs[f"{kind}-queued"] = await _job_of(cell, kind, f"{kind}-queued")
    cancelled = await cell.create("cancelled-queued")
    await cell.call("POST", f"jobs/{cancelled}/cancel/")


async def _job_of(cell: Cell, kind: str, name: str) -> str:
    snapshot = f"snapshots/{cell.snapshots.get(name)}/"
    body = {"server_id": NAMES[name], "name": "under-way", "description": DESCRIPTION}
    match kind:
        case "create":
            return await cell.create(name, "under-way")
        case "restore":
            return await cell.restore(name)
        case "delete":
            return await cell.ask("DELETE", snapshot)
        case "undo":
            return await cell.ask("POST", f"restores/{cell.jobs[name]}/undo/")
        case "check_create":
            return await cell.ask("POST", "snapshots/?dry_run=true", body)
        case _:
            return await cell.ask("POST", f"{snapshot}restore/?dry_run=true")


async def hang(cell: Cell, name: str, effect: Effect) -> None:
    """Let a job run to the step in the server's name, and stop there."""
    kind, _, step = name.partition("-")
    hanging = Rule(effect=effect, seconds=HUNG_SECONDS)
    cell.befall(name, Rule(effect=FAILING[name], fails=True) if name in FAILING else hanging)
    job = cell.jobs[name] = await _job_of(cell, kind, name)
    if step == "cleaning" and kind == "restore":
        await cell.at_step(job, "undoing")
    if name in FAILING:
        await until(lambda: journal(cell)[job][0] in {"undoing", "cleaning"})
        cell.befall(name, hanging)
    await cell.at_step(job, step)


def journal(cell: Cell) -> defaultdict[str, tuple[str, str | None]]:
    """Each job's step and outcome in n1's journal."""
    entries: defaultdict[str, tuple[str, str | None]] = defaultdict(lambda: ("", None))
    with closing(sqlite3.connect(cell.folder("n1") / "journal.sqlite")) as db:
        for job, step, outcome in db.execute("SELECT id, step, outcome FROM jobs"):
            entries[job] = step, outcome
    return entries


async def break_off(cell: Cell) -> None:
    """Kill the worker while it deletes a safety snapshot and has the unreported end of a job."""
    await all_of(hang(cell, name, effect) for name, effect in HANGS.items())
    cell.befall("twice-restored", Rule(effect=Effect.DELETE_TAG, seconds=HUNG_SECONDS))
    await cell.ended(await cell.restore("twice-restored"))
    with closing(sqlite3.connect(cell.folder("n1") / "journal.sqlite")) as db:
        await until(lambda: bool(db.execute("SELECT * FROM changing").fetchall()))
    cell.befall("untold", Rule(effect=Effect.START, seconds=3))
    job = cell.jobs["untold"] = await cell.create("untold")
    await cell.at_step(job, "starting")
    cell.stage.redis_server.kill()
    await until(lambda: bool(journal(cell)[job][1]))
    os.killpg(cell.workers["n1"].pid, signal.SIGKILL)
    cell.stage.redis_server.start()
    await until_told(lambda: _answers(cell))


async def _answers(cell: Cell) -> bool:
    async with ClientSession() as session, session.get(f"{cell.stage.url}/readyz") as answer:
        return answer.status == 200


def journal_of(cell: Cell, node: str) -> str:
    """The whole file."""
    path = cell.folder(node) / "journal.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return packed(path)


async def answers(cell: Cell) -> dict[str, dict[str, Any]]:
    """The front end's view of each record: caller and path -> body."""
    lists = ("snapshots/?page_size=500", "jobs/?page_size=500", "schedules/", "webhooks/")
    found = {path: (await cell.call("GET", path)).body for path in lists}
    paths = [f"{path.partition('?')[0]}{one['id']}/" for path in lists for one in found[path]["results"]]
    paths += [f"webhooks/{one['id']}/deliveries/" for one in found["webhooks/"]["results"]]
    paths += [f"servers/{server_id}/" for server_id in NAMES.values()]
    found |= {path: (await cell.call("GET", path)).body for path in paths}
    operators = [path for path in paths if path.startswith(("servers/", "jobs/"))]
    operators += [
        "overview/",
        "nodes/",
        "nodes/n1/",
        "nodes/n2/",
        "jobs/?limit=500",
        "servers/",
        "findings/",
        "audit/?limit=500",
        "tokens/",
    ]
    theirs = {path: (await cell.call("GET", f"ops/{path}", by="operator")).body for path in operators}
    return {"customer": found, "operator": theirs}


async def played(cell: Cell) -> dict[str, Any]:
    """Run everything. Returns the recording."""
    await begin(cell)
    session = await log_in(cell)
    webhooks = await make_webhooks(cell)
    for part in (take_snapshots, work, fail):
        await part(cell)
    hourly = await make_schedules(cell)
    await queue(cell)
    await break_off(cell)
    await cell.workers["n2"].stop()
    await let_be_due(cell, hourly)
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 90))
    await cell.call("PATCH", f"snapshots/{cell.snapshots['expiring']}/", {"expires_at": soon})
    return {
        "commit": COMMIT,
        "recorded_at": round(time.time()),
        "servers": NAMES,
        "snapshots": cell.snapshots,
        "jobs": cell.jobs,
        "secrets": cell.secrets,
        "session": session,
        "webhooks": webhooks,
        "hourly": hourly,
        "replays": cell.replays,
        "answers": await answers(cell),
        "journals": {node: journal_of(cell, node) for node in NODES},
        "disks": {node: (cell.folder(node) / "fake.json").read_text() for node in NODES},
        "redis": await dumped(cell.stage.redis),
    }


async def main(place: Path) -> None:
    async with staged(VPS_SNAPSHOTS_WEBHOOKS_TO_PRIVATE="true") as stage:
        cell = Cell(stage=stage)
        try:
            recording = await played(cell)
        finally:
            for worker in cell.workers.values():
                worker.kill()
    text = json.dumps(recording, ensure_ascii=False, indent=0).encode()
    place.write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
