"""Where a call comes from."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp import web

Network = IPv4Network | IPv6Network

# what a proxy adds to a call that it passes on
_PASSED_ON = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via")
_SHOWN = 64  # characters: a header's text is anyone's
_HOME_BITS = 64  # of an IPv6 address: the rest is its owner's to choose


def of(request: web.Request, *, trusted_proxies: Sequence[Network]) -> str:
    """The peer, or the nearest address before it that is no proxy of ours; '' where it came by the unix socket."""
    passed = [hop.strip() for hop in ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")]
    nearest = request.remote or ""
    while passed and _is_ours(nearest, trusted_proxies):
        nearest = passed.pop()
    return nearest[:_SHOWN]


def is_from(request: web.Request, networks: Sequence[Network]) -> bool:
    """Whether the peer itself asks, from one of these networks. What a proxy passes on comes from anywhere, wherever
    the proxy is."""
    parsed = _parsed(request.remote or "")
    passed_on = any(header in request.headers for header in _PASSED_ON)
    return parsed is not None and not passed_on and any(parsed in network for network in networks)


def home(address: str) -> str:
    """What is counted as one caller: an IPv4 address, or the /64 of an IPv6 one."""
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
    # a socket that listens on both families shows ::ffff:192.0.2.1
    return parsed.ipv4_mapped or parsed if isinstance(parsed, IPv6Address) else parsed
