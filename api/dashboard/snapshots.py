"""The page of one snapshot: its state and its history, also after it is deleted."""

from collections.abc import Mapping

from aiohttp import web

from api.dashboard.context import Context, Section
from api.dashboard.session import OperatorRequest
from api.http.reading import in_path
from api.snapshots.bodies import SNAPSHOT_ID

SNAPSHOT = "/ops/snapshots/{snapshot_id}/"
HAPPENED: Mapping[str, str] = {
    "created": "created",
    "restored": "server restored from it",
    "protected": "protected from deletion",
    "unprotected": "protection removed",
    "expiry_set": "expiry changed",
    "deleted": "deleted",
    "expired": "deleted because it expired",
    "rotated": "deleted to keep its schedule's limit",
    "forgotten": "space freed, record removed",
}


async def show_one(context: Context, request: OperatorRequest) -> web.Response:
    known = await context.operators.snapshot(in_path(request.http, SNAPSHOT_ID))
    return context.rendering.page(
        request.http, "snapshot.html", known=known, snapshot=known.record, history=known.history[::-1], words=HAPPENED
    )


SECTION = Section(pages={SNAPSHOT: show_one})
