"""The whole service as processes with the simulated hypervisor: tests that need a front end, Redis and a worker."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.demo.client import Client
from deploy.demo.service import SERVER_ID, Service
from deploy.demo.state import State
from tests.integration.scraping import samples, value
from tests.integration.whole_service import fetched, running


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State.open(tmp_path / "state")
    yield state
    state.close()


@pytest.fixture
async def service(state: State) -> AsyncIterator[Service]:
    async with running(state) as service:
        yield service


@pytest.fixture
def customer(service: Service) -> Client:
    return service.client


async def create(customer: Client, name: str) -> int:
    answer = await customer.call("POST", "/api/v1/snapshots/", {"server_id": SERVER_ID, "name": name})
    assert answer.status == 201
    await customer.follow(answer.headers["Operation-Location"], timeout_seconds=30)
    snapshot_id: int = answer.body["id"]
    return snapshot_id


async def test_a_restore_is_undone_over_http(customer: Client) -> None:
    snapshot_id = await create(customer, "s")
    answer = await customer.call("POST", f"/api/v1/snapshots/{snapshot_id}/restore/")
    restore = await customer.follow(answer.headers["Operation-Location"], timeout_seconds=30)

    undo = await customer.call("POST", f"/api/v1/restores/{restore['id']}/undo/")

    assert (undo.status, undo.body["kind"]) == (202, "undo")
    ended = await customer.follow(undo.headers["Operation-Location"], timeout_seconds=30)
    assert ended["state"] == "completed"
    again = await customer.call("POST", f"/api/v1/restores/{restore['id']}/undo/")
    assert (again.status, again.body["code"]) == (400, "undo_unavailable")
    unknown = await customer.call("POST", f"/api/v1/restores/{'0' * 32}/undo/")
    assert (unknown.status, unknown.body["code"]) == (404, "job_not_found")


async def test_both_programs_tell_prometheus_of_themselves(service: Service) -> None:
    await create(service.client, "s")
    front_end, worker = [samples(await fetched(url)) for url in service.metrics_urls]

    route = {"method": "POST", "route": "/api/v1/snapshots/", "status": "2xx"}
    assert value(front_end, "http_request_duration_seconds_count", **route) == 1
    assert value(worker, "jobs_total", kind="create", outcome="completed") == 1
    assert value(worker, "lease_held") == 1
    for program, reached, call in ((front_end, "redis", "redis_command"), (worker, "gateway", "gateway_request")):
        assert value(program, f"{reached}_up") == 1
        assert value(program, f"{call}_duration_seconds_count") > 0
        assert ("process_resident_memory_bytes", frozenset()) in program


async def test_a_dry_run_answers_with_the_nodes_checks_and_leaves_nothing_behind(customer: Client) -> None:
    check = await customer.call("POST", "/api/v1/snapshots/?dry_run=true", {"server_id": SERVER_ID, "name": "s"})
    assert (check.status, check.body["kind"], check.body["state"]) == (200, "check_create", "completed")
    assert check.body["snapshot"] is None
    assert (await customer.call("GET", "/api/v1/snapshots/")).body["count"] == 0

    restore = f"/api/v1/snapshots/{await create(customer, 's')}/restore/"
    check = await customer.call("POST", f"{restore}?dry_run=true")
    assert (check.status, check.body["kind"], check.body["state"]) == (200, "check_restore", "completed")
    unclear = await customer.call("POST", f"{restore}?dry_run=perhaps")
    assert (unclear.status, unclear.body["errors"][0]["field"]) == (400, "dry_run")


async def test_each_line_of_a_job_names_it_and_its_request_and_one_line_ends_it(customer: Client, state: State) -> None:
    created = await customer.call("POST", "/api/v1/snapshots/", {"server_id": SERVER_ID, "name": "secret-name"})
    snapshot = created.headers["Location"]
    asked = {"create": created}
    await customer.follow(created.headers["Operation-Location"], timeout_seconds=30)
    asked["restore"] = await customer.call("POST", f"{snapshot}restore/")
    await customer.follow(asked["restore"].headers["Operation-Location"], timeout_seconds=30)

    text = state.log("worker").read_text()
    lines = [json.loads(line) for line in text.splitlines()]

    for kind, answer in asked.items():
        of_the_job = [line for line in lines if line.get("job_id") == answer.headers["X-Job-Id"]]
        assert {line["request_id"] for line in of_the_job} == {answer.headers["X-Request-Id"]}
        assert {line["kind"] for line in of_the_job} == {kind}
        (end,) = [line for line in of_the_job if line["event"] == "job.completed"]
        assert end["server_id"] == SERVER_ID
        assert end["seconds"] >= end["downtime_seconds"] >= 0
        assert end["downtime_seconds"] == round(end["downtime_seconds"], 3)
    assert "secret-name" not in text
    assert customer.token not in text
