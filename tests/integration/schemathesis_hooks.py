"""Knowledge about this API that Schemathesis lacks; it loads this file into its own process."""

import json
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urljoin

import schemathesis

JOB_SECONDS = 20.0
VALUES = {
    "when": "daily",
    **dict.fromkeys(("expires_at", "until"), "2030-12-31T23:59:59Z"),
    "url": "https://hooks.example.com/",
}
OF_NO_CALL = {"not_found", "method_not_allowed"}  # for a path or a method that is not in the document


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """An account's own token need not name the account; a random name is another account's and always refused."""
    if not _is_positive(case):
        return
    if case.headers is not None:
        case.headers.pop("X-Account-Id", None)
    if case.query is not None:  # JSON Schema accepts 7.0 as an integer; a query is text
        whole = {
            name: int(value) for name, value in case.query.items() if isinstance(value, float) and value.is_integer()
        }
        case.query.update(whole)
    if isinstance(case.body, dict):  # constraints that no schema can express: a cron expression, a time in the future
        case.body.update({field: value for field, value in VALUES.items() if case.body.get(field) is not None})
        if "schedules/" in case.path:
            _fit_schedule(case.body, is_new=case.method.upper() == "POST")


def _fit_schedule(body: dict[str, Any], *, is_new: bool) -> None:
    """Give a schedule a server or labels, and a window if it has labels."""
    if body.get("time_zone") is not None:
        body["time_zone"] = "Europe/Berlin"
    if "window_minutes" in body:
        body["window_minutes"] = 60
    if is_new and ("server_id" in body) == ("server_labels" in body):
        body.pop("server_id", None)
        body["server_labels"] = {"env": "test"}
    if not is_new:
        body.pop("server_labels", None)


@schemathesis.hook
def after_call(_context: Any, _case: Any, response: schemathesis.Response) -> None:
    """Wait for the job that a call has started, so that the next call finds its result."""
    place = response.headers.get("operation-location")
    if not place or "/ops/" in place[0]:  # the node of an operator's job may be paused
        return
    headers = {"Authorization": str(response.request.headers["Authorization"])}
    request = urllib.request.Request(urljoin(str(response.request.url), place[0]), headers=headers)  # noqa: S310
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(request, timeout=JOB_SECONDS) as answer:  # noqa: S310 # the service's own address
            if json.load(answer)["state"] in {"completed", "failed"}:
                return
        time.sleep(0.01)
    raise AssertionError(f"{place[0]} did not end within {JOB_SECONDS:.0f} s")


@schemathesis.check
def each_problem_is_documented(_context: Any, response: schemathesis.Response, case: Any) -> None:
    """The document lists the problem's code for this call and status."""
    if response.headers.get("content-type") != ["application/problem+json"]:
        return
    code = response.json()["code"]
    answers = case.operation.definition.raw["responses"]
    media = answers.get(str(response.status_code), {}).get("content", {}).get("application/problem+json", {})
    assert code in media.get("examples", {}) or code in OF_NO_CALL, f"{response.status_code} {code} is not documented"


@schemathesis.check
def what_fits_the_schema_is_never_called_invalid(_context: Any, response: schemathesis.Response, case: Any) -> None:
    """For a valid request, a 400 is about the server's state: 5 snapshots, a name taken, not completed yet."""
    if _is_positive(case) and response.status_code == 400:
        assert response.json()["code"] != "invalid_request", response.text


def _is_positive(case: Any) -> bool:
    return case.meta is not None and case.meta.generation.mode.is_positive
