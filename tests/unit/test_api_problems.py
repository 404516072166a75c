"""Every refusal has an HTTP status and a code."""

import json

import pytest
from aiohttp import web

from api.http import problems
from worker.store import errors


def every_refusal() -> list[type[errors.Refused]]:
    found, unseen = [], [errors.Refused]
    while unseen:
        below = unseen.pop().__subclasses__()
        found += below
        unseen += below
    return found


def made(kind: type[errors.Refused]) -> errors.Refused:
    return kind("What is true.")


def test_every_refusal_has_an_http_status_and_no_other_has() -> None:
    assert set(problems.STATUS) == set(every_refusal())


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
    assert body["status"] == response.status == problems.STATUS[kind]
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
