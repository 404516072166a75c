"""Static files. Each URL contains a hash of the content, so browsers may cache it forever."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from aiohttp import web

from api.caching import takes_gzip

STATIC = "/ops/static/"

_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@dataclass(frozen=True, kw_only=True)
class Asset:
    url: str
    kind: str
    raw: bytes
    packed: bytes


class Assets:
    """All static files, in memory: they are few and small."""

    def __init__(self) -> None:
        self._by_name = {name: _asset(name, raw) for name, raw in _found(files("api.dashboard") / "static", "").items()}
        self._by_url = {asset.url: asset for asset in self._by_name.values()}

    def url(self, name: str) -> str:
        return self._by_name[name].url

    async def serve(self, request: web.Request) -> web.Response:
        asset = self._by_url.get(request.path)
        if asset is None:
            raise web.HTTPNotFound
        headers = {
            "Cache-Control": "public, max-age=31536000, immutable",
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        packed = takes_gzip(request)
        return web.Response(
            body=asset.packed if packed else asset.raw,
            headers=headers | ({"Content-Encoding": "gzip"} if packed else {}),
            content_type=asset.kind,
            charset="utf-8",
        )


@cache  # compressing takes longer than the rest of an application's start
def _asset(name: str, raw: bytes) -> Asset:
    mark = hashlib.sha256(raw).hexdigest()[:16]
    return Asset(
        url=f"{STATIC}{mark}/{name}",
        kind=_KINDS[name[name.rindex(".") :]],
        raw=raw,
        packed=gzip.compress(raw, mtime=0),
    )


def _found(folder: Traversable, path: str) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        name = f"{path}{entry.name}"
        if entry.is_dir():
            found |= _found(entry, f"{name}/")
        elif name.endswith(tuple(_KINDS)):
            found[name] = entry.read_bytes()
    return found
