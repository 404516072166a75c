"""Who is at the browser: a cookie in the place of the token, and what keeps other sites from acting in its name."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import web
from structlog.contextvars import bind_contextvars

from api.http import reading
from api.http.callers import Callers
from api.http.marks import TOKEN
from api.http.problems import Problem, rate_limited
from worker.store.access.sessions import Session, Sessions
from worker.store.access.tokens import Permission, Token

COOKIE = "__Host-ops"  # the prefix: browsers take it from this host alone, for all paths, with Secure
HOME = "/ops/"
LOGIN = "/ops/login/"
EVENTS = "/ops/events/"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf"
LIVE_HEADER = "X-Live"  # a page keeps itself fresh; `idle`: and nobody has touched it since it did so last
NEXT_MAX = 2000  # characters

Form = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A request of an operator, with what its form says."""

    request: web.Request
    session: Session
    form: Form = field(default_factory=dict)

    @property
    def token(self) -> Token:
        return self.session.token


VISIT = web.RequestKey("visit", Visit)


class Door:
    """Lets in whom a session lets in."""

    def __init__(self, callers: Callers, sessions: Sessions) -> None:
        self._callers = callers
        self._sessions = sessions

    async def login(self, request: web.Request, secret: str) -> str:
        """The new session's id. Raises Problem (401, 403, 429)."""
        _ensure_from_here(request)
        _ensure_operators(await self._callers.authenticate(request, secret))
        return (await self._sessions.open(secret)).id

    async def visit(self, request: web.Request) -> Visit:
        """Raises Problem: 401 where there is no session any more, 403 for what another site may have sent, 429."""
        session = await self._session(request)
        visit = Visit(request=request, session=session)
        request[TOKEN] = session.token
        request[VISIT] = visit
        bind_contextvars(token=session.token.id, token_name=session.token.name)
        _ensure_operators(session.token)
        if request.method == "POST":
            _ensure_from_here(request)
            form = await reading.form(request)
            shown = request.headers.get(CSRF_HEADER) or form.get(CSRF_FIELD, [""])[0]
            if not hmac.compare_digest(shown.encode(), session.csrf.encode()):
                raise Problem(403, "csrf_failed", "The form was not of this session. Reload the page and try again.")
            visit = Visit(request=request, session=session, form=form)
        return visit

    async def still(self, request: web.Request) -> bool:
        """Whether the session goes on. Raises StoreUnavailable."""
        session = await self._sessions.look(request.cookies.get(COOKIE, ""), by_person=False)
        return session is not None and _is_operators(session.token)

    async def leave(self, visit: Visit) -> None:
        await self._sessions.close(visit.request.cookies.get(COOKIE, ""))

    async def _session(self, request: web.Request) -> Session:
        shown = request.cookies.get(COOKIE, "")
        # an EventSource sends no header of ours, and opens its stream again and again by itself
        by_page = request.path == EVENTS or request.headers.get(LIVE_HEADER) == "idle"
        session = await self._sessions.look(shown, by_person=not by_page)
        if session is None:
            code = "session_ended" if shown else "session_missing"
            raise Problem(401, code, "Log in with an operator's token.")
        if not session.authenticated.allowed:
            raise rate_limited("with this token", session.authenticated.more_in)
        return session


def set_cookie(response: web.Response, session_id: str) -> None:
    response.set_cookie(COOKIE, session_id, path="/", secure=True, httponly=True, samesite="Strict")


def drop_cookie(response: web.Response) -> None:
    response.del_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")


def local(path: str) -> str:
    """Where to go after the login: a page of ours, or else the first one."""
    # begun like that it has no room for another host: `//` or a scheme would stand before it
    ours = path.startswith(HOME) and not path.startswith(LOGIN) and len(path) <= NEXT_MAX
    return path if ours and path.isprintable() and "\\" not in path and ".." not in path.partition("?")[0] else HOME


def _is_operators(token: Token) -> bool:
    return token.account_id is None and Permission.OPERATOR in token.permissions


def _ensure_operators(token: Token) -> None:
    if not _is_operators(token):
        raise Problem(403, "permission_denied", "This is no operator's token.")


def _ensure_from_here(request: web.Request) -> None:
    """Every browser of today says where a request comes from where the page came by TLS or from the machine itself."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is None:
        origin = urlsplit(request.headers.get("Origin", "")).netloc
        from_here = bool(origin) and origin == request.host
    else:
        from_here = site == "same-origin"
    if not from_here:
        raise Problem(403, "csrf_failed", "This was sent from another site, and nothing was done.")
