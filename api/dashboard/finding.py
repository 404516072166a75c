"""The search box of each page: finds everything by its ID or name."""

from collections.abc import Sequence

from aiohttp import web

from api.dashboard.context import Context, Section
from api.dashboard.rendering import address
from api.dashboard.session import OperatorRequest
from api.http import reading
from api.operators.lookups import SearchQuery
from worker.store.operators.finding import Hit

FIND = "/ops/find/"


async def find(context: Context, request: OperatorRequest) -> web.Response:
    """The matches of the text, or the page of the only match."""
    if not request.http.query.get("q", "").strip():
        return context.rendering.page(request.http, "find.html", q="", hits=(), page_of=page_of)
    q = reading.query(request.http, SearchQuery).q
    hits = await context.operators.search(q)
    if (only := _only(hits)) is not None:
        return web.Response(status=303, headers={"Location": page_of(only.kind, only.id), "Cache-Control": "no-store"})
    return context.rendering.page(request.http, "find.html", q=q, hits=hits, page_of=page_of)


def _only(hits: Sequence[Hit]) -> Hit | None:
    """The only exact match, or the only match."""
    exact = [hit for hit in hits if hit.exact]
    likely = exact or hits
    return likely[0] if len(likely) == 1 else None


def page_of(kind: str, found: str) -> str:
    if kind == "account":
        return address("/ops/servers/", account_id=found)
    if kind in {"token", "request"}:
        return address("/ops/audit/", {f"{kind}_id": found})
    return f"/ops/{kind}s/{found}/"


SECTION = Section(pages={FIND: find})
