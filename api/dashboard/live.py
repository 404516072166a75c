"""The stream of events that tells open pages to look again."""

from aiohttp import web

from api.dashboard.desk import Desk
from api.dashboard.session import Visit
from api.events.streams import event_stream


async def follow(desk: Desk, visit: Visit) -> web.StreamResponse:
    # From now on: a page that was away for a while asks for all of itself again, and needs no event of before.
    return await desk.streams.send(
        visit.request,
        event_stream(),
        None,
        last_event_id=None,
        still_allowed=lambda: desk.door.still(visit.request),
    )
