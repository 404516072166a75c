"""RFC 9457 problem documents."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from math import ceil
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from api.http.answers import Timestamp
from worker.store import errors

DOCS_URL = "/docs"  # URL of the API's documentation for callers
_CHALLENGE = 'Bearer realm="vps-snapshots"'


class Conflict(BaseModel):
    """The object of an earlier request that this request conflicts with. If you repeated a request without a key
    because its response was lost, this shows whether the first one took effect."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    job_id: Annotated[str | None, Field(description="only for `server_busy`")]
    job_kind: Annotated[str | None, Field(description="only for `server_busy`: the job's `kind`; more may be added")]
    snapshot_id: Annotated[int | None, Field(description="the snapshot that has the name, or that the job is about")]
    requested_at: Timestamp


class FieldError(BaseModel):
    """What is wrong with a field of a request: a key of the body, a query parameter, a header, or the whole `body`."""

    model_config = ConfigDict(frozen=True)

    field: str
    detail: str


class ProblemDocument(BaseModel):
    """Why a request was refused (RFC 9457)."""

    model_config = ConfigDict(frozen=True)

    type: Annotated[
        str,
        Field(description="URL of the documentation of the code", json_schema_extra={"format": "uri-reference"}),
    ]
    title: str
    status: Annotated[int, Field(description="the HTTP status")]
    detail: Annotated[str, Field(description="the reason, for people")]
    code: Annotated[str, Field(description="stable, snake_case; more may be added")]
    request_id: Annotated[str, Field(description="the X-Request-Id of the response")]
    errors: Annotated[
        tuple[FieldError, ...],
        Field(description="only for `invalid_request`: each invalid field", exclude_if=lambda errors: not errors),
    ] = ()
    conflicts_with: Annotated[
        Conflict | None,
        Field(description="only for `server_busy` and `name_taken`", exclude_if=lambda conflict: conflict is None),
    ] = None


@dataclass(eq=False)
class Problem(Exception):
    """The response to a refused request. The caller sees all of it."""

    status: int
    code: str
    detail: str
    fields: tuple[FieldError, ...] = ()
    conflict: Conflict | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def invalid(*fields: FieldError) -> Problem:
    """A request with invalid fields; the problem names each of them."""
    detail = " ".join(f"{each.field}: {each.detail}" for each in fields)
    return Problem(400, "invalid_request", detail, fields=fields)


def unauthenticated(secret: str) -> Problem:
    """No token, or an invalid one."""
    if not secret:
        detail = "Send an access token: Authorization: Bearer TOKEN."
        return Problem(401, "token_missing", detail, headers={"WWW-Authenticate": _CHALLENGE})
    challenge = f'{_CHALLENGE}, error="invalid_token"'
    detail = "The access token is unknown, revoked or expired."
    return Problem(401, "token_invalid", detail, headers={"WWW-Authenticate": challenge})


def rate_limited(calls: str, wait: timedelta) -> Problem:
    """Too many calls. `calls`: which calls are counted; `wait`: until the next one is allowed."""
    headers = {"Retry-After": str(max(1, ceil(wait.total_seconds())))}
    return Problem(429, "rate_limited", f"Too many calls {calls} within one minute.", headers=headers)


def of_refusal(refusal: errors.Refused, *, method: str) -> Problem:
    status = refusal.status
    if isinstance(refusal, errors.ServerBusy) and method in {"DELETE", "PUT"}:
        status = 409  # the contract has no 400 on a delete
    wait = refusal.retry_after_seconds
    headers = {} if wait is None else {"Retry-After": str(wait)}
    if refusal.limit is not None:
        headers["X-Limit"] = str(refusal.limit)
    conflict = Conflict.model_validate(refusal.in_the_way) if refusal.in_the_way else None
    return Problem(status, refusal.code, refusal.detail, conflict=conflict, headers=headers)


def of_http(error: web.HTTPException) -> Problem:
    """Errors of aiohttp itself: an unknown path, or a method that the path does not support."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(405, "method_not_allowed", f"Allowed methods: {allowed}.", headers={"Allow": allowed})
    if isinstance(error, web.HTTPNotFound):
        return Problem(404, "not_found", "This path does not exist.")
    code = error.reason.lower().replace(" ", "_")
    return Problem(error.status, code, f"{error.reason}.")


def internal_error(status: int = 500) -> Problem:
    """A bug: only the log has the details."""
    return Problem(status, "internal_error", "An internal error occurred. It was logged.")


def document(problem: Problem, *, request_id: str, docs_url: str = DOCS_URL) -> ProblemDocument:
    """`docs_url`: URL of the documentation, whose page of errors has a section for each code."""
    return ProblemDocument(
        type=f"{docs_url}/errors/#{problem.code}",
        title=problem.code.replace("_", " ").capitalize(),
        status=problem.status,
        detail=problem.detail,
        code=problem.code,
        request_id=request_id,
        errors=problem.fields,
        conflicts_with=problem.conflict,
    )


def respond(problem: Problem, *, request_id: str, docs_url: str = DOCS_URL) -> web.Response:
    content = document(problem, request_id=request_id, docs_url=docs_url)
    return web.Response(
        body=json.dumps(content.model_dump(mode="json")).encode(),
        status=problem.status,
        headers=problem.headers,
        content_type="application/problem+json",
    )
