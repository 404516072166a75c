"""The audit log's entry of a call."""

import re

import structlog
from aiohttp import web

from api.http.audit_budget import AuditBudget
from api.http.marks import ACCOUNT, EACH, MADE, PROBLEM, REASON, REQUEST_ID, SERVER_ID, TOKEN
from worker.store.access.tokens import Permission

_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_PATH_MAX = 200  # characters: an ID in the path may be any text before it is validated
_JOB_ID = re.compile(r"[0-9a-f]{32}")

log = structlog.get_logger()


def is_audited(request: web.Request, response: web.StreamResponse) -> bool:
    """Whether the call is audited: only calls with a valid token and within its limit, so that an unauthenticated
    client cannot push out entries. The program's log has the others."""
    limited = response.status == web.HTTPTooManyRequests.status_code
    return request.method in _CHANGING and TOKEN in request and not limited


def is_within_budget(request: web.Request, response: web.StreamResponse, budget: AuditBudget) -> bool:
    """Whether the token may add an entry to the audit log. Calls that start a job, which limit themselves, and
    operators always may."""
    token = request[TOKEN]
    is_dry_run = "dry_run" in request.query
    starts_job = "X-Job-Id" in response.headers and not is_dry_run and response.status < web.HTTPBadRequest.status_code
    if starts_job or Permission.OPERATOR in token.permissions:
        return True
    left = budget.left(token.id, str(request.get(ACCOUNT, "")))
    if left == 1:
        request[REASON] = (
            "Until the end of the hour, further calls of this token that start no job are only in the program's log."
        )
        log.warning("audit.limit_reached", token=token.id)
    return left > 0


def known(request: web.Request, address: str, *, status: int) -> dict[str, str]:
    """The fields that depend neither on the caller nor on the result."""
    fields = {
        "method": request.method,
        "path": request.rel_url.raw_path[:_PATH_MAX],
        "address": address,
        "status": str(status),
        "request_id": request[REQUEST_ID],
    }
    return fields | ({"server": str(request[SERVER_ID])} if SERVER_ID in request else {})


def entries(request: web.Request, response: web.StreamResponse, address: str) -> list[dict[str, str]]:
    """The entries of a call: who did what, from where, and the result. A bulk call has one entry for each item."""
    token = request[TOKEN]
    entry = known(request, address, status=response.status) | {
        "token": token.id,
        "token_name": token.name,
        "account": str(request.get(ACCOUNT, "")),
        "job": response.headers.get("X-Job-Id") or _job_in_path(request),
        "made": request.get(MADE, ""),
        "code": request.get(PROBLEM, ""),
        "reason": request.get(REASON, ""),
    }
    each = [entry | one for one in request.get(EACH, ())] or [entry]
    return [{field: text for field, text in one.items() if text} for one in each]


def _job_in_path(request: web.Request) -> str:
    """The job that the path names, if that is a valid ID."""
    text = request.match_info.get("job_id", "")
    return text if _JOB_ID.fullmatch(text) else ""
