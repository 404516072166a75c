"""Refusals on the wire: RFC 9457 problem documents. The one table that gives each refusal its HTTP status is here."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from worker.store import errors

STATUS: dict[type[errors.Refused], int] = {
    errors.ServerNotFound: 404,
    errors.SnapshotNotFound: 404,
    errors.JobNotFound: 404,
    errors.ScheduleNotFound: 404,
    errors.ScheduleLimitReached: 400,
    errors.WebhookNotFound: 404,
    errors.WebhookLimitReached: 400,
    errors.ServerBusy: 400,  # the contract's code on create and restore
    errors.SnapshotLimitReached: 400,
    errors.NameTaken: 400,
    errors.SnapshotNotReady: 400,
    errors.UndoUnavailable: 400,
    errors.NodeNotFound: 404,
    errors.TokenNotFound: 404,
    errors.SnapshotProtected: 409,
    errors.RecordUnreadable: 409,
    errors.JobNotRetryable: 409,
    errors.JobNotStranded: 409,
    errors.JobNotCancellable: 409,
    errors.WebhookNotReady: 409,
    errors.IdempotencyKeyReused: 422,
    errors.ServerNotReady: 400,
    errors.TooManyStreams: 429,
    errors.NodeUnavailable: 503,
    errors.StoreUnavailable: 503,
}
RETRY_AFTER_SECONDS: dict[type[errors.Refused], int] = {
    errors.TooManyStreams: 30,
    errors.NodeUnavailable: 30,
    errors.StoreUnavailable: 5,
}


class FieldError(BaseModel):
    """What is wrong with one field of a request: a key of the body, a query parameter, a header, the whole `body`."""

    model_config = ConfigDict(frozen=True)

    field: str
    detail: str


class ProblemDocument(BaseModel):
    """Why a request was not done (RFC 9457)."""

    model_config = ConfigDict(frozen=True)

    type: Annotated[str, Field(description="a URN that ends with the code")]
    title: str
    status: Annotated[int, Field(description="the HTTP status again")]
    detail: Annotated[str, Field(description="what is true now, for a person's eyes")]
    code: Annotated[str, Field(description="stable, snake_case; more may be added")]
    request_id: Annotated[str, Field(description="that of the header X-Request-Id")]
    errors: Annotated[
        tuple[FieldError, ...],
        Field(description="of `invalid_request`: each field that is wrong", exclude_if=lambda errors: not errors),
    ] = ()


class Problem(Exception):
    """The answer to a request that is not done. Everything in it is for the caller's eyes."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        fields: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = tuple(fields)
        self.headers = dict(headers or {})


def invalid(*fields: FieldError) -> Problem:
    """A request that says something it can't; the problem names each field."""
    detail = " ".join(f"{field.field}: {field.detail}" for field in fields)
    return Problem(400, "invalid_request", detail, fields=fields)


def of_refusal(refusal: errors.Refused, *, method: str) -> Problem:
    status = STATUS[type(refusal)]
    if isinstance(refusal, errors.ServerBusy) and method == "DELETE":
        status = 409  # the contract knows no 400 on a delete
    wait = RETRY_AFTER_SECONDS.get(type(refusal))
    headers = {} if wait is None else {"Retry-After": str(wait)}
    return Problem(status, refusal.code, refusal.detail, headers=headers)


def of_http(error: web.HTTPException) -> Problem:
    """What aiohttp itself refuses: no such path, a method that the path doesn't know."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(405, "method_not_allowed", f"This path knows {allowed} only.", headers={"Allow": allowed})
    if isinstance(error, web.HTTPNotFound):
        return Problem(404, "not_found", "There is nothing at this path.")
    code = error.reason.lower().replace(" ", "_")
    return Problem(error.status, code, f"{error.reason}.")


def broke(status: int = 500) -> Problem:
    """A bug of ours: the log has what the caller is not shown."""
    return Problem(status, "internal_error", "Something went wrong on our side. It was written down.")


def document(problem: Problem, *, request_id: str) -> ProblemDocument:
    return ProblemDocument(
        type=f"urn:problem-type:vps-snapshots:{problem.code}",
        title=problem.code.replace("_", " ").capitalize(),
        status=problem.status,
        detail=problem.detail,
        code=problem.code,
        request_id=request_id,
        errors=problem.fields,
    )


def respond(problem: Problem, *, request_id: str) -> web.Response:
    return web.Response(
        body=json.dumps(document(problem, request_id=request_id).model_dump(mode="json")).encode(),
        status=problem.status,
        headers=problem.headers,
        content_type="application/problem+json",
    )
