"""The audit log: who did what."""

import re
from collections import defaultdict
from datetime import datetime
from typing import Annotated

from aiohttp import web
from pydantic import BeforeValidator, Field

from api.dashboard.context import Context, Pages, read_filters, read_query
from api.dashboard.session import OperatorRequest
from api.http.fields import Moment
from api.operators.bodies import AuditQuery

AUDIT = "/ops/audit/"
LIMIT = 50
METHODS = ("POST", "PATCH", "PUT", "DELETE", "CLI")

_DATETIME_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")


def _as_utc(text: object) -> object:
    """A `datetime-local` input sends no zone, and no seconds if they are 0."""
    if isinstance(text, str) and _DATETIME_LOCAL.fullmatch(text):
        return f"{datetime.fromisoformat(text).isoformat()}Z"
    return text


LocalMoment = Annotated[Moment, BeforeValidator(_as_utc)]


class Query(AuditQuery):
    """The API's query, with moments as browsers send them."""

    since: Annotated[LocalMoment, Field(description="at this moment or later")] | None = None
    until: Annotated[LocalMoment, Field(description="before this moment")] | None = None


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    query = read_query(request, Query, limit=LIMIT)
    page = await context.operators.audit(query.filter, since=query.since, until=query.until, cursor=query.cursor)
    return context.rendering.page(
        request.http,
        "audit.html",
        filters=read_filters(request, query),
        query=query,
        page=page,
        fields=lambda entry: defaultdict(str, entry.fields),  # an entry has no empty fields
        methods=METHODS,
    )


PAGES: Pages = {AUDIT: show_all}
