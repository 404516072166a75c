"""The OpenAPI document and its HTML page, for everyone. The package includes the document, docs/openapi.json: making it
would take a quarter of a second of each start."""

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from aiohttp import web

from api.document import page
from api.http.answers import answer
from api.http.caching import Document
from api.http.calls import API

PATH = f"{API}openapi.json"
_IN_CHECKOUT = Path(__file__).parents[2] / "docs" / "openapi.json"


async def show_root(request: web.Request) -> web.StreamResponse:
    """Where the documentation is: for programs as JSON; a browser goes there."""
    if "text/html" in request.headers.get("Accept", ""):
        return web.Response(status=302, headers={"Location": page.PATH})
    return answer({"name": "vps-snapshots", "version": _version(), "documentation": page.PATH, "openapi": PATH})


async def show(request: web.Request) -> web.StreamResponse:
    return await _document().show(request)


async def show_page(request: web.Request) -> web.StreamResponse:
    return await _page().show(request)


@cache
def _document() -> Document:
    return Document.of(_text(), kind="application/json")


@cache
def _page() -> Document:
    html = page.page(json.loads(_text()), document_path=PATH)
    headers = {"Content-Security-Policy": page.POLICY, "X-Content-Type-Options": "nosniff"}
    return Document.of(html.encode(), kind="text/html", headers=headers)


def _text() -> bytes:
    packaged = files("api.document") / "openapi.json"
    return packaged.read_bytes() if packaged.is_file() else _IN_CHECKOUT.read_bytes()


@cache
def _version() -> str:
    return version("vps-snapshots")


PAGES: Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
    "/": show_root,
    PATH: show,
    page.PATH: show_page,
}
