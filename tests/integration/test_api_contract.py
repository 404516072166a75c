"""The public contract over HTTP: paths, codes, keys, and each sentence that decides something."""

import re
from collections.abc import AsyncIterator

import pytest

from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.front_end import DONE, SNAPSHOTS, Answer, FrontEnd, serving
from worker.store.model import AccountId, Failure, JobId, JobState, ServerId, SnapshotId, SnapshotStatus, Step
from worker.store.outcome import Outcome
from worker.store.reports import JobReport, StepBegun

OTHERS = AccountId(78)
NOBODYS = "vps_nobodys"
SNAPSHOT_KEYS = ["id", "server", "name", "status", "size_mb", "created_at", "description"]
FAILED = Outcome(
    state=JobState.FAILED,
    failure=Failure(code="disk_failed", detail="vda refused.", stranded=True),
    snapshot_status=SnapshotStatus.FAILED,
)


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell) as front_end:
        yield front_end


def restore(snapshot_id: int) -> str:
    return f"{SNAPSHOTS}{snapshot_id}/restore/"


def one(snapshot_id: int) -> str:
    return f"{SNAPSHOTS}{snapshot_id}/"


def job_id(answer: Answer) -> JobId:
    found = re.fullmatch(r"/api/v1/jobs/([0-9a-f]{32})/", answer.headers["Operation-Location"])
    assert found
    return JobId(found[1])


async def test_a_create_answers_201_with_the_contracts_keys(api: FrontEnd) -> None:
    answer = await api.create("before-update-snapshot", "Snapshot before system update")

    assert answer.status == 201
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert list(answer.body) == [*SNAPSHOT_KEYS, "message"]
    assert answer.body["server"] == {"id": 12345, "name": "web-server-01"}
    assert answer.body["name"] == "before-update-snapshot"
    assert answer.body["description"] == "Snapshot before system update"
    assert (answer.body["status"], answer.body["size_mb"]) == ("in_progress", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer.body["created_at"])
    assert answer.body["message"] == ("Snapshot is being created. This may take 3-10 minutes depending on server size.")


async def test_a_create_returns_the_paths_of_the_snapshot_and_its_job(api: FrontEnd) -> None:
    answer = await api.create()

    assert answer.headers["Location"] == one(answer.body["id"])
    followed = await api.call("GET", answer.headers["Location"])
    ours = {"labels": {}, "protected": False, "expires_at": None, "schedule_id": None, "contents": None}
    ours["consistency"] = None
    assert followed.body == {key: answer.body[key] for key in SNAPSHOT_KEYS} | ours
    job = (await api.call("GET", answer.headers["Operation-Location"])).body
    assert (job["id"], job["kind"], job["state"]) == (job_id(answer), "create", "queued")


async def test_a_completed_snapshot_has_its_size(api: FrontEnd) -> None:
    snapshot = (await api.call("GET", one(await api.have_snapshot()))).body

    assert list(snapshot) == [
        *SNAPSHOT_KEYS,
        "labels",
        "protected",
        "expires_at",
        "schedule_id",
        "contents",
        "consistency",
    ]
    assert (snapshot["status"], snapshot["size_mb"]) == ("completed", 5120)


async def test_the_list_is_newest_first_and_counts(api: FrontEnd) -> None:
    ids = [await api.have_snapshot(f"s{n}") for n in range(3)]

    answer = await api.call("GET")

    assert answer.status == 200
    assert list(answer.body) == ["count", "results"]
    assert answer.body["count"] == 3
    assert [result["id"] for result in answer.body["results"]] == ids[::-1]
    assert all(list(result) == SNAPSHOT_KEYS for result in answer.body["results"])


async def test_the_list_of_one_server_has_no_others(api: FrontEnd) -> None:
    await api.cell.have([SERVER, ServerId(2)])
    mine = await api.have_snapshot()
    await api.call("POST", body={"server_id": 2, "name": "other"})

    answer = await api.call("GET", f"{SNAPSHOTS}?server_id={SERVER}")

    assert [result["id"] for result in answer.body["results"]] == [mine]
    assert (await api.call("GET")).body["count"] == 2
    assert (await api.call("GET", f"{SNAPSHOTS}?server_id=999")).body == {"count": 0, "results": []}


async def test_a_restore_answers_200_with_the_contracts_keys(api: FrontEnd) -> None:
    snapshot_id = await api.have_snapshot()
    snapshot = (await api.call("GET", one(snapshot_id))).body

    answer = await api.call("POST", restore(snapshot_id))

    assert answer.status == 200
    assert answer.body == {
        "status": "success",
        "message": "Server is being restored from snapshot. This may take 5-15 minutes.",
        "snapshot": {"id": snapshot_id, "name": "pre-migration", "created_at": snapshot["created_at"]},
        "server": {"id": SERVER, "name": "web-server-01", "status": "restoring"},
    }
    assert answer.headers["Location"] == one(snapshot_id)
    assert (await api.call("GET", answer.headers["Operation-Location"])).body["kind"] == "restore"


