"""The static files of the pages. Each URL contains a hash of the file's content, so that browsers can cache the file
forever."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from aiohttp import web

from api.http.caching import Document

STATIC = "/ops/static/"

_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class Assets:
    """All static files, in memory: they are few and small."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}
        self._by_url: dict[str, Document] = {}
        for name, raw in _found(files("api.dashboard") / "static", "").items():
            url = self._urls[name] = f"{STATIC}{hashlib.sha256(raw).hexdigest()[:16]}/{name}"
            self._by_url[url] = _document(name, raw)

    def url(self, name: str) -> str:
        return self._urls[name]

    async def serve(self, request: web.Request) -> web.Response:
        asset = self._by_url.get(request.path)
        if asset is None:
            raise web.HTTPNotFound
        return asset.answer(request)


@cache  # compressing takes longer than the rest of the application's start
def _document(name: str, raw: bytes) -> Document:
    return Document.of(raw, kind=_KINDS[name[name.rindex(".") :]], headers=_HEADERS)


def _found(folder: Traversable, path: str) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        name = f"{path}{entry.name}"
        if entry.is_dir():
            found |= _found(entry, f"{name}/")
        elif name.endswith(tuple(_KINDS)):
            found[name] = entry.read_bytes()
    return found
