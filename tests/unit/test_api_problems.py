"""Every refusal has an HTTP status and a code."""

import json

import pytest
from aiohttp import web

from api.http import problems
from worker.store import errors
from worker.store.model import SNAPSHOTS_PER_SERVER
from worker.store.schedules.schedules import SCHEDULES_PER_SERVER
from worker.store.webhooks.webhooks import WEBHOOKS_PER_ACCOUNT


def every_refusal() -> list[type[errors.Refused]]:
    found, unseen = [], [errors.Refused]
    while unseen:
        below = unseen.pop().__subclasses__()
        found += below
        unseen += below
    return found


def made(kind: type[errors.Refused]) -> errors.Refused:
    return kind("What is true.")


def test_every_refusal_is_listed() -> None:
    assert sorted(errors.REFUSALS, key=str) == sorted(every_refusal(), key=str)


@pytest.mark.parametrize("kind", every_refusal())
def test_every_refusal_has_an_http_status_and_an_example(kind: type[errors.Refused]) -> None:
    example = errors.example(kind)

    assert isinstance(example, kind)
    assert 400 <= kind.status < 600
    assert "{" not in example.detail
    assert kind.status not in {429, 503} or kind.retry_after_seconds


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (errors.ScheduleLimitReached, SCHEDULES_PER_SERVER),
        (errors.SnapshotLimitReached, SNAPSHOTS_PER_SERVER),
        (errors.WebhookLimitReached, WEBHOOKS_PER_ACCOUNT),
    ],
)
def test_the_example_of_a_limit_has_the_services_limit(kind: type[errors.Refused], limit: int) -> None:
    assert errors.example(kind).limit == limit


def test_codes_are_unique_and_snake_case() -> None:
    codes = [kind.code for kind in every_refusal()]

    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


@pytest.mark.parametrize("kind", every_refusal())
def test_a_refusal_becomes_a_problem_document(kind: type[errors.Refused]) -> None:
    refusal = made(kind)

    response = problems.respond(problems.of_refusal(refusal, method="POST"), request_id="r1")

    assert isinstance(response.body, bytes)
    body = json.loads(response.body)
    assert response.content_type == "application/problem+json"
    assert list(body) == ["type", "title", "status", "detail", "code", "request_id"]
    assert body["status"] == response.status == kind.status
    assert (body["code"], body["detail"], body["request_id"]) == (kind.code, refusal.detail, "r1")
    assert body["type"] == f"/docs/errors/#{kind.code}"


@pytest.mark.parametrize(("method", "status"), [("POST", 400), ("DELETE", 409)])
def test_a_busy_server_is_400_and_409_on_delete(method: str, status: int) -> None:
    assert problems.of_refusal(made(errors.ServerBusy), method=method).status == status


@pytest.mark.parametrize("kind", [errors.NodeUnavailable, errors.StoreUnavailable])
def test_temporary_refusals_have_retry_after(kind: type[errors.Refused]) -> None:
    problem = problems.of_refusal(made(kind), method="POST")

    assert problem.status == 503
    assert int(problem.headers["Retry-After"]) > 0


def test_a_problem_of_aiohttps_own_has_a_code_too() -> None:
    assert problems.of_http(web.HTTPRequestHeaderFieldsTooLarge()).code == "request_header_fields_too_large"
