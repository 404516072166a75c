"""Requests to URLs that customers choose: only to public addresses, to prevent server-side request forgery.

Addresses are checked twice: those of a name when it is resolved, and that of a socket when it is created.
The second check also covers an address in the URL itself, which is never resolved.
"""

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiohttp import AddrInfoType, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from api.http.addresses import Network

HTTPS_PORT, FIRST_FREE_PORT = 443, 1024
URL_MAX = 2048  # characters
_RESPONSE_BUFFER_BYTES = 1024  # only the status of the response is needed
# The global unicast range. Mapped and NAT64 addresses, which contain an IPv4 address, are outside of it.
_GLOBAL_IPV6 = IPv6Network("2000::/3")


# Names that resolve to this machine or its network everywhere. They are refused unless `hosts` lists them.
_LOCAL_NAMES = ("localhost", "localdomain", "local", "internal", "home.arpa")


class AddressRefused(OSError):
    """The address is not allowed; nothing was sent."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which addresses webhooks may have: public ones and `networks`, but none in `denied`. A name in `hosts`, or below
    an entry that begins with a dot, may have any address that is not denied. `to_private`: any address is
    allowed, and http. `proxy`: URL of a proxy, which resolves the names and then decides by address."""

    to_private: bool = False
    networks: tuple[Network, ...] = ()
    denied: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()
    proxy: str | None = None

    def allows(self, address: str, *, host: str = "") -> bool:
        """Whether requests may go to the address; `host`: the name that led to it."""
        parsed = ip_address(address)
        if isinstance(parsed, IPv6Address):
            parsed = parsed.ipv4_mapped or parsed
        if any(parsed in network for network in self.denied):
            return False
        ours = self.to_private or self.lists(host) or any(parsed in network for network in self.networks)
        return ours or is_public(address)

    def lists(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return any(name == each or (each.startswith(".") and name.endswith(each)) for each in self.hosts)


def is_public(address: str) -> bool:
    """Whether it is a public unicast address."""
    parsed = ip_address(address)
    if not parsed.is_global or parsed.is_multicast:
        return False
    # 6to4 and Teredo addresses, which also contain an IPv4 address, are inside of it
    return isinstance(parsed, IPv4Address) or (
        parsed in _GLOBAL_IPV6 and parsed.sixtofour is None and parsed.teredo is None
    )


def url_error(text: str, reach: Reach) -> str | None:
    """The error in a webhook's URL, None if it is valid."""
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError:
        return "Must be a URL."
    if url.scheme != "https" and not (reach.to_private and url.scheme == "http"):
        return "Must be an https URL."
    if not host or url.user is not None or url.password is not None or url.raw_fragment:
        return "Must have a host, and no user, password or fragment."
    if (why := _host_error(host, reach)) or reach.to_private:
        return why
    if port is None or (port != HTTPS_PORT and port < FIRST_FREE_PORT):
        return f"The port must be {HTTPS_PORT} or at least {FIRST_FREE_PORT}."
    return None


def _host_error(host: str, reach: Reach) -> str | None:
    if not _is_name(host):
        return None if reach.allows(host) else "The address must be public."
    is_fine = reach.to_private or reach.lists(host) or not _is_local(host)
    return None if is_fine else "The host must have a public name."


def client(reach: Reach, *, resolver: AbstractResolver, seconds: float) -> ClientSession:
    """A client for such requests, each limited to `seconds`. It ignores the proxies of the environment, and
    keeps no cookies and no connections. Call `url_error` for each URL first."""
    checked = _CheckedResolver(resolver, reach)
    connector = TCPConnector(
        resolver=resolver if reach.proxy else checked,  # with a proxy, only the proxy itself is connected to
        socket_factory=None if reach.proxy else checked.socket,
        use_dns_cache=False,
        force_close=True,
        limit=0,  # the caller sets its own limits
    )
    return ClientSession(
        connector=connector,
        timeout=ClientTimeout(total=seconds),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=_RESPONSE_BUFFER_BYTES,
        trust_env=False,
        proxy=reach.proxy,
    )


class _CheckedResolver(AbstractResolver):
    def __init__(self, resolver: AbstractResolver, reach: Reach) -> None:
        self._resolver = resolver
        self._reach = reach
        # addresses of listed hosts, because a socket does not know from which name its address came
        self._of_hosts: set[str] = set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(self._reach.allows(each["host"], host=host) for each in found):
            raise AddressRefused("The name has an address that is not allowed.")
        if self._reach.lists(host):
            self._of_hosts |= {each["host"] for each in found}
        return found

    def socket(self, address: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, where = address
        if str(where[0]) not in self._of_hosts and not self._reach.allows(str(where[0])):
            raise AddressRefused("The address is not allowed.")
        return socket.socket(family=family, type=kind, proto=protocol)

    async def close(self) -> None:
        await self._resolver.close()


def _is_local(host: str) -> bool:
    """Whether the name is local. Includes names without a dot, and numbers that some resolvers read as an address:
    2130706433, 0x7f.1."""
    name = host.lower().rstrip(".")
    last = name.rpartition(".")[2]
    is_number = last.isdecimal() or last.startswith("0x")
    return "." not in name or is_number or any(f".{name}".endswith(f".{local}") for local in _LOCAL_NAMES)


def _is_name(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return True
    return False
