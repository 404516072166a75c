"""Accepts the connections of nodes: authenticates them, limits their number, and closes those whose credential has
ended."""

import asyncio
import logging
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import structlog
from redis.asyncio import Redis
from websockets.asyncio.server import Server, ServerConnection, serve, unix_serve
from websockets.datastructures import MultipleValuesError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event

from api.gateway.limits import Allowance
from api.gateway.metrics import Metrics
from api.gateway.refusals import Refusals
from api.gateway.session import Allowances, Session
from api.gateway.settings import GatewaySettings
from worker.program.background import in_background
from worker.program.configuration import ConfigurationError
from worker.store.access.credentials import Credential, Credentials
from worker.store.errors import StoreUnavailable
from worker.store.nodes.node_store import NodeStore
from worker.store.nodes.protocol import FRAME_BYTES, PATH, Hello

# interval between checks for ended credentials, so that their connections are closed within a second
CREDENTIAL_CHECK_SECONDS = 0.5
# connections at a time: the worker's, one that it has abandoned, a command's; one more closes the oldest
OF_ONE_NODE = 4
HANDSHAKES = 64  # concurrent lookups of credentials
HANDSHAKE_SECONDS = 10.0
PING_SECONDS = 5.0
SILENT_SECONDS = 10.0  # the limit for an answer to a ping or a close
FRAMES_WAITING = 4  # frames of one connection that are read and not yet handled
PINGS_PER_SECOND, PINGS_AT_ONCE = 2.0, 20  # pings and pongs from one connection; more close it
CONNECTIONS_PER_SECOND, CONNECTIONS_AT_ONCE = 2.0, 50  # new connections of one node; more are refused
OWED_SECONDS = 10.0  # a node whose calls have to wait longer opens no new connection, so that it soon has paid
READ_BYTES = 4096  # how much is read before what it contains is looked at: it may be thousands of pings

log = structlog.stdlib.get_logger()


class Gateway:
    """The state that the connections of all nodes share."""

    def __init__(
        self,
        redis: Redis,
        waiting: Redis,
        *,
        settings: GatewaySettings,
        metrics: Metrics,
        first_lease: Callable[[], Awaitable[object]],
    ) -> None:
        """`waiting`: a Redis client with a connection for each node, for commands that block. `first_lease` is awaited
        before the first lease of each connection."""
        self._redis = redis
        self._waiting = waiting
        self._settings = settings
        self._metrics = metrics
        self._first_lease = first_lease
        self._credentials = Credentials(redis)
        self._refusals = Refusals(metrics)
        self._handshakes = asyncio.Semaphore(HANDSHAKES)
        # weak, because a connection that is admitted may still end before it is served
        self._admitted = WeakKeyDictionary[ServerConnection, Credential]()
        self._sessions: dict[str, list[Session]] = defaultdict(list)
        self._allowances: dict[str, Allowances] = {}
        metrics.connections.set_function(lambda: sum(map(len, list(self._sessions.values()))))

    async def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Authenticate a connection request. None: the connection may be opened."""
        if request.path != PATH:
            return _another_path(connection, request)
        if sum(map(len, self._sessions.values())) >= self._settings.connections or self._handshakes.locked():
            return self._turned_away(connection, HTTPStatus.SERVICE_UNAVAILABLE, "crowded")
        try:
            async with self._handshakes:
                credential = await self._credentials.find(_bearer(request))
        except StoreUnavailable:
            return self._turned_away(connection, HTTPStatus.SERVICE_UNAVAILABLE, "unavailable")
        if credential is None:
            return self._turned_away(connection, HTTPStatus.UNAUTHORIZED, "unauthorized")
        allowances = self._allowances_of(credential.node)
        if allowances.calls.take(0) > OWED_SECONDS or not allowances.connections.may_take():
            return self._turned_away(connection, HTTPStatus.TOO_MANY_REQUESTS, "crowded")
        self._metrics.handshake("accepted")
        self._admitted[connection] = credential
        return None

    def _turned_away(self, connection: ServerConnection, status: HTTPStatus, why: str) -> Response:
        self._metrics.handshake(why)
        log.info("gateway.turned_away", reason=why, address=_address(connection))
        return connection.respond(status, f"{why}\n")

    async def serve(self, connection: ServerConnection) -> None:
        """Answer the calls of an admitted connection until it ends."""
        credential = self._admitted.pop(connection)
        session = Session(
            connection,
            credential,
            allowances=self._allowances_of(credential.node),
            store_of=self._store_of,
            first_lease=self._first_lease,
            refusals=self._refusals,
            metrics=self._metrics,
        )
        sessions = self._sessions[session.node]
        sessions.append(session)
        for older in sessions[:-OF_ONE_NODE]:
            older.cut()
        log.info("gateway.connected", node=session.node, credential=credential.id)
        try:
            await session.run()
        finally:
            sessions.remove(session)
            if not sessions:
                del self._sessions[session.node]
            log.info("gateway.disconnected", node=session.node, credential=credential.id)

    def _allowances_of(self, node: str) -> Allowances:
        """The node's allowances. They outlive a connection, so that a new connection does not reset them."""
        if node not in self._allowances:
            settings = self._settings
            self._allowances[node] = Allowances(
                connections=Allowance(per_second=CONNECTIONS_PER_SECOND, at_once=CONNECTIONS_AT_ONCE),
                calls=Allowance(per_second=settings.calls_per_second, at_once=settings.calls_at_once),
                bytes=Allowance(per_second=settings.bytes_per_second, at_once=4 * settings.bytes_per_second),
            )
        return self._allowances[node]

    def _store_of(self, credential: Credential, hello: Hello) -> NodeStore:
        return NodeStore(
            self._redis,
            node=credential.node,
            machine=hello.machine,
            who=hello.who,
            owner=hello.owner,
            credential=credential.key,
            node_silent_seconds=self._settings.node_silent_seconds,
            placement=self._settings.placement,
            refused=lambda call, reason: self._refusals.refused(credential.node, call, reason),
            remembers_reports=True,
            waiting=self._waiting,
            starts_at_admission=self._settings.redis.wait_for_replicas == 0,
        )

    async def keep_cutting(self) -> NoReturn:
        """Close the connections whose credential has ended, until cancelled. While Redis is unavailable, none is
        closed, and none can do anything."""
        while True:
            await asyncio.sleep(CREDENTIAL_CHECK_SECONDS)
            try:
                await self.cut_ended()
            except StoreUnavailable:
                log.info("gateway.credentials_not_checked")

    async def cut_ended(self) -> None:
        open_now = [session for sessions in self._sessions.values() for session in sessions]
        ended = await self._credentials.ended({session.credential.key for session in open_now})
        for session in open_now:
            if session.credential.key in ended:
                session.cut_as_ended()