async def test_a_delete_answers_204_and_the_snapshot_is_gone(api: FrontEnd) -> None:
    snapshot_id = await api.have_snapshot()

    answer = await api.call("DELETE", one(snapshot_id))

    assert (answer.status, answer.raw) == (204, b"")
    assert "Content-Type" not in answer.headers
    job = (await api.call("GET", answer.headers["Operation-Location"])).body
    assert (job["id"], job["kind"], job["state"]) == (answer.headers["X-Job-Id"], "delete", "queued")
    (await api.call("GET", one(snapshot_id))).refused(404, "snapshot_not_found")
    assert (await api.call("GET")).body == {"count": 0, "results": []}


async def test_a_delete_of_a_server_that_is_gone_has_no_job(api: FrontEnd) -> None:
    snapshot_id = await api.have_snapshot()
    await api.cell.node.report([])

    answer = await api.call("DELETE", one(snapshot_id))

    assert (answer.status, answer.raw) == (204, b"")
    assert not {"Operation-Location", "X-Job-Id"} & set(answer.headers)


async def test_a_delete_frees_the_slot_and_the_name_at_once(api: FrontEnd) -> None:
    ids = [await api.have_snapshot(f"s{n}") for n in range(5)]
    (await api.create("s6")).refused(400, "snapshot_limit_reached")

    await api.call("DELETE", one(ids[0]))
    await api.cell.node.begin(await api.cell.holder())
    await api.cell.node.finish(await api.cell.holder(), Outcome(state=JobState.COMPLETED))

    assert (await api.create("s0")).status == 201


async def test_a_failed_create_stays_listed_and_does_not_count(api: FrontEnd) -> None:
    answer = await api.create("broken")
    await api.work(answer, FAILED)
    for n in range(4):
        await api.have_snapshot(f"s{n}")

    assert (await api.create("s5")).status == 201
    results = (await api.call("GET")).body["results"]
    assert len(results) == 6
    assert (results[-1]["status"], results[-1]["size_mb"]) == ("failed", None)


async def test_a_job_tells_how_it_went(api: FrontEnd) -> None:
    answer = await api.create()
    await api.cell.node.begin(job_id(answer))
    await api.cell.node.progress(job_id(answer), Step.SNAPSHOTTING)
    running = (await api.call("GET", answer.headers["Operation-Location"])).body
    await api.cell.node.finish(job_id(answer), FAILED)
    failed = (await api.call("GET", answer.headers["Operation-Location"])).body

    assert list(running) == [
        *["id", "kind", "state", "step", "percent", "server", "snapshot", "attempts", "queued_at", "started_at"],
        *["finished_at", "estimated_seconds", "downtime_seconds", "error", "disks", "notes", "contents", "consistency"],
        "retried_by",
    ]
    assert (running["state"], running["step"], running["attempts"]) == ("in_progress", "snapshotting", 1)
    assert running["percent"] == 42
    assert running["server"] == {"id": SERVER, "name": "web-server-01", "status": "snapshotting"}
    assert failed["server"]["status"] == "active"
    assert running["snapshot"] == {"id": answer.body["id"], "name": "before-update"}
    assert running["started_at"]
    assert running["finished_at"] is None
    assert failed["error"] == {"code": "disk_failed", "detail": "vda refused.", "stranded": True}
    assert failed["finished_at"]


async def test_a_step_that_the_end_overtook_is_reported_with_it(api: FrontEnd) -> None:
    answer = await api.create()
    await api.cell.node.begin(job_id(answer))
    await api.cell.node.progress(job_id(answer), Step.PREFLIGHT)
    begun = tuple(StepBegun(step=step, at=1.0, attempt=1) for step in (Step.STOPPING, Step.SNAPSHOTTING, None))
    await api.cell.node.finish(job_id(answer), FAILED, JobReport(steps=begun))

    failed = (await api.call("GET", answer.headers["Operation-Location"])).body
    assert (failed["step"], failed["percent"]) == ("snapshotting", 42)


async def test_the_estimate_is_learned_from_the_nodes_jobs(api: FrontEnd) -> None:
    first = await api.create("first")
    before = (await api.call("GET", first.headers["Operation-Location"])).body
    await api.work(first)
    after = (await api.call("GET", (await api.create("second")).headers["Operation-Location"])).body

    assert before["estimated_seconds"] is None
    assert after["estimated_seconds"] >= 1


