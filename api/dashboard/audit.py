"""The audit log: who did what, in words."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field, StringConstraints

from api.dashboard.context import Context, LocalMoment, Section, read_filters, read_page, read_query
from api.dashboard.finding import page_of
from api.dashboard.rendering import WRONG, Link
from api.dashboard.session import OperatorRequest
from api.http import reading
from api.http.problems import FieldError, Problem, invalid
from api.operators.audit_words import Named
from api.operators.bodies import AuditQuery
from api.resources import AUDIT_WORDS

AUDIT = "/ops/audit/"
LIMIT = 50
METHODS = ("POST", "PATCH", "PUT", "DELETE", "CLI", "SERVICE")
TEXT_MAX = 100

_ABOUT = {  # the kinds that the filter "About" takes, and the API's filter for each
    "server": "server_id",
    "snapshot": "snapshot_id",
    "job": "job_id",
    "node": "node",
    "account": "account_id",
    "request": "request_id",
}
_TOKEN_ID = re.compile(r"[0-9a-f]{12}")
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_Text = Annotated[str, StringConstraints(max_length=TEXT_MAX, strip_whitespace=True)]


class Query(AuditQuery):
    """The API's query, with times as browsers send them, and with two filters for people: `about`, such as "server
    12345", and `by`, the name or ID of a token."""

    since: LocalMoment | None = None
    until: LocalMoment | None = None
    about: Annotated[_Text, Field(description="an object by kind and ID")] | None = None
    by: _Text | None = None
    what: Literal["changes", "logins"] = "changes"


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    query = read_query(request, Query, limit=LIMIT)
    meant = _meant(request, query)
    page = await read_page(request, lambda: context.operators.audit(meant.filter, query.cursor))
    return context.rendering.page(
        request.http,
        "audit.html",
        filters=read_filters(request, query),
        query=query,
        about=query.about or _about(query),
        by=query.by or query.token_id or query.token_name or "",
        page=page,
        fields=lambda entry: defaultdict(str, entry.fields),  # an entry has no empty fields
        said=AUDIT_WORDS.said,
        page_of=page_of_named,
        methods=METHODS,
    )


def page_of_named(named: Named) -> str:
    return page_of(named.kind, named.id)


def _meant(request: OperatorRequest, query: Query) -> AuditQuery:
    """The equivalent query of the API. An error is shown beside its field, as in `read_query`."""
    try:
        return _read_texts(query)
    except Problem as problem:
        errors = {"by" if error.field.startswith("token_") else "about": error.detail for error in problem.fields}
        request.http[WRONG] = {**request.http.get(WRONG, {}), **errors}
        return query


def _read_texts(query: Query) -> AuditQuery:
    """Raises Problem."""
    given: dict[str, Any] = {}
    if query.request_id:
        query = query.model_copy(update={"what": None})  # a request is shown whatever it did
    if query.about:
        given |= _read_about(query.about)
    if query.by:
        given |= {"token_id" if _TOKEN_ID.fullmatch(query.by) else "token_name": query.by}
    read = reading.validated(given, AuditQuery)
    return query.model_copy(update={name: getattr(read, name) for name in given})


def _read_about(text: str) -> Mapping[str, str]:
    kind, _, rest = " ".join(text.replace(":", " ", 1).split()).partition(" ")
    if rest and kind.lower() in _ABOUT:
        return {_ABOUT[kind.lower()]: rest}
    if rest:
        raise invalid(FieldError(field="about", detail=f"Put one of {', '.join(_ABOUT)} in front of an ID."))
    return {"job_id" if _JOB_ID.fullmatch(kind) else "server_id" if kind.isdecimal() else "node": kind}


def _about(query: Query) -> str:
    """The filter `about` for a link that uses one of the API's filters."""
    found = ((kind, getattr(query, name)) for kind, name in _ABOUT.items())
    return next((f"{kind} {value}" for kind, value in found if value is not None), "")


SECTION = Section(pages={AUDIT: show_all}, link=Link(href=AUDIT, name="Audit", key="a"))