class Connection(ServerConnection):
    """Closes the connection of a node that floods it with pings or pongs, because they do not count toward the node's
    allowance."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pings, self._pings_at = 0.0, self.loop.time()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), READ_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + READ_BYTES])

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode in {Opcode.PING, Opcode.PONG}:
            now = self.loop.time()
            self._pings = max(0.0, self._pings - (now - self._pings_at) * PINGS_PER_SECOND) + 1
            self._pings_at = now
            if self._pings > PINGS_AT_ONCE:
                self.transport.abort()
                return
        super().process_event(event)


@asynccontextmanager
async def listening(gateway: Gateway, settings: GatewaySettings) -> AsyncIterator[Server]:
    """Accept connections while the block runs. When it ends, tell the nodes to connect to another gateway. Raises
    OSError, and ConfigurationError."""
    quiet = logging.getLogger("websockets.gateway")  # failed handshakes of unknown clients are not our errors
    quiet.disabled = True
    options: dict[str, Any] = {
        "process_request": gateway.admit,
        "create_connection": Connection,
        "compression": None,
        "max_size": FRAME_BYTES,
        "max_queue": FRAMES_WAITING,
        "open_timeout": HANDSHAKE_SECONDS,
        "ping_interval": PING_SECONDS,
        "ping_timeout": SILENT_SECONDS,
        "close_timeout": SILENT_SECONDS,
        "server_header": None,
        "logger": quiet,
        "ssl": tls_of(settings),
    }
    if options["ssl"] is not None:
        options["ssl_handshake_timeout"] = HANDSHAKE_SECONDS  # asyncio waits for a minute
    if settings.unix_socket is not None:
        server = await unix_serve(gateway.serve, str(settings.unix_socket), **options)
    else:
        server = await serve(gateway.serve, settings.host, settings.port, **options)
    try:
        async with in_background(gateway.keep_cutting()):
            yield server
    finally:
        server.close(code=1012, reason="the gateway is stopping")
        await server.wait_closed()


def tls_of(settings: GatewaySettings) -> ssl.SSLContext | None:
    """Raises ConfigurationError if the files are not a certificate and its key."""
    if settings.unix_socket or settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    except OSError as error:  # includes errors of TLS
        raise ConfigurationError(f"{settings.tls_cert_file}, {settings.tls_key_file}: {error}") from error
    return context


def _another_path(connection: ServerConnection, request: Request) -> Response:
    if request.path == "/healthz":
        return connection.respond(HTTPStatus.OK, "ok\n")
    return connection.respond(HTTPStatus.NOT_FOUND, "not found\n")


def _address(connection: ServerConnection) -> str:
    peer = connection.remote_address
    return str(peer[0]) if isinstance(peer, tuple) else "unix"


def _bearer(request: Request) -> str:
    """The credential of the request; "" if it has none."""
    try:
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    except MultipleValuesError:
        return ""
    return secret if scheme.lower() == "bearer" else ""
