"""The audit: who did what."""

import re
from collections import defaultdict
from datetime import datetime
from typing import Annotated

from aiohttp import web
from pydantic import BeforeValidator, Field

from api.dashboard import desk as at
from api.dashboard.desk import Desk, Pages
from api.dashboard.session import Visit
from api.http.fields import Moment
from api.operators.bodies import AuditQuery

AUDIT = "/ops/audit/"
SHOWN = 50
METHODS = ("POST", "PATCH", "PUT", "DELETE", "CLI")

_OF_A_BROWSER = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")


def _in_utc(text: object) -> object:
    """A browser's field of date and time says neither zone nor, at the full minute, seconds."""
    if isinstance(text, str) and _OF_A_BROWSER.fullmatch(text):
        return f"{datetime.fromisoformat(text).isoformat()}Z"
    return text


Since = Annotated[Moment, BeforeValidator(_in_utc)]


class Query(AuditQuery):
    """As the API's, with moments as a browser sends them too."""

    since: Annotated[Since, Field(description="at this moment or later")] | None = None
    until: Annotated[Since, Field(description="before this moment")] | None = None


async def show_all(desk: Desk, visit: Visit) -> web.Response:
    query = at.query(visit, Query, limit=SHOWN)
    part = await desk.operators.audit(query.filter, since=query.since, until=query.until, cursor=query.cursor)
    return desk.rendering.page(
        visit.request,
        "audit.html",
        filters=at.filters(visit, query),
        query=query,
        part=part,
        fields=lambda entry: defaultdict(str, entry.fields),  # an entry leaves out what there is nothing to say of
        methods=METHODS,
    )


PAGES: Pages = {AUDIT: show_all}
