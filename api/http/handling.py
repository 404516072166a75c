"""The handler of a call: it checks the caller and the request, and then runs the call."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from aiohttp import web

from api.http import problems, reading
from api.http.callers import Callers, Entering
from api.http.calls import Call
from worker.store import trouble
from worker.store.access.tokens import Permission
from worker.store.errors import OutcomeUnknown, StoreUnavailable

By = TypeVar("By")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Identify = Callable[[web.Request, Permission], Awaitable[By]]


def called(call: Call[By], resource: object, identify: Identify[By]) -> Handler:
    is_valid = _ensured(call)

    async def handler(request: web.Request) -> web.StreamResponse:
        by = await identify(request, call.permission)
        await is_valid(request)
        return await call.handle(resource, request, by)

    return handler


def entered(call: Call[Entering], resource: object, callers: Callers) -> Handler:
    """The call's script also checks the caller. Any other refusal is returned only to a caller who may make the
    call."""

    is_valid = _ensured(call)

    async def handler(request: web.Request) -> web.StreamResponse:
        by = callers.enter(request, call)
        try:
            if not request.content.is_eof():  # do not wait for the body of an unauthenticated caller
                await by.identify()
            await is_valid(request)
            return await call.handle(resource, request, by)
        except StoreUnavailable as error:
            # this call has reached the limit itself, which must not refuse it
            ignored = (StoreUnavailable, *((problems.Problem,) if isinstance(error, OutcomeUnknown) else ()))
            if trouble.may_respond(error.__cause__):
                with suppress(*ignored):
                    await by.identify()
            raise
        except Exception:
            await by.identify()
            raise

    return handler


def _ensured(call: Call[Any]) -> Callable[[web.Request], Awaitable[None]]:
    """Validate the request before the handler runs, so that an invalid one changes nothing."""
    changes, takes_body, query = call.changes, call.body is not None, call.query

    async def ensure(request: web.Request) -> None:
        reading.ensure_known_query(request, query)
        if changes:
            reading.ensure_no_precondition(request)
            if not takes_body:
                await reading.ensure_no_body(request, query)

    return ensure
