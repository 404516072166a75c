"""Connects to Redis, at one address or the address from Sentinels, optionally with TLS and a check of the host name."""

import asyncio
import re
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.utils import str_if_bytes

from worker.program.configuration import ReadableFile
from worker.store import trouble
from worker.store.connection import Tls, over_tls, tracked
from worker.store.observer import Observer
from worker.store.script_connection import Copies, Script, ScriptConnection

Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
ADDRESS = re.compile(r"rediss?://([^][/?#@:]+|\[[0-9a-fA-F:.]+])(:[0-9]+)?(/[0-9]+)?|unix:///[^?#]+(\?db=[0-9]+)?")
WAITING = frozenset({"BLPOP", "XREAD"})  # blocking commands, whose duration says nothing about Redis
IDLE_CHECK_SECONDS = 15  # after this idle time, a connection is checked with a PING before it is used

SEARCH_SECONDS = 0.5  # minimum interval between searches without Sentinels; each reopens all connections


class RedisSettings(BaseModel):
    """How to reach Redis. Times are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(default="redis://127.0.0.1:6379/0", description="redis://, rediss:// (TLS) or unix://")
    sentinels: list[str] = Field(
        default=[], description="host:port of each Sentinel; the address of Redis then comes from them, not from url"
    )
    sentinel_master: str = Field(
        default="vps-snapshots", description="name of the primary in the Sentinels (master name)"
    )
    username: str | None = Field(default=None, description="account of Redis")
    password: SecretStr | None = Field(default=None, description="password of that account")
    sentinel_username: str | None = Field(default=None, description="account of the Sentinels")
    sentinel_password: SecretStr | None = Field(default=None, description="password of that account")
    sentinels_are_trusted: bool = Field(
        default=False,
        description="send the password to the address from a Sentinel without checking a certificate",
    )
    tls_ca_file: ReadableFile | None = Field(default=None, description="CA certificates, instead of the system's")
    tls_cert_file: ReadableFile | None = Field(
        default=None, description="certificate of this program, if Redis requires one"
    )
    tls_key_file: ReadableFile | None = Field(default=None, description="key of that certificate")
    tls_check_hostname: bool = Field(default=True, description="whether Redis's certificate must name its host")
    connect_seconds: Seconds = Field(default=2.0, description="limit for a new connection")
    command_seconds: Seconds = Field(default=5.0, description="limit for a command and its reply")
    wait_for_replicas: Annotated[int, Field(ge=0, le=10)] = Field(
        default=0,
        description="how many replicas must confirm a change before the call succeeds; set 1 with Sentinel",
    )
    max_connections: Annotated[int, Field(ge=4, le=10_000)] = Field(
        default=200, description="connections of one process to Redis"
    )

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        # redis-py lets options in a query override ours, accepts any path, and ignores invalid options
        if not ADDRESS.fullmatch(url):
            forms = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///SOCKET?db=DB"
            raise ValueError(f"is not {forms}; username and password have their own keys")
        parse_url(url)  # ValueError if the port is invalid
        return url

    @field_validator("sentinels")
    @classmethod
    def _have_ports(cls, sentinels: list[str]) -> list[str]:
        for sentinel in sentinels:
            host, _, port = sentinel.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
                raise ValueError(f"{sentinel!r} is not host:port")
        return sentinels

    @model_validator(mode="after")
    def _key_with_certificate(self) -> Self:
        if (self.tls_cert_file is None) is not (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together")
        if not self.uses_tls and (self.tls_ca_file or self.tls_cert_file):
            raise ValueError("tls_ca_file and tls_cert_file need TLS: use a rediss:// url")
        return self

    @model_validator(mode="after")
    def _never_tell_anyone_the_password(self) -> Self:
        # whoever controls a Sentinel determines the address to which the password is sent
        is_checked = self.uses_tls and self.tls_check_hostname
        if self.sentinels and self.password and not is_checked and not self.sentinels_are_trusted:
            raise ValueError(
                "with sentinels, a password needs a rediss:// url and tls_check_hostname, or sentinels_are_trusted"
            )
        return self

    @property
    def uses_tls(self) -> bool:
        return self.url.startswith("rediss://")


class _Client(Redis):
    def __init__(
        self, *, pool: ConnectionPool, command_seconds: float, observer: Observer | None, replicas: int
    ) -> None:
        super().__init__(connection_pool=pool)
        self._observer = observer
        self._searched_at = -SEARCH_SECONDS
        self._looking: asyncio.Task[None] | None = None
        every: dict[str, Any] = {"seconds": command_seconds, "idle_seconds": IDLE_CHECK_SECONDS, "late": self._look}
        self._of_scripts = ScriptConnection(pool, **every)
        self._of_changes = self._of_scripts
        if replicas:  # on a separate connection, because reads would wait behind them
            copies = Copies(replicas=replicas, seconds=command_seconds / 2)
            # Reads follow to a new primary, because a former one still has what was deleted on the new one.
            opened = self._of_scripts.leave_others
            self._of_changes = ScriptConnection(pool, copies=copies, opened=opened, **every)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        command = super().execute_command(*args, **options)  # type: ignore[no-untyped-call] # redis-py's gap
        return await self._observed(command, waits=args[0] in WAITING)

    async def run_script(self, script: Script, argument: bytes) -> Any:
        connection = self._of_changes if script.changes else self._of_scripts
        return await self._observed(connection.run(script, argument))

    async def reconnect(self) -> None:
        for connection in {self._of_scripts, self._of_changes}:
            connection.retire()
        # Not the pool's own disconnect, which waits for each to close: meanwhile another task would take one as open.
        for idle in tuple(self.connection_pool._available_connections):  # noqa: SLF001 - as above
            await idle.disconnect(nowait=True)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        for connection in {self._of_scripts, self._of_changes}:
            await connection.close()
        await super().aclose(close_connection_pool)

    async def _observed(self, command: Awaitable[Any], *, waits: bool = False) -> Any:
        began = time.perf_counter()
        try:
            answer = await command
        except NoScriptError:  # redis-py then sends the script itself
            raise
        except (RedisError, OSError) as error:
            if self._observer is not None:
                self._observer.failed(error)
            await self._find_primary(error)
            raise
        if self._observer is not None and not waits:
            self._observer.answered(time.perf_counter() - began)
        return answer

    async def _find_primary(self, error: Exception) -> None:
        """If Redis has lost its replicas, another instance may have become the primary."""
        if not (isinstance(error, trouble.NotCopied) or trouble.why_read_only(error) == trouble.ALONE):
            return
        self._look()
        if not isinstance(self.connection_pool, SentinelConnectionPool):  # its name may lead to another
            now = time.monotonic()
            if now - self._searched_at >= SEARCH_SECONDS:
                self._searched_at = now
                await self.reconnect()

    def _look(self) -> None:
        """Ask the Sentinels in the background, and close connections to a former primary. Existing connections must
        move too, because a primary that hangs or is cut off from its replicas answers only after seconds."""
        if isinstance(self.connection_pool, SentinelConnectionPool) and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._leave_former(self.connection_pool))

    async def _leave_former(self, pool: SentinelConnectionPool) -> None:
        with suppress(RedisError, OSError):
            primary = await pool.get_master_address()  # type: ignore[no-untyped-call] # redis-py's gap
            for connection in {self._of_scripts, self._of_changes}:
                connection.leave_others(primary)


def connect(
    settings: RedisSettings, *, command_seconds: float | None = None, observer: Observer | None = None
) -> Redis:
    """A client that connects at its first command; `command_seconds` overrides the setting. `observer` gets the result
    of each command and script outside of pipelines.

    Commands are never retried, because one whose reply was lost may have been executed. It raises AnswerLost, and
    the caller must decide. Close it with `aclose(close_connection_pool=True)`.
    """
    options: dict[str, Any] = {
        "socket_timeout": command_seconds or settings.command_seconds,
        "socket_connect_timeout": settings.connect_seconds,
        "health_check_interval": IDLE_CHECK_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # answers have one form, whatever redis-py and the server prefer
    }
    if settings.username is not None:
        options["username"] = settings.username
    if settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    if not settings.url.startswith("unix://"):
        options["socket_keepalive"] = True
    tls = None
    if settings.uses_tls:
        options |= _tls(settings)
        tls = Tls(
            ca_file=settings.tls_ca_file,
            cert_file=settings.tls_cert_file,
            key_file=settings.tls_key_file,
            names_host=settings.tls_check_hostname,
        )
    # if all connections are in use, wait for one as long as for a command
    size = {"max_connections": settings.max_connections, "timeout": settings.command_seconds}
    if settings.sentinels:
        pool: ConnectionPool = _sentinel_pool(settings, options, size)
    else:
        pool = BlockingConnectionPool.from_url(settings.url, **options, **size)
    if tls is not None:
        for one in (pool, *_pools_of_sentinels(pool)):
            one.connection_class = over_tls(one.connection_class, tls)
    pool.connection_class = tracked(pool.connection_class)
    return _Client(
        pool=pool,
        command_seconds=options["socket_timeout"],
        observer=observer,
        replicas=settings.wait_for_replicas,
    )


def _pools_of_sentinels(pool: ConnectionPool) -> list[ConnectionPool]:
    if not isinstance(pool, SentinelConnectionPool):
        return []
    return [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]


def _tls(settings: RedisSettings) -> dict[str, Any]:
    files = {
        "ssl_ca_certs": settings.tls_ca_file,
        "ssl_certfile": settings.tls_cert_file,
        "ssl_keyfile": settings.tls_key_file,
    }
    return {"ssl_check_hostname": settings.tls_check_hostname, "ssl_cert_reqs": "required"} | {
        option: str(file) for option, file in files.items() if file is not None
    }


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A Sentinel's view of the primary. `epoch`: rises with each failover. `is_up`: in that Sentinel's view."""

    epoch: int
    is_up: bool
    address: tuple[str, int]


