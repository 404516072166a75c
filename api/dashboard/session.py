"""Sessions of operators: a cookie represents the token; requests from other sites are rejected."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from api.http import reading
from api.http.callers import Callers
from api.http.marks import TOKEN
from api.http.problems import Problem, rate_limited
from worker.program import log_fields
from worker.store.access.sessions import Session, Sessions
from worker.store.access.tokens import Permission, Token
from worker.store.errors import StoreReadOnly

COOKIE = "__Host-ops"  # browsers accept this prefix from the host itself only, with Secure and Path=/
HOME = "/ops/"
LOGIN = "/ops/login/"
LOGOUT = "/ops/logout/"
EVENTS = "/ops/events/"
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf"
LIVE_HEADER = "X-Live"  # sent when a page refreshes itself; `idle`: no input since the last refresh
NEXT_MAX = 2000  # characters

Form = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class OperatorRequest:
    """A request with its session. `form`: of a POST."""

    http: web.Request
    session: Session
    form: Form = field(default_factory=dict)

    @property
    def token(self) -> Token:
        return self.session.token


SESSION = web.RequestKey("session", Session)


class SessionGuard:
    """Logs operators in and out, and admits requests that have a session."""

    def __init__(self, callers: Callers, sessions: Sessions) -> None:
        self._callers = callers
        self._sessions = sessions

    async def login(self, request: web.Request, secret: str) -> str:
        """The ID of the new session, which is read-only while Redis refuses writes. Raises Problem (401, 403, 429)."""
        _ensure_same_origin(request)
        token = await self._callers.authenticate(request, secret)
        _ensure_operator(token)
        try:
            return (await self._sessions.open(secret)).id
        except StoreReadOnly:
            return self._sessions.open_for_reading(secret, token)

    async def admit(self, request: web.Request, *, to_change: bool = False) -> OperatorRequest:
        """`to_change`: the request leads to a change, as a confirmation does. Raises Problem: 401 without a session,
        403 if another site may have sent the request or the token is read-only, 429."""
        session = await self._session(request)
        request[TOKEN] = session.token
        request[SESSION] = session
        self._callers.used(session.token.id)
        log_fields.bind(token=session.token.id, token_name=session.token.name)
        _ensure_operator(session.token)
        is_post = request.method == "POST"
        if is_post:
            _ensure_same_origin(request)
        if (to_change or is_post) and request.path != LOGOUT and not may_change(session):
            raise Problem(403, "permission_denied", "This token is read-only: it cannot change anything.")
        if not is_post:
            return OperatorRequest(http=request, session=session)
        form = await reading.form(request)
        csrf = request.headers.get(CSRF_HEADER) or form.get(CSRF_FIELD, [""])[0]
        if not hmac.compare_digest(csrf.encode(errors="surrogateescape"), session.csrf.encode()):
            raise Problem(403, "csrf_failed", "Your session changed. Reload the page and try again.")
        if session.only_reads and request.path != LOGOUT:
            raise StoreReadOnly.of()
        return OperatorRequest(http=request, session=session, form=form)

    async def is_valid(self, request: web.Request) -> bool:
        """Whether the request's session still exists. Raises StoreUnavailable."""
        session = await self._sessions.find(request.cookies.get(COOKIE, ""), by_person=False)
        return session is not None and _is_operator(session.token)

    async def logout(self, request: OperatorRequest) -> None:
        await self._sessions.close(request.http.cookies.get(COOKIE, ""))

    async def _session(self, request: web.Request) -> Session:
        cookie = request.cookies.get(COOKIE, "")
        # an EventSource cannot send our header, and it reconnects by itself
        by_page = request.path == EVENTS or request.headers.get(LIVE_HEADER) == "idle"
        session = await self._sessions.find(cookie, by_person=not by_page)
        if session is None:
            code = "session_ended" if cookie else "session_missing"
            raise Problem(401, code, "Log in with an operator token.")
        if not session.authenticated.allowed:
            raise rate_limited("with this token", session.authenticated.more_in)
        return session


def set_cookie(response: web.Response, session_id: str) -> None:
    response.set_cookie(COOKIE, session_id, path="/", secure=True, httponly=True, samesite="Strict")


def drop_cookie(response: web.Response) -> None:
    response.del_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")


def local(path: str) -> str:
    """The page to show after login: `path` if it is a page of the dashboard, otherwise the overview."""
    # a path that begins with HOME cannot name another host: that would need `//` or a scheme in front
    ours = path.startswith(HOME) and not path.startswith(LOGIN) and len(path) <= NEXT_MAX
    return path if ours and path.isprintable() and "\\" not in path and ".." not in path.partition("?")[0] else HOME


def may_change(session: Session) -> bool:
    """Whether the session's token may change something."""
    return session.token.allows(Permission.OPERATOR)


def _is_operator(token: Token) -> bool:
    return token.account_id is None and token.allows(Permission.OPERATOR_READ)


def _ensure_operator(token: Token) -> None:
    if not _is_operator(token):
        raise Problem(403, "permission_denied", "This is not an operator token.")


def _ensure_same_origin(request: web.Request) -> None:
    """Raises Problem. Current browsers send Sec-Fetch-Site over TLS and on loopback, otherwise Origin."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is None:
        # compared as text: a client may send text that is not a URL
        origin = request.headers.get("Origin", "").removeprefix("https://").removeprefix("http://")
        is_same_origin = bool(origin) and origin == request.host
    else:
        is_same_origin = site == "same-origin"
    if not is_same_origin:
        raise Problem(403, "csrf_failed", "The request came from another site and was refused.")
