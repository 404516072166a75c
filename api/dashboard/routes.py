"""The dashboard's paths: what is read with GET and done with POST, behind the login, and the login itself."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from api.dashboard import audit, bulk, findings, jobs, live, login, nodes, overview, runbook, servers, tokens
from api.dashboard.assets import STATIC, Assets
from api.dashboard.desk import Desk, Handler, Pages
from api.dashboard.rendering import is_fragment
from api.dashboard.session import EVENTS, HOME, LOGIN, local
from api.http.problems import Problem
from worker.store.errors import StoreUnavailable

PAGES: Pages = {
    **overview.PAGES,
    **nodes.PAGES,
    **jobs.PAGES,
    **bulk.PAGES,
    **servers.PAGES,
    **findings.PAGES,
    **audit.PAGES,
    **tokens.PAGES,
    **runbook.PAGES,
}
ACTIONS: Pages = {**nodes.ACTIONS, **jobs.ACTIONS, **bulk.ACTIONS, **tokens.ACTIONS, **login.ACTIONS}

Plain = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add(app: web.Application, desk: Desk, assets: Assets, *, request_seconds: float) -> None:
    """`request_seconds`: for one request as a whole, the stream of events apart."""

    def bounded(handler: Plain) -> Plain:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                async with asyncio.timeout(request_seconds):
                    return await handler(request)
            except TimeoutError as error:
                raise StoreUnavailable("The store of the service is too slow.") from error

        return answer

    def visited(handler: Handler) -> Plain:
        async def answer(request: web.Request) -> web.StreamResponse:
            return await handler(desk, await desk.door.visit(request))

        return answer

    def known(handler: Callable[[Desk, web.Request], Awaitable[web.StreamResponse]]) -> Plain:
        async def answer(request: web.Request) -> web.StreamResponse:
            return await handler(desk, request)

        return answer

    app.router.add_get(LOGIN, bounded(known(login.show)))
    app.router.add_post(LOGIN, bounded(known(login.enter)))
    app.router.add_get(EVENTS, visited(live.follow), allow_head=False)
    for path, page in PAGES.items():
        app.router.add_get(path, bounded(visited(page)))
    for path, action in ACTIONS.items():
        app.router.add_post(path, bounded(visited(action)))
    app.router.add_get(f"{STATIC}{{mark}}/{{name:.+}}", assets.serve)
    app.router.add_get(HOME.removesuffix("/"), _home)


def is_ours(request: web.Request) -> bool:
    return request.path.startswith(HOME)


def refuse(desk: Desk, request: web.Request, problem: Problem) -> web.Response:
    """Where the API answers with a problem document, the dashboard answers with a page: to who has no session any
    more, with that of the login."""
    if problem.status == web.HTTPUnauthorized.status_code and request.path not in {LOGIN, EVENTS}:
        return _to_login(request, problem)
    return desk.rendering.refuse(request, problem)


def _to_login(request: web.Request, problem: Problem) -> web.Response:
    here = str(request.rel_url)
    if request.method != "GET" or is_fragment(request):
        page = urlsplit(request.headers.get("HX-Current-URL", ""))
        here = f"{page.path}?{page.query}" if page.query else page.path
    ended = {"ended": "true"} if problem.code == "session_ended" else {}
    to = f"{LOGIN}?{urlencode({'next': local(here)} | ended)}"
    headers = {"Cache-Control": "no-store"}
    if is_fragment(request):
        return web.Response(status=problem.status, headers=headers | {"HX-Redirect": to})
    return web.Response(status=303, headers=headers | {"Location": to})


async def _home(_: web.Request) -> web.Response:
    return web.Response(status=308, headers={"Location": HOME})