async def test_a_busy_server_refuses_and_names_the_job(api: FrontEnd) -> None:
    snapshot_id = await api.have_snapshot()
    holding = job_id(await api.create("holding"))

    for status, answer in [
        (400, await api.create("another")),
        (400, await api.call("POST", restore(snapshot_id))),
        (409, await api.call("DELETE", one(snapshot_id))),
    ]:
        assert holding in answer.refused(status, "server_busy")["detail"]


async def test_a_name_is_taken_once_per_server(api: FrontEnd) -> None:
    await api.have_snapshot("same")

    (await api.create("same")).refused(400, "name_taken")


async def test_a_sixth_snapshot_is_refused(api: FrontEnd) -> None:
    for n in range(5):
        await api.have_snapshot(f"s{n}")

    (await api.create("sixth")).refused(400, "snapshot_limit_reached")


async def test_only_a_completed_snapshot_is_restored(api: FrontEnd) -> None:
    answer = await api.create()
    await api.work(answer, FAILED)

    (await api.call("POST", restore(answer.body["id"]))).refused(400, "snapshot_not_ready")


async def test_a_suspended_server_is_neither_snapshotted_nor_restored(api: FrontEnd) -> None:
    snapshot_id = await api.have_snapshot()
    await api.cell.have(power="paused")

    (await api.create("another")).refused(400, "server_not_ready")
    (await api.call("POST", restore(snapshot_id))).refused(400, "server_not_ready")


async def test_a_silent_node_is_503_and_nothing_is_queued(api: FrontEnd) -> None:
    snapshot_id = await api.have_snapshot()
    await api.cell.raw("HSET", "node:n1", "heartbeat_ms", "0")

    for answer in [
        await api.create("another"),
        await api.call("POST", restore(snapshot_id)),
        await api.call("DELETE", one(snapshot_id)),
    ]:
        answer.refused(503, "node_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
    assert await api.cell.raw("ZCARD", "arq:queue:n1") == 0
    assert (await api.call("GET")).body["count"] == 1


async def test_a_server_that_is_not_there_is_404(api: FrontEnd) -> None:
    (await api.call("POST", body={"server_id": 999, "name": "a"})).refused(404, "server_not_found")


@pytest.mark.parametrize(
    "bad", ["0", "-1", "1.0", "abc", "0801", "%31x", "1%00", "9" * 19, "9" * 5000, "%D9%A1", "1e3", "%F0%9F", "1%2F2"]
)
async def test_an_invalid_snapshot_id_is_404(api: FrontEnd, bad: str) -> None:
    (await api.call("GET", f"{SNAPSHOTS}{bad}/")).refused(404, "snapshot_not_found")
    (await api.call("DELETE", f"{SNAPSHOTS}{bad}/")).refused(404, "snapshot_not_found")
    (await api.call("POST", f"{SNAPSHOTS}{bad}/restore/")).refused(404, "snapshot_not_found")


@pytest.mark.parametrize("bad", ["1", "0" * 32, "0" * 31 + "G", "0" * 33, "%00", "*"])
async def test_an_invalid_job_id_is_404(api: FrontEnd, bad: str) -> None:
    (await api.call("GET", f"/api/v1/jobs/{bad}/")).refused(404, "job_not_found")


async def test_ids_of_others_look_exactly_like_missing_ones(api: FrontEnd) -> None:
    snapshot_id = await api.have_snapshot()
    running = job_id(await api.create("running"))
    stranger = await api.new_token(account=OTHERS)

    async def seen(method: str, path: str, body: object = None) -> tuple[int, str]:
        answer = await api.call(method, path, body=body, token=stranger, headers={"X-Request-Id": "same"})
        return answer.status, re.sub(
            rf"{snapshot_id}\b|999999\b|{SERVER}|{running}|{'0' * 32}", "ID", answer.raw.decode()
        )

    for method, theirs, missing in [
        ("GET", one(snapshot_id), one(999999)),
        ("DELETE", one(snapshot_id), one(999999)),
        ("POST", restore(snapshot_id), restore(999999)),
        ("GET", f"/api/v1/jobs/{running}/", f"/api/v1/jobs/{'0' * 32}/"),
        ("GET", f"{SNAPSHOTS}?server_id={SERVER}", f"{SNAPSHOTS}?server_id=999999"),
    ]:
        assert await seen(method, theirs) == await seen(method, missing)
    ask = {"name": "a"}
    assert await seen("POST", SNAPSHOTS, ask | {"server_id": SERVER}) == await seen(
        "POST", SNAPSHOTS, ask | {"server_id": 999999}
    )
    assert (await api.call("GET", token=stranger)).body == {"count": 0, "results": []}
    kept = await api.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=SnapshotId(snapshot_id))
    assert kept.status is SnapshotStatus.COMPLETED


