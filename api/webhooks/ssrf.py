"""Requests to URLs that customers choose: only to public addresses, to prevent server-side request forgery.

Addresses are checked twice: those of a name when it is resolved, and that of a socket when it is created.
The second check also covers an address that stands in the URL itself, which is never resolved.
"""

import socket
from ipaddress import IPv4Address, IPv6Network, ip_address

from aiohttp import AddrInfoType, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

HTTPS_PORT, FIRST_FREE_PORT = 443, 1024
URL_MAX = 2048  # characters
_RESPONSE_BUFFER_BYTES = 1024  # we need only the status of the answer
# The global unicast range. Mapped and NAT64 addresses, which hold an IPv4 address, are outside of it.
_GLOBAL_IPV6 = IPv6Network("2000::/3")


class AddressRefused(OSError):
    """The address is not public; nothing was sent."""


def is_public(address: str) -> bool:
    """Whether it is a public unicast address."""
    parsed = ip_address(address)
    if not parsed.is_global or parsed.is_multicast:
        return False
    # 6to4 and Teredo addresses, which also hold an IPv4 address, are inside of it
    return isinstance(parsed, IPv4Address) or (
        parsed in _GLOBAL_IPV6 and parsed.sixtofour is None and parsed.teredo is None
    )


def url_error(text: str, *, to_private: bool) -> str | None:
    """The error in a webhook's URL, None if it is valid. `to_private`: allow http, and any address and port."""
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError:
        return "Must be a URL."
    if url.scheme != "https" and not (to_private and url.scheme == "http"):
        return "Must be an https URL."
    if not host or url.user is not None or url.password is not None or url.raw_fragment:
        return "Must have a host, and no user, password or fragment."
    if to_private:
        return None
    if port is None or (port != HTTPS_PORT and port < FIRST_FREE_PORT):
        return f"The port must be {HTTPS_PORT} or at least {FIRST_FREE_PORT}."
    return None if _is_name(host) or is_public(host) else "The address must be public."


def client(*, to_private: bool, resolver: AbstractResolver, seconds: float) -> ClientSession:
    """A client for such requests, each limited to `seconds`. It ignores the proxies of the environment, and
    keeps no cookies and no connections. Call `url_error` for each URL first."""
    connector = TCPConnector(
        resolver=resolver if to_private else _PublicResolver(resolver),
        socket_factory=None if to_private else _public_socket,
        use_dns_cache=False,
        force_close=True,
        limit=0,  # the caller has its own limits
    )
    return ClientSession(
        connector=connector,
        timeout=ClientTimeout(total=seconds),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=_RESPONSE_BUFFER_BYTES,
        trust_env=False,
    )


class _PublicResolver(AbstractResolver):
    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(is_public(each["host"]) for each in found):
            raise AddressRefused("The name has an address that is not public.")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _public_socket(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, where = address
    if not is_public(str(where[0])):
        raise AddressRefused("The address is not public.")
    return socket.socket(family=family, type=kind, proto=protocol)


def _is_name(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return True
    return False
