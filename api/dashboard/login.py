"""Login and logout."""

from aiohttp import web

from api.dashboard import session
from api.dashboard.desk import Desk, Pages
from api.dashboard.session import LOGIN, Visit
from api.http import reading
from api.http.marks import PROBLEM
from api.http.problems import Problem

LOGOUT = "/ops/logout/"
SECRET_MAX = 200  # characters: no token is that long


async def show(desk: Desk, request: web.Request) -> web.Response:
    return _page(desk, request, where=request.query.get("next", ""))


async def enter(desk: Desk, request: web.Request) -> web.Response:
    form = await reading.form(request)
    secret, where = (" ".join(form.get(name, [""])).strip() for name in ("token", "next"))
    try:
        session_id = await desk.door.login(request, secret[:SECRET_MAX])
    except Problem as problem:
        request[PROBLEM] = problem.code
        return _page(desk, request, where=where, problem=problem)
    response = web.Response(status=303, headers={"Location": session.local(where), "Cache-Control": "no-store"})
    session.set_cookie(response, session_id)
    return response


def _page(desk: Desk, request: web.Request, *, where: str, problem: Problem | None = None) -> web.Response:
    response = desk.rendering.page(
        request,
        "login.html",
        status=problem.status if problem else 200,
        problem=problem,
        next=session.local(where),
        ended="ended" in request.query,
    )
    if problem and "Retry-After" in problem.headers:
        response.headers["Retry-After"] = problem.headers["Retry-After"]
    return response


async def leave(desk: Desk, visit: Visit) -> web.Response:
    await desk.door.leave(visit)
    response = web.Response(status=303, headers={"Location": LOGIN, "Cache-Control": "no-store"})
    session.drop_cookie(response)
    return response


ACTIONS: Pages = {LOGOUT: leave}