async def test_pages_cover_the_list_and_link_to_each_other(api: FrontEnd) -> None:
    ids = [await api.have_snapshot(f"s{n}") for n in range(5)]
    path, seen = f"{SNAPSHOTS}?page_size=2&server_id={SERVER}&created_from=2025-01-01T00:00:00%2B00:00", []

    while path:
        answer = await api.call("GET", path)
        assert answer.body["count"] == 5
        seen += [result["id"] for result in answer.body["results"]]
        links = {name: target for target, name in re.findall(r'<([^>]+)>; rel="(\w+)"', answer.headers["Link"])}
        assert {"first", "last"} <= set(links)
        assert all("page_size=2" in link and f"server_id={SERVER}" in link for link in links.values())
        assert all("created_from=2025-01-01T00:00:00%2B00:00" in link for link in links.values())
        path = links.get("next", "")

    assert seen == ids[::-1]
    beyond = await api.call("GET", f"{SNAPSHOTS}?page=1000000000&page_size=500")
    assert beyond.body == {"count": 5, "results": []}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("server_id", bad) for bad in ["", "x", "0", "-5", "1.0", "%201", "1_0", "%D9%A1", "9" * 19, "9" * 5000]],
        *[("page", bad) for bad in ["", "0", "-1", "x", "1000000001", "9" * 30]],
        *[("page_size", bad) for bad in ["", "0", "501", "x", "%00"]],
    ],
)
async def test_a_bad_query_is_refused_by_the_fields_name(api: FrontEnd, field: str, value: str) -> None:
    assert (await api.call("GET", f"{SNAPSHOTS}?{field}={value}")).refused_fields() == [field]


async def test_a_repeated_parameter_is_refused(api: FrontEnd) -> None:
    assert (await api.call("GET", f"{SNAPSHOTS}?page=1&page=2")).refused_fields() == ["page"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"{SNAPSHOTS}?dryrun=true", {"server_id": SERVER, "name": "a"}),
        ("POST", f"{SNAPSHOTS}?dry_run=true&dryrun=true", {"server_id": SERVER, "name": "a"}),
        ("GET", f"{SNAPSHOTS}?page=1&dryrun=x", None),
        ("HEAD", f"{SNAPSHOTS}?dryrun", None),
        *[(method, f"{one(SERVER)}?dryrun=true", None) for method in ("GET", "PATCH", "DELETE")],
        ("POST", f"{restore(SERVER)}?dryrun=true", None),
        ("GET", "/api/v1/events/?dryrun=1", None),
        ("GET", "/api/v1/webhooks/?dryrun=1", None),
    ],
)
async def test_a_parameter_that_a_call_does_not_have_is_refused_by_its_name(
    api: FrontEnd, method: str, path: str, body: object
) -> None:
    """The check comes before any other work, but only with a valid token."""
    answer = await api.call(method, path, body=body)
    if method == "HEAD":
        assert answer.status == 400
    else:
        assert answer.refused_fields() == ["dryrun"]
    assert (await api.call(method, path, body=body, token=NOBODYS)).status == 401
    assert (await api.call("GET")).body["count"] == 0


async def test_of_many_unknown_parameters_the_refusal_stays_short(api: FrontEnd) -> None:
    many = "&".join(f"{'x' * 150}{n}=1" for n in range(25))
    fields = (await api.call("GET", f"{SNAPSHOTS}?={many}&page=1")).refused_fields()
    assert len(fields) == 20
    assert max(map(len, fields)) == 100
    assert (await api.call("GET", f"{SNAPSHOTS}?=1")).refused_fields() == ["query"]


async def test_the_node_that_deletes_is_the_servers_own(api: FrontEnd) -> None:
    """A second node in the cell gets no jobs of the first one."""
    other = node_store(api.cell.redis, node="n2", machine="m2")
    assert await other.take_lease(seconds=60) is None
    await api.call("DELETE", one(await api.have_snapshot()))

    assert await api.cell.raw("ZCARD", "arq:queue:n2") == 0


async def test_an_outcome_of_a_restore_is_followed_to_its_end(api: FrontEnd) -> None:
    answer = await api.call("POST", restore(await api.have_snapshot()))
    await api.work(answer, DONE)

    job = (await api.call("GET", answer.headers["Operation-Location"])).body
    assert (job["state"], job["error"], job["downtime_seconds"]) == ("completed", None, 1.5)
