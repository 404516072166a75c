"""ETags and compression: a GET whose answer has not changed gets 304, a long answer is compressed."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from aiohttp import ETag, web

PACKED_FROM_BYTES = 1024


def conditional(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """The answer to a GET with its ETag, or 304 if the caller already has it. The tag is weak, because the
    compressed answer has the same one."""
    if not isinstance(response, web.Response) or response.status != web.HTTPOk.status_code:
        return response
    body = response.body if isinstance(response.body, bytes) else b""
    tag = _tag(body)
    if _is_known(request, tag):
        response = web.Response(
            status=304, headers={"Link": response.headers["Link"]} if "Link" in response.headers else {}
        )
    elif len(body) >= PACKED_FROM_BYTES and accepts_gzip(request):
        response.enable_compression(web.ContentCoding.gzip)
    response.etag = tag
    response.headers["Cache-Control"] = "private, no-cache"  # only the caller may cache it, and must revalidate it
    response.headers["Vary"] = "Authorization, X-Account-Id, Accept-Encoding"
    return response


@dataclass(frozen=True, kw_only=True)
class Document:
    """A file that is the same for everyone, compressed once."""

    raw: bytes
    packed: bytes
    tag: ETag
    kind: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, raw: bytes, *, kind: str, headers: Mapping[str, str] | None = None) -> Self:
        return cls(raw=raw, packed=gzip.compress(raw, mtime=0), tag=_tag(raw), kind=kind, headers=headers or {})

    def answer(self, request: web.Request) -> web.Response:
        """The whole file, compressed if the caller accepts gzip."""
        packed = accepts_gzip(request)
        response = web.Response(
            body=self.packed if packed else self.raw,
            headers={"Vary": "Accept-Encoding", **self.headers},
            content_type=self.kind,
            charset="utf-8",
        )
        if packed:
            response.headers["Content-Encoding"] = "gzip"
        return response

    async def show(self, request: web.Request) -> web.StreamResponse:
        """304 if the caller already has it."""
        if _is_known(request, self.tag):
            response = web.Response(status=304, headers={"Vary": "Accept-Encoding"})
        else:
            response = self.answer(request)
        response.etag = self.tag
        response.headers["Cache-Control"] = "no-cache"
        return response


def _tag(body: bytes) -> ETag:
    return ETag(is_weak=True, value=hashlib.sha256(body).hexdigest()[:32])


def _is_known(request: web.Request, tag: ETag) -> bool:
    return any(known.value in {tag.value, "*"} for known in request.if_none_match or ())


def accepts_gzip(request: web.Request) -> bool:
    codings = request.headers.get("Accept-Encoding", "").lower().replace(" ", "").split(",")
    return any(coding == "gzip" or (coding.startswith("gzip;q=") and coding.strip("gzip;q=.0")) for coding in codings)
