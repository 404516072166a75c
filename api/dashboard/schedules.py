"""The schedules: what will run, and when."""

from typing import Literal

from aiohttp import web

from api.dashboard.context import Context, LocalMoment, Section, read_filters, read_page, read_query
from api.dashboard.rendering import Link
from api.dashboard.session import OperatorRequest
from api.schedules.bodies import OpsSchedulesQuery

SCHEDULES = "/ops/schedules/"
LIMIT = 50


class Query(OpsSchedulesQuery):
    """The API's query, with times as browsers send them."""

    since: LocalMoment | None = None
    until: LocalMoment | None = None
    target: Literal["server", "labels", "all"] = "all"


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    query = read_query(request, Query, limit=LIMIT)
    page = await read_page(
        request,
        lambda: context.operators.schedules(
            account_id=query.account_id, server_id=query.server_id, cursor=query.cursor, target=query.target
        ),
    )
    return context.rendering.page(
        request.http, "schedules.html", filters=read_filters(request, query), query=query, page=page
    )


SECTION = Section(
    pages={SCHEDULES: show_all},
    link=Link(href=SCHEDULES, name="Schedules", key="c"),
)
