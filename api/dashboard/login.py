"""Login and logout."""

from aiohttp import web

from api.dashboard import session
from api.dashboard.context import Context, Section
from api.dashboard.session import LOGIN, LOGOUT, OperatorRequest
from api.http import reading
from api.http.marks import PROBLEM
from api.http.problems import Problem

# Not "cookies": that would end the sessions of all programs on this domain.
_AFTER_LOGOUT = {"Location": LOGIN, "Cache-Control": "no-store", "Clear-Site-Data": '"cache", "storage"'}
SECRET_MAX = 200  # characters; tokens are shorter


async def show(context: Context, request: web.Request) -> web.Response:
    return _page(context, request, where=request.query.get("next", ""))


async def login(context: Context, request: web.Request) -> web.Response:
    form = await reading.form(request)
    secret, where = (" ".join(form.get(name, [""])).strip() for name in ("token", "next"))
    try:
        session_id = await context.guard.login(request, secret[:SECRET_MAX])
    except Problem as problem:
        request[PROBLEM] = problem.code
        return _page(context, request, where=where, problem=problem)
    response = web.Response(status=303, headers={"Location": session.local(where), "Cache-Control": "no-store"})
    session.set_cookie(response, session_id)
    return response


def _page(context: Context, request: web.Request, *, where: str, problem: Problem | None = None) -> web.Response:
    response = context.rendering.page(
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


async def logout(context: Context, request: OperatorRequest) -> web.Response:
    await context.guard.logout(request)
    response = web.Response(status=303, headers=_AFTER_LOGOUT)
    session.drop_cookie(response)
    return response


SECTION = Section(actions={LOGOUT: logout})
