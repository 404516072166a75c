"""The address that a call comes from."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import web

Network = IPv4Network | IPv6Network

# headers that proxies add
_PROXY_HEADERS = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via")
_ADDRESS_MAX = 64  # characters: the client can send any text in the header
_WITH_PORT = re.compile(r"(?P<v4>[0-9.]+):[0-9]+|\[(?P<v6>[0-9A-Fa-f:.]+)\](:[0-9]+)?")
_KEPT = 1024  # parsed addresses in the cache
_HOME_BITS = 64  # bits of an IPv6 address; its owner chooses the rest


def of(request: web.Request, *, trusted_proxies: Sequence[Network]) -> str:
    """The peer's address, or behind trusted proxies, the nearest address that is not one of them; '' for a Unix
    socket."""
    nearest = request.remote or ""
    if "X-Forwarded-For" not in request.headers:
        return nearest[:_ADDRESS_MAX]
    passed = [hop.strip() for hop in ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")]
    while passed and _is_ours(nearest, trusted_proxies):
        nearest = _without_port(passed.pop())
    return nearest.encode("ascii", "backslashreplace").decode()[:_ADDRESS_MAX]


def is_from(request: web.Request, networks: Sequence[Network]) -> bool:
    """Whether the peer is in one of these networks and is not a proxy: a proxy may forward requests from anywhere."""
    parsed = _parsed(request.remote or "")
    is_proxy = any(header in request.headers for header in _PROXY_HEADERS)
    return parsed is not None and not is_proxy and any(parsed in network for network in networks)


@lru_cache(_KEPT)
def home(address: str) -> str:
    """The key that counts as one caller: an IPv4 address, the /64 of an IPv6 address, or any other text that a
    proxy wrote in place of an address."""
    parsed = _parsed(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((int(parsed), _HOME_BITS), strict=False))  # drops the zone, as in fe80::1%eth0
    return address if parsed is None else str(parsed)


def _without_port(hop: str) -> str:
    """Some proxies add the port: `192.0.2.1:4711`, `[2001:db8::1]:4711`."""
    found = _WITH_PORT.fullmatch(hop)
    return hop if found is None else found["v4"] or found["v6"]


def _is_ours(address: str, trusted_proxies: Sequence[Network]) -> bool:
    parsed = _parsed(address)
    return not address if parsed is None else any(parsed in network for network in trusted_proxies)


@lru_cache(_KEPT)
def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    # a dual-stack socket reports IPv4 addresses as ::ffff:192.0.2.1
    return parsed.ipv4_mapped or parsed if isinstance(parsed, IPv6Address) else parsed
