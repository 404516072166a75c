"""Calls to the outside, to where a customer says: only to public addresses, whatever a name says and when.

An address is looked at twice: when its name is resolved, all of them, and when the socket is made for the very address
that it will be connected to. The second look also sees the addresses that stand in a URL, which nobody resolves.
"""

import socket
from ipaddress import IPv4Address, IPv6Network, ip_address

from aiohttp import AddrInfoType, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

HTTPS_PORT, FIRST_FREE_PORT = 443, 1024
URL_MAX = 2048  # characters
_RESPONSE_BUFFER_BYTES = 1024  # its status is all that we want of an answer
# What IPv6 has assigned to the world. Outside of it are the forms that hold an IPv4 address, mapped and of NAT64, ...
_GLOBAL_IPV6 = IPv6Network("2000::/3")


class AddressRefused(OSError):
    """The address is none of the public internet; nothing was sent."""


def is_public(address: str) -> bool:
    """Whether that address belongs to one machine of the public internet."""
    parsed = ip_address(address)
    if not parsed.is_global or parsed.is_multicast:
        return False
    # ... and inside are two more, 6to4 and Teredo
    return isinstance(parsed, IPv4Address) or (
        parsed in _GLOBAL_IPV6 and parsed.sixtofour is None and parsed.teredo is None
    )


def why_not(text: str, *, to_private: bool) -> str | None:
    """What is wrong with a URL to call, None where nothing is. `to_private`: http and any address and port may be."""
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError:
        return "Input should be a URL"
    if url.scheme != "https" and not (to_private and url.scheme == "http"):
        return "Input should be an https URL"
    if not host or url.user is not None or url.password is not None or url.raw_fragment:
        return "Input should have a host, and neither user nor password nor fragment"
    if to_private:
        return None
    if port is None or (port != HTTPS_PORT and port < FIRST_FREE_PORT):
        return f"The port should be {HTTPS_PORT} or from {FIRST_FREE_PORT} on"
    return None if _is_name(host) or is_public(host) else "The address should be public"


def client(*, to_private: bool, resolver: AbstractResolver, seconds: float) -> ClientSession:
    """A client for such calls, each of which may take so long. It follows no proxy of the environment, keeps no
    cookies and no connections. It is for who calls `why_not` first."""
    connector = TCPConnector(
        resolver=resolver if to_private else _PublicResolver(resolver),
        socket_factory=None if to_private else _public_socket,
        use_dns_cache=False,
        force_close=True,
        limit=0,  # the caller's own limits hold
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
