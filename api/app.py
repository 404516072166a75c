"""The routes."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from api.callers import Caller, Callers
from api.handlers import Handlers
from api.middleware import around
from api.requests import BODY_MAX_BYTES
from worker.jobs.store import Store
from worker.jobs.tokens import Permission, Tokens

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CallersHandler = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]

READ, WRITE = Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE


def build(*, store: Store, tokens: Tokens, body_seconds: float = 10.0) -> web.Application:
    """The application. It opens nothing and closes nothing: store and tokens are their owner's."""
    handlers, callers = Handlers(store, body_seconds=body_seconds), Callers(tokens)

    def knowing(permission: Permission, handle: CallersHandler) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            return await handle(request, await callers.identify(request, permission))

        return handler

    snapshots, one, jobs = "/api/v1/snapshots/", "/api/v1/snapshots/{snapshot_id}/", "/api/v1/jobs/{job_id}/"
    undo = "/api/v1/restores/{job_id}/undo/"
    app = web.Application(middlewares=[around], client_max_size=BODY_MAX_BYTES)
    app.add_routes(
        [
            web.get(snapshots, knowing(READ, handlers.list_snapshots)),
            web.post(snapshots, knowing(WRITE, handlers.create_snapshot)),
            web.get(one, knowing(READ, handlers.show_snapshot)),
            web.delete(one, knowing(WRITE, handlers.delete_snapshot)),
            web.post(f"{one}restore/", knowing(WRITE, handlers.restore_snapshot)),
            web.post(undo, knowing(WRITE, handlers.undo_restore)),
            web.get(jobs, knowing(READ, handlers.show_job)),
            web.get("/healthz", handlers.alive),
            web.get("/readyz", handlers.ready),
        ]
    )
    for path in (snapshots, one, f"{one}restore/", undo, jobs):
        app.router.add_route("*", path.removesuffix("/"), _with_slash)
    return app


async def _with_slash(request: web.Request) -> web.Response:
    """308 keeps method and body: a POST that forgot the slash arrives."""
    query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
    return web.Response(status=308, headers={"Location": f"{request.rel_url.raw_path}/{query}"})
