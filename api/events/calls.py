"""The calls that follow jobs as they change."""

from aiohttp import web

from api.events import examples
from api.events.streams import Streams
from api.http import reading
from api.http.callers import Caller, Callers
from api.http.calls import API, EVENT_STREAM, FOR_OPERATORS, OPS, READ, Reply, Table
from worker.store import errors
from worker.store.access.tokens import Permission, Token
from worker.store.customers.events import Audience

EVENTS = f"{API}events/"
OPS_EVENTS = f"{OPS}events/"
STREAM = (
    "An endless stream of events. The schema describes one event with its fields `event`, `id` and `data`;"
    " more may be added."
)

call: Table[Caller] = Table("jobs")
ops_call: Table[Token] = Table("operators", **FOR_OPERATORS)


class EventCalls:
    def __init__(self, streams: Streams, callers: Callers) -> None:
        self._streams = streams
        self._callers = callers

    @call(
        f"GET {EVENTS}",
        Reply(200, {"job": examples.JOB, "missed": examples.MISSED}, STREAM, media=EVENT_STREAM),
        refusals=(errors.TooManyStreams,),
    )
    async def follow_events(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Follow all jobs.

        A stream of server-sent events, one for each change of a job of the account, from now on or after the
        `Last-Event-ID`. A `missed` event means that older events are gone: reload the lists. The stream begins with an
        `id`, so that a client that is disconnected before the first event loses nothing.
        """
        return await self._follow(request, caller.account_id, READ)

    @ops_call(
        f"GET {OPS_EVENTS}",
        Reply(200, {"job": examples.OPS_JOB, "missed": examples.MISSED}, STREAM, media=EVENT_STREAM),
        refusals=(errors.TooManyStreams,),
    )
    async def ops_follow_events(self, request: web.Request, _: Token) -> web.StreamResponse:
        """Follow the jobs of all accounts.

        Like the stream of an account; about 10,000 events are kept.
        """
        return await self._follow(request, None, Permission.OPERATOR_READ)

    async def _follow(self, request: web.Request, account_id: Audience, permission: Permission) -> web.StreamResponse:
        return await self._streams.send(
            request,
            account_id,
            last_event_id=reading.last_event_id(request),
            still_allowed=lambda: self._callers.is_still_allowed(request, permission),
        )
