"""The audit log: who did what."""

from collections import defaultdict

from aiohttp import web

from api.dashboard.context import Context, LocalMoment, Pages, read_filters, read_page, read_query
from api.dashboard.session import OperatorRequest
from api.operators.bodies import AuditQuery

AUDIT = "/ops/audit/"
LIMIT = 50
METHODS = ("POST", "PATCH", "PUT", "DELETE", "CLI")


class Query(AuditQuery):
    """The API's query, with moments as browsers send them."""

    since: LocalMoment | None = None
    until: LocalMoment | None = None


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    query = read_query(request, Query, limit=LIMIT)
    page = await read_page(request, lambda: context.operators.audit(query.filter, query.cursor))
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
