"""HTML responses: templates, and headers that restrict what a browser may do with a page."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import TYPE_CHECKING, Any

from aiohttp import web
from yarl import URL

from api import words
from api.dashboard import zones
from api.dashboard.assets import Assets
from api.dashboard.session import LIVE_HEADER, SESSION, may_change
from api.http import templates
from api.http.caching import PACKED_FROM_BYTES, accepts_gzip
from api.http.marks import REQUEST_ID
from api.http.problems import Problem
from worker.store import trouble

if TYPE_CHECKING:
    from jinja2 import Environment

# No inline script or style and nothing from other hosts, in case text is ever not escaped.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "HX-Request, Cookie, Accept-Encoding",
}


WRONG = web.RequestKey("wrong", dict[str, str])  # invalid query parameters, with their errors

READ_ONLY = {  # the banner's text, by cause
    trouble.FULL: "Redis is full.",
    trouble.REPLICA: "Redis is a read-only replica.",
    trouble.DISK: "Redis cannot write to its disk.",
    trouble.ALONE: "Redis has fewer replicas than it needs.",
}


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link in the header of each page. `key` follows it, after `g`."""

    href: str
    name: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """A list of jobs within a question, with a text for each."""

    title: str
    jobs: Sequence[tuple[str, str]]  # ID and text
    count: int  # number of all jobs; `jobs` has the first ones
    is_grave: bool = False


@dataclass(frozen=True, kw_only=True)
class Question:
    """The confirmation that an action needs. Its form is posted to the page's own path."""

    title: str
    text: str
    verb: str  # on the button; "": no button, because there is nothing to do
    dismiss: str = "Cancel"  # on the other button
    wants_reason: bool = False
    typed: str = ""  # what must be typed to confirm
    typed_as: str = ""  # a description of it
    is_grave: bool = False  # a red button
    fields: Mapping[str, str | list[str]] = field(default_factory=dict)  # hidden inputs
    parts: Sequence[Part] = ()
    include: str = ""  # a template with further fields of the form
    wider: tuple[str, str] | None = None  # path and text of a question that includes more


def address(path: str, given: Mapping[str, str | list[str]] | None = None, **other: str | None) -> str:
    """A path with the query `given`, overridden by `other`; None or '' removes a parameter."""
    return str(URL(path).with_query({name: text for name, text in ({**(given or {}), **other}).items() if text}))


def is_fragment(request: web.Request) -> bool:
    """Whether htmx requested a fragment for an open page."""
    return request.headers.get("HX-Request") == "true"


_zone: ContextVar[tzinfo] = ContextVar("zone", default=UTC)  # the time zone of the page that is being rendered
# filters for a moment
_TEMPLATES = templates.read("api.dashboard")
_IN_ZONE: Mapping[str, Callable[[datetime], str]] = {
    "absolute": lambda moment: words.absolute(moment, _zone.get()),
    "clock": lambda moment: f"{moment.astimezone(_zone.get()):%H:%M:%S}",
    "minute": lambda moment: f"{moment.astimezone(_zone.get()):%Y-%m-%d %H:%M}",
    "for_input": lambda moment: f"{moment.astimezone(_zone.get()):%Y-%m-%dT%H:%M}",
}


def _is_whole(request: web.Request) -> bool:
    """Whether the request is for a page or its refresh, and not for a part of another page."""
    return not is_fragment(request) or LIVE_HEADER in request.headers


@cache  # compiled templates serve every application of the process
def _templates() -> "Environment":
    environment = templates.environment(_TEMPLATES)
    environment.globals["address"] = address
    filters = (
        words.span,
        words.ago,
        words.elapsed,
        words.seconds_since,
        words.machine,
        words.size,
        words.number,
        words.plural,
        words.plain,
    )
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters |= _IN_ZONE
    return environment


class Rendering:
    """Renders templates: whole pages, or for htmx only the content of `main`."""

    def __init__(self, assets: Assets, *, links: Sequence[Link], why_read_only: Callable[[], str | None]) -> None:
        """`why_read_only`: why Redis refuses writes, one of trouble.CAUSES; None if it accepts them."""
        self._assets = assets
        self._links = links
        self._why_read_only = why_read_only

    def page(self, request: web.Request, template: str, *, status: int = 200, **values: Any) -> web.Response:
        """`values`: the template's own variables. The status is 400 if the query has an error."""
        session, wrong = request.get(SESSION), request.get(WRONG, {})
        _zone.set(zones.of(request))
        text = (
            _templates()
            .get_template(template)
            .render(
                asset=self._assets.url,
                layout="inside.html" if is_fragment(request) else "layout.html",
                links=self._links,
                session=session,
                may_change=session is not None and may_change(session),
                path=request.path,
                here=str(request.rel_url),
                request_id=request.get(REQUEST_ID, ""),
                read_only=self._read_only(request),
                zone_name=zones.name_of(request),
                wrong=wrong,
                heading=1 if _is_whole(request) else 2,
                **values,
            )
        )
        return _response(request, text, status=400 if wrong else status)

    def _read_only(self, request: web.Request) -> str | None:
        """The banner's text; None without a session, and in fragments for htmx."""
        why = self._why_read_only()
        return READ_ONLY[why] if why is not None and _is_whole(request) and SESSION in request else None

    def ask(self, request: web.Request, question: Question, *, back: str, subject: str = "") -> web.Response:
        """`back`: the page that the dismiss button opens. `subject`: what the action applies to; shown before the
        text."""
        return self.page(request, "ask.html", question=question, back=back, subject=subject)

    def done(self, request: web.Request, text: str, *, back: str, link: str | None = None) -> web.Response:
        """The result of an action. `link`: to the created object."""
        return self.page(request, "done.html", text=text, back=back, link=link)

    def refuse(self, request: web.Request, problem: Problem) -> web.Response:
        """An error: a page, or for htmx a notice in the open page; in its form if what was sent is not valid."""
        comes_back = request.method == "GET" and problem.status == web.HTTPServiceUnavailable.status_code
        response = self.page(request, "refused.html", problem=problem, comes_back=comes_back, status=problem.status)
        if is_fragment(request):
            of_form = ".ask-trouble" if problem.status == web.HTTPBadRequest.status_code else "#notice"
            response.headers["HX-Retarget"] = "#trouble" if request.method == "GET" else of_form
            response.headers["HX-Reswap"] = "innerHTML"
        response.headers.update(problem.headers)
        return response


def _response(request: web.Request, text: str, *, status: int) -> web.Response:
    body = text.encode()
    headers = dict(HEADERS)
    if len(body) >= PACKED_FROM_BYTES and accepts_gzip(request):
        body = gzip.compress(body, compresslevel=6, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, status=status, headers=headers, content_type="text/html", charset="utf-8")
