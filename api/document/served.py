"""Serves the OpenAPI document and the documentation without a token. The package includes
docs/openapi.json, because generating it would add 0.25 s to each start."""

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from aiohttp import web

from api.document.pages import DOCS, NAMES, Site
from api.http.answers import answer
from api.http.caching import Document
from api.http.calls import API

PATH = f"{API}openapi.json"
SEARCH = f"{DOCS}/search/"
ASSET = f"{DOCS}/static/"
# nothing from other hosts, and no inline script or style, in case text is ever not escaped
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
QUERY_MAX = 100
_HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
_KINDS = {"docs.css": "text/css", "docs.js": "text/javascript"}
_IN_CHECKOUT = Path(__file__).parents[2] / "docs" / "openapi.json"


async def show_root(request: web.Request) -> web.StreamResponse:
    """The location of the documentation: JSON for programs, a redirect for browsers."""
    if "text/html" in request.headers.get("Accept", ""):
        return web.Response(status=302, headers={"Location": DOCS})
    return answer({"name": "vps-snapshots", "version": _version(), "documentation": DOCS, "openapi": PATH})


async def show(request: web.Request) -> web.StreamResponse:
    return await _document().show(request)


async def show_first_page(request: web.Request) -> web.StreamResponse:
    return await _page("api").show(request)


async def show_page(request: web.Request) -> web.StreamResponse:
    try:
        found = _page(request.match_info["page"])
    except KeyError as error:
        raise web.HTTPNotFound from error
    return await found.show(request)


async def lead_to_page(request: web.Request) -> web.StreamResponse:
    """Redirect to the other form of the path, with or without the trailing slash."""
    name = request.match_info.get("page")
    return web.Response(status=308, headers={"Location": f"{DOCS}/{name}/" if name in NAMES else DOCS})


async def show_results(request: web.Request) -> web.StreamResponse:
    html = _site().results(request.query.get("q", "")[:QUERY_MAX])
    return web.Response(text=html, content_type="text/html", charset="utf-8", headers=_HEADERS)


async def show_asset(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    if name not in _KINDS:
        raise web.HTTPNotFound
    return await _asset(name).show(request)


@cache
def _version() -> str:
    return version("vps-snapshots")


@cache
def _document() -> Document:
    return Document.of(_text(), kind="application/json")


@cache
def _site() -> Site:
    return Site(json.loads(_text()), asset=lambda name: f"{ASSET}{name}?{_asset(name).tag.value[:16]}")


@cache
def _page(name: str) -> Document:
    return Document.of(_site().html(name).encode(), kind="text/html", headers=_HEADERS)


@cache
def _asset(name: str) -> Document:
    return Document.of((files("api.document") / "static" / name).read_bytes(), kind=_KINDS[name])


def _text() -> bytes:
    packaged = files("api.document") / "openapi.json"
    return packaged.read_bytes() if packaged.is_file() else _IN_CHECKOUT.read_bytes()


PAGES: Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
    "/": show_root,
    PATH: show,
    DOCS: show_first_page,
    SEARCH: show_results,
    f"{ASSET}{{name}}": show_asset,
    f"{DOCS}/": lead_to_page,
    f"{DOCS}/{{page}}": lead_to_page,
    f"{DOCS}/{{page}}/": show_page,
}
