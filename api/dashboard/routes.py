"""The dashboard's routes: pages and questions (GET) and actions (POST), which need a session, the login, and guides."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from api.dashboard import (
    audit,
    bulk,
    draining,
    finding,
    findings,
    jobs,
    live,
    login,
    nodes,
    overview,
    runbook,
    schedules,
    servers,
    snapshots,
    tokens,
)
from api.dashboard.assets import STATIC, Assets
from api.dashboard.context import Context, Handler, Pages
from api.dashboard.rendering import is_fragment
from api.dashboard.session import EVENTS, HOME, LOGIN, local
from api.http.problems import Problem
from worker.store.errors import too_slow

SECTIONS = (  # in the order of the links
    overview.SECTION,
    jobs.SECTION,
    nodes.SECTION,
    servers.SECTION,
    schedules.SECTION,
    findings.SECTION,
    audit.SECTION,
    tokens.SECTION,
    snapshots.SECTION,
    finding.SECTION,
    draining.SECTION,
    bulk.SECTION,
    login.SECTION,
)
LINKS = [section.link for section in SECTIONS if section.link]
PAGES: Pages = {path: handler for section in SECTIONS for path, handler in section.pages.items()}
QUESTIONS: Pages = {path: handler for section in SECTIONS for path, handler in section.questions.items()}
ACTIONS: Pages = {path: handler for section in SECTIONS for path, handler in section.actions.items()}

Plain = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add(app: web.Application, context: Context, assets: Assets, *, request_seconds: float) -> None:
    """`request_seconds`: the limit of a request; the event stream has none."""

    def bounded(handler: Plain) -> Plain:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                async with asyncio.timeout(request_seconds):
                    return await handler(request)
            except TimeoutError as error:
                raise too_slow(changing=request.method == "POST") from error

        return answer

    def guarded(handler: Handler, *, to_change: bool = False) -> Plain:
        async def answer(request: web.Request) -> web.StreamResponse:
            return await handler(context, await context.guard.admit(request, to_change=to_change))

        return answer

    app.router.add_get(LOGIN, bounded(partial(login.show, context)))
    app.router.add_post(LOGIN, bounded(partial(login.login, context)))
    app.router.add_get(EVENTS, guarded(live.follow), allow_head=False)
    for path, guide in runbook.OPEN_PAGES.items():
        app.router.add_get(path, partial(guide, context))
    for path, page in PAGES.items():
        app.router.add_get(path, bounded(guarded(page)))
    for path, question in QUESTIONS.items():
        app.router.add_get(path, bounded(guarded(question, to_change=True)))
    for path, action in ACTIONS.items():
        app.router.add_post(path, bounded(guarded(action)))
    app.router.add_get(f"{STATIC}{{mark}}/{{name:.+}}", assets.serve)
    app.router.add_get(HOME.removesuffix("/"), _home)


def is_ours(request: web.Request) -> bool:
    return request.path.startswith(HOME)


def refuse(context: Context, request: web.Request, problem: Problem) -> web.Response:
    """The page for an error; without a session, the login."""
    if problem.status == web.HTTPUnauthorized.status_code and request.path not in {LOGIN, EVENTS}:
        return _to_login(request, problem)
    return context.rendering.refuse(request, problem)


def _to_login(request: web.Request, problem: Problem) -> web.Response:
    here = str(request.rel_url)
    if request.method != "GET" or is_fragment(request):
        here = _page(request.headers.get("HX-Current-URL", ""))
    ended = {"ended": "true"} if problem.code == "session_ended" else {}
    to = f"{LOGIN}?{urlencode({'next': local(here)} | ended)}"
    headers = {"Cache-Control": "no-store"}
    if is_fragment(request):
        return web.Response(status=problem.status, headers=headers | {"HX-Redirect": to})
    return web.Response(status=303, headers=headers | {"Location": to})


def _page(url: str) -> str:
    """The path and query of a page's URL; '' for text that is not a URL."""
    try:
        page = urlsplit(url)
    except ValueError:
        return ""
    return f"{page.path}?{page.query}" if page.query else page.path


async def _home(_: web.Request) -> web.Response:
    return web.Response(status=308, headers={"Location": HOME})