class _Sentinels(Sentinel):
    """Queries all Sentinels at once, and uses the newest answer of the majority. A Sentinel that is cut off together
    with a former primary still names it, and one whose machine is down must not delay the others."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call] # redis-py's gap
        self._left: set[asyncio.Task[_Named | None]] = set()  # whose answers nobody waits for

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        asked = [asyncio.ensure_future(self._asked(sentinel, service_name)) for sentinel in self.sentinels]
        named: list[_Named] = []
        failed: list[str] = []
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    named += filter(None, [await answer])
                except (RedisError, OSError) as error:
                    failed.append(repr(error))
                if len(named) > len(asked) // 2:
                    break
        finally:
            self._leave(asked)
        newest = max(named, key=lambda one: (one.epoch, one.is_up), default=None)
        if newest is None or not newest.is_up:
            raise MasterNotFoundError("; ".join([f"No primary found for {service_name!r}", *failed]))
        return newest.address

    def _leave(self, asked: Iterable[asyncio.Task[_Named | None]]) -> None:
        """Not awaited: to close a connection to a machine that is gone takes connect_seconds."""
        for task in asked:
            if task.cancel():
                self._left.add(task)
                task.add_done_callback(self._left.discard)

    async def aclose(self) -> None:
        """Also the connections, which redis-py leaves open."""
        if self._left:
            await asyncio.wait(self._left)
        for sentinel in self.sentinels:
            await sentinel.aclose()

    async def _asked(self, sentinel: Redis, name: str) -> _Named | None:
        """While it leads a failover, its state of the primary has the former address until all replicas follow the new
        primary, which takes seconds. Asked for the address alone, it names the new one as soon as that is promoted."""
        state = (await sentinel.sentinel_masters()).get(name)  # type: ignore[no-untyped-call] # redis-py's gap
        address = await sentinel.sentinel_get_master_addr_by_name(name)  # type: ignore[no-untyped-call] # the same
        if state is None or address is None:
            return None
        host, port = str_if_bytes(address[0]), address[1]
        is_promoted = (host, port) != (state["ip"], state["port"])
        is_up = is_promoted or self.check_master_state(state, name)
        return _Named(epoch=int(state["config-epoch"]), is_up=is_up, address=(host, port))


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # at exit
            await self.sentinel_manager.aclose()


def _sentinel_pool(settings: RedisSettings, options: dict[str, Any], size: dict[str, Any]) -> ConnectionPool:
    # arq's own support for Sentinel ignores the CA, the timeouts and the host name check
    if settings.uses_tls:
        options = {**options, "ssl": True}
    for_sentinels = {key: value for key, value in options.items() if key not in {"username", "password"}}
    if settings.sentinel_username is not None:
        for_sentinels["username"] = settings.sentinel_username
    if settings.sentinel_password is not None:
        for_sentinels["password"] = settings.sentinel_password.get_secret_value()
    hosts = [(host.strip("[]"), int(port)) for host, _, port in (text.rpartition(":") for text in settings.sentinels)]
    sentinel = _Sentinels(hosts, sentinel_kwargs=for_sentinels, **options)
    database = parse_url(settings.url).get("db", 0)
    client = sentinel.master_for(settings.sentinel_master, connection_pool_class=_SentinelPool, db=database, **size)
    pool: ConnectionPool = client.connection_pool
    return pool
