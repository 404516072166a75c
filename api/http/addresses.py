"""The address that a call comes from."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp import web

Network = IPv4Network | IPv6Network

# headers that proxies add
_PROXY_HEADERS = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via")
_ADDRESS_MAX = 64  # characters: the client may have sent any text in the header
_HOME_BITS = 64  # of an IPv6 address; its owner chooses the rest


def of(request: web.Request, *, trusted_proxies: Sequence[Network]) -> str:
    """The peer, or if that is a trusted proxy, the nearest address before it that is not; '' for a Unix socket."""
    passed = [hop.strip() for hop in ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")]
    nearest = request.remote or ""
    while passed and _is_ours(nearest, trusted_proxies):
        nearest = passed.pop()
    return nearest[:_ADDRESS_MAX]


def is_from(request: web.Request, networks: Sequence[Network]) -> bool:
    """Whether the peer is in one of these networks and is not a proxy: what a proxy forwards may come from anywhere."""
    parsed = _parsed(request.remote or "")
    is_proxy = any(header in request.headers for header in _PROXY_HEADERS)
    return parsed is not None and not is_proxy and any(parsed in network for network in networks)


def home(address: str) -> str:
    """The network that counts as one caller: an IPv4 address, or the /64 of an IPv6 address."""
    parsed = _parsed(address)
    return str(ip_network((parsed, _HOME_BITS), strict=False)) if isinstance(parsed, IPv6Address) else str(parsed or "")


def _is_ours(address: str, trusted_proxies: Sequence[Network]) -> bool:
    parsed = _parsed(address)
    return not address if parsed is None else any(parsed in network for network in trusted_proxies)


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    # a dual-stack socket reports IPv4 addresses as ::ffff:192.0.2.1
    return parsed.ipv4_mapped or parsed if isinstance(parsed, IPv6Address) else parsed
