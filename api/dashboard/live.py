"""The event stream that makes open pages refresh."""

from aiohttp import web

from api.dashboard.context import Context
from api.dashboard.session import OperatorRequest

ALIVE_SECONDS = 2.0  # ops.js drops a stream that is silent for 5 seconds


async def follow(context: Context, request: OperatorRequest) -> web.StreamResponse:
    # No replay: a page that reconnects refreshes completely.
    return await context.streams.send(
        request.http,
        None,
        last_event_id=None,
        still_allowed=lambda: context.guard.is_valid(request.http),
        alive_seconds=ALIVE_SECONDS,
    )
