"""What spares a GET its way: an answer that the caller has already is not sent again, a long one is sent packed."""

import hashlib

from aiohttp import ETag, web

PACKED_FROM_BYTES = 1024


def spared(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """The answer to a GET with its ETag, or 304 without a body where the caller has named that one. The tag is weak:
    packed or not, it says the same."""
    if not isinstance(response, web.Response) or response.status != web.HTTPOk.status_code:
        return response
    body = response.body if isinstance(response.body, bytes) else b""
    tag = ETag(is_weak=True, value=hashlib.sha256(body).hexdigest()[:32])
    if any(known.value in {tag.value, "*"} for known in request.if_none_match or ()):
        response = web.Response(
            status=304, headers={"Link": response.headers["Link"]} if "Link" in response.headers else {}
        )
    elif len(body) >= PACKED_FROM_BYTES and takes_gzip(request):
        response.enable_compression(web.ContentCoding.gzip)
    response.etag = tag
    response.headers["Cache-Control"] = "private, no-cache"  # kept by the caller alone, and asked for each time
    response.headers["Vary"] = "Authorization, X-Account-Id, Accept-Encoding"
    return response


def takes_gzip(request: web.Request) -> bool:
    codings = request.headers.get("Accept-Encoding", "").lower().replace(" ", "").split(",")
    return any(coding == "gzip" or (coding.startswith("gzip;q=") and coding.strip("gzip;q=.0")) for coding in codings)
