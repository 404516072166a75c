"""Pages: a template around what it shows, with the headers that keep a browser from doing anything else with it."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from yarl import URL

from api.dashboard import words
from api.dashboard.assets import Assets
from api.dashboard.session import VISIT
from api.http.caching import PACKED_FROM_BYTES, takes_gzip
from api.http.marks import REQUEST_ID
from api.http.problems import Problem

# Everything comes from here; nothing is run or styled inline, also if a text should ever get past the escaping.
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


@dataclass(frozen=True, kw_only=True)
class Question:
    """What an action asks before it is done; the form that is sent is for the same path."""

    title: str
    text: str
    verb: str  # on the button
    back: str  # where to go on without it
    wants_reason: bool = False
    is_grave: bool = False
    fields: Mapping[str, str | list[str]] | None = None  # that are sent along


def address(path: str, given: Mapping[str, str] | None = None, **other: str | None) -> str:
    """A path with a query: what was `given`, but for what is `other`; None: without that."""
    return str(URL(path).with_query({name: text for name, text in ({**(given or {}), **other}).items() if text}))


def is_fragment(request: web.Request) -> bool:
    """Asked for by a page of ours, to put it into itself."""
    return request.headers.get("HX-Request") == "true"


@cache  # what is compiled serves every application of the process
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("api.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["address"] = address
    told = (words.span, words.rough, words.ago, words.absolute, words.machine, words.size, words.number, words.plain)
    environment.filters |= {filter_.__name__: filter_ for filter_ in told}
    return environment


class Rendering:
    """The templates. A page is sent whole; of one that a page of ours asks for, its inside only."""

    def __init__(self, assets: Assets) -> None:
        self._assets = assets

    def page(self, request: web.Request, template: str, *, status: int = 200, **shown: Any) -> web.Response:
        """`shown`: what the template needs."""
        inside = is_fragment(request)
        visit = request.get(VISIT)
        text = (
            _templates()
            .get_template(template)
            .render(
                asset=self._assets.url,
                layout="inside.html" if inside else "layout.html",
                visit=visit,
                path=request.path,
                here=str(request.rel_url),
                request_id=request.get(REQUEST_ID, ""),
                **shown,
            )
        )
        return _response(request, text, status=status)

    def ask(self, request: web.Request, question: Question) -> web.Response:
        return self.page(request, "ask.html", question=question)

    def done(self, request: web.Request, text: str, *, back: str, link: str | None = None) -> web.Response:
        """That an action was done. `link`: to what it has made."""
        return self.page(request, "done.html", text=text, back=back, link=link)

    def refuse(self, request: web.Request, problem: Problem) -> web.Response:
        """Why something was not done, on a page that stays as it is where there is one."""
        response = self.page(request, "refused.html", problem=problem, status=problem.status)
        if is_fragment(request):
            response.headers["HX-Retarget"] = "#trouble" if request.method == "GET" else "#notice"
            response.headers["HX-Reswap"] = "innerHTML"
        response.headers.update(problem.headers)
        return response


def _response(request: web.Request, text: str, *, status: int) -> web.Response:
    body = text.encode()
    headers = dict(HEADERS)
    if len(body) >= PACKED_FROM_BYTES and takes_gzip(request):
        body = gzip.compress(body, compresslevel=6, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, status=status, headers=headers, content_type="text/html", charset="utf-8")
