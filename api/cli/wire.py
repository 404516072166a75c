"""HTTP with aiohttp, whose errors are translated here."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL

from api.cli.access import Access
from api.cli.client import Body, Query, Reply
from api.cli.exits import Exit, Refused, Unreachable

ANSWER_MAX_BYTES = 64 << 20  # a hundred times the longest response, a list of 500
BASE = "/api/v1/"
SILENCE_SECONDS = 60.0  # on a stream, which sends a heartbeat every 15 s


class Wire:
    """Each call may raise Unreachable."""

    def __init__(self, access: Access, session: aiohttp.ClientSession) -> None:
        self._access = access
        self._session = session
        self._proxy = _proxy_for(URL(access.url))

    async def send(
        self, method: str, path: str, *, query: Query, body: Body | None, headers: Mapping[str, str]
    ) -> Reply:
        limit = aiohttp.ClientTimeout(total=self._access.timeout_seconds)
        with self._translate():
            async with self._session.request(
                method,
                self._url(path, query),
                json=body,
                headers=self._with_token(headers),
                timeout=limit,
                proxy=self._proxy,
                allow_redirects=False,  # the token is for this host only
            ) as response:
                return Reply(status=response.status, headers=response.headers, raw=await _whole(response))

    @asynccontextmanager
    async def stream(self, path: str, *, headers: Mapping[str, str]) -> AsyncIterator[tuple[Reply, AsyncIterator[str]]]:
        """The response's status and headers, and the lines of its body as they arrive. The Reply has the body of an
        error."""
        limit = aiohttp.ClientTimeout(sock_connect=self._access.timeout_seconds, sock_read=SILENCE_SECONDS)
        with self._translate():
            async with self._session.get(
                self._url(path, {}),
                headers=self._with_token(headers),
                timeout=limit,
                proxy=self._proxy,
                allow_redirects=False,
            ) as response:
                raw = b"" if response.ok else await _whole(response)
                yield (
                    Reply(status=response.status, headers=response.headers, raw=raw),
                    (line.decode(errors="replace").rstrip("\r\n") async for line in response.content),
                )

    def _with_token(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._access.token}", **headers}

    def _url(self, path: str, query: Query) -> URL:
        asked = {name: str(value) for name, value in query.items() if value is not None}
        return URL(f"{self._access.url}{BASE}{path}", encoded=True).with_query(asked)

    @contextmanager
    def _translate(self) -> Iterator[None]:
        try:
            yield
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError) as error:
            raise Unreachable(f"{self._access.url} is not responding: {_reason(error)}.") from error


def _proxy_for(url: URL) -> str | None:
    """The proxy from HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as in curl and git; none for this machine itself. aiohttp's
    own reading of them would also take a password from ~/.netrc and send it instead of the token."""
    host = url.host or ""
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return None
    if proxy_bypass(host if url.is_default_port() else f"{host}:{url.port}"):
        return None
    proxies = getproxies_environment()
    return proxies.get(url.scheme) or proxies.get("all")


@asynccontextmanager
async def opened(access: Access) -> AsyncIterator[Wire]:
    async with aiohttp.ClientSession() as session:
        yield Wire(access, session)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > ANSWER_MAX_BYTES:
            raise Refused(Exit.REFUSED, "The response is too large; check --url.", code="")
    return bytes(raw)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the call timed out"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is invalid: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return str(error) or type(error).__name__
