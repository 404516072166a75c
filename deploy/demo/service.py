"""The whole service on one machine: a private Redis, the gateway, one server, its worker and the front end."""

import asyncio
import errno
import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from deploy.demo.client import Client
from deploy.demo.guest import Guest
from deploy.demo.processes import Child
from deploy.demo.state import State
from deploy.lab.console import Ready
from worker.settings import Driver

SERVER_ID, SERVER_NAME, ACCOUNT_ID = 12345, "web-server-01", 77
NODE = "node-1"
READY_SECONDS = 60.0  # ten times the slowest start seen on a loaded machine

_CUSTOMER_OPTIONS = f"--account {ACCOUNT_ID} --permission snapshots:read --permission snapshots:write".split()
_OPERATOR_OPTIONS = ["--service", "--permission", "operator"]
_PASSED_ON = "VPS_SNAPSHOTS_WEBHOOK"  # the front end's settings that are passed on from the environment
_PROGRAMS = Path(sys.executable).parent
_REDIS_CONF = Path(__file__).parent.parent / "redis" / "redis.conf"


class ServiceFailed(Exception):
    """A part did not start, or ended unexpectedly; the text names it."""


def ensure_port_free(port: int) -> None:
    """Raises ServiceFailed if the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = "in use" if error.errno == errno.EADDRINUSE else error.strerror
            raise ServiceFailed(f"port {port}: {reason}; set another, for example PORT=8081") from error


def redis_configuration(folder: Path) -> str:
    """The production configuration with another `dir`, replaced because Redis changes into the folder of each `dir`."""
    return re.sub(r"(?m)^dir .*$", f'dir "{folder}"', _REDIS_CONF.read_text())


def free_port() -> int:
    """A free port below the kernel's ephemeral range, so that it is most likely still free when the caller binds it."""
    for port in random.SystemRandom().sample(range(10_000, 32_768), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port of 127.0.0.1 is free")


class Service:
    """Starts the parts in order and stops them in reverse order. Their output goes to files in the state folder."""

    def __init__(self, state: State, *, port: int, driver: Driver) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._metrics_port = free_port()
        self.metrics_urls = (f"{self.url}/metrics", f"http://127.0.0.1:{self._metrics_port}/metrics")
        self.guest = Guest(state, server_id=SERVER_ID, name=SERVER_NAME, account_id=ACCOUNT_ID)
        self.client: Client  # set by start(), like the next three; `booted` only with a real guest
        self.operator: Client
        self.operator_token_file = state.folder / "operator-token"
        self.booted: Ready
        self._state = state
        self._port = port
        self._driver = driver
        self._children: list[Child] = []
        self._redis_socket = state.runtime / "redis.sock"

    async def start(self) -> None:
        """Start all parts; returns when the API can serve a customer's request. Raises ServiceFailed."""
        await self._start_redis()
        if self._driver is Driver.KVM:
            # Before the worker, because only one process at a time can use an embedded libvirt, and the guest outlives
            # it.
            booted_after = await self.guest.start()
        shared = {"VPS_SNAPSHOTS_REDIS__URL": f"unix://{self._redis_socket}"}
        worker = await self._start_gateway(shared) | {
            "VPS_SNAPSHOTS_NODE": NODE,
            "VPS_SNAPSHOTS_DRIVER": self._driver,
            "VPS_SNAPSHOTS_LIBVIRT_URI": self.guest.uri,
            "VPS_SNAPSHOTS_STATE_DIR": str(self._state.subfolder("node")),
            "VPS_SNAPSHOTS_METRICS_PORT": str(self._metrics_port),
            # Errors only, to syslog: libvirt logs harmless lookups as errors, and real errors are raised anyway. Never
            # to a file: then libvirt 9.0 does not start QEMU.
            "LIBVIRT_LOG_OUTPUTS": "4:syslog:vps-snapshots",
        }
        await self._start("worker", [_PROGRAMS / "vps-snapshots-worker", "run"], settings=worker)
        port = {"VPS_SNAPSHOTS_HOST": "127.0.0.1", "VPS_SNAPSHOTS_PORT": str(self._port)}
        port["VPS_SNAPSHOTS_LIVE"] = "allowed"
        # effectively without rate limits
        port |= {f"VPS_SNAPSHOTS_{of}_PER_MINUTE": "1000000" for of in ("CALLS", "FAILED_LOGINS")}
        own = {key: text for key, text in os.environ.items() if key.startswith(_PASSED_ON)}
        await self._start("front end", [_PROGRAMS / "vps-snapshots-api", "serve"], settings=own | shared | port)
        await self._ready("the front end", Client(self.url, "").is_up)
        operator_token = self.operator_token_file.name
        self.client, self.operator = await asyncio.gather(
            self._authorized_client("token", "customer", _CUSTOMER_OPTIONS, shared, Client.is_authorized),
            self._authorized_client(operator_token, "operator", _OPERATOR_OPTIONS, shared, Client.is_operator),
        )
        await self._ready("the worker", self._is_server_known)
        if self._driver is Driver.KVM:
            self.booted = await self.guest.ready(after=booted_after)

    async def servers(self) -> list[dict[str, Any]]:
        """All servers, as operators see them, by their ID."""
        answer = await self.operator.call("GET", "/api/v1/ops/servers/")
        return sorted(answer.body["results"], key=lambda server: int(server["id"]))

    async def ended(self) -> str:
        """Wait until a part ends unexpectedly; returns a text that names it."""
        first = await self._first_end()
        status = await first.ended()
        return f"the {first.name} ended unexpectedly with status {status}; its log: {self._log(first.name)}"

    async def stop(self) -> None:
        """Stop everything, including the guest. May be called again, and after a failed start."""
        while self._children:
            child = self._children[-1]
            if child.name == "Redis" and self._driver is Driver.KVM:
                await self.guest.stop()
            await child.stop()
            self._children.pop()

    def pids(self) -> dict[str, int]:
        """Process ID of each part, by its name."""
        return {child.name: child.pid for child in self._children}

    def kill(self) -> None:
        """Kill the parts that are still running."""
        for child in self._children:
            child.kill()
        self.guest.stop_waiting()

    async def _start_redis(self) -> None:
        folder = self._state.subfolder("redis")
        configuration = folder / "redis.conf"
        configuration.write_text(redis_configuration(folder))
        # no TCP port, and a socket that only this user can open
        address = f"--port 0 --unixsocket {self._redis_socket} --unixsocketperm 700".split()
        command: list[Path | str] = ["redis-server", configuration, *address, "--bind", "", "--aclfile", ""]
        await self._start("Redis", command, settings={})
        await self._ready("Redis", self._is_redis_up)

    async def _start_gateway(self, settings: dict[str, str]) -> dict[str, str]:
        """Start the gateway. Returns the worker's settings for it."""
        address = self._state.runtime / "gateway.sock"
        here = {"VPS_SNAPSHOTS_UNIX_SOCKET": str(address)}
        await self._start("gateway", [_PROGRAMS / "vps-snapshots-gateway", "serve"], settings=settings | here)
        credential = self._state.folder / "credential"
        how = "rotate" if credential.exists() else "create"
        secret = await _printed("vps-snapshots-gateway", "credential", how, NODE, settings=settings)
        credential.touch(mode=0o600)
        credential.write_text(secret)
        return {
            "VPS_SNAPSHOTS_GATEWAY__URLS": json.dumps([f"unix://{address}"]),
            "VPS_SNAPSHOTS_GATEWAY__CREDENTIAL_FILE": str(credential),
        }

    async def _start(self, name: str, command: list[Path | str], *, settings: dict[str, str]) -> None:
        self._children.append(await Child.start(name, command, settings=settings, log=self._log(name)))

    def _log(self, name: str) -> Path:
        return self._state.log(name.lower().replace(" ", "-"))

    async def _ready(self, what: str, is_ready: Callable[[], Awaitable[bool]]) -> None:
        ended = asyncio.ensure_future(self.ended())
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await is_ready():
                    if ended.done():
                        raise ServiceFailed(ended.result())
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise ServiceFailed(f"{what} was not ready within {READY_SECONDS:.0f} s") from None
        finally:
            ended.cancel()

    async def _first_end(self) -> Child:
        waits = {asyncio.ensure_future(child.ended()): child for child in self._children}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[done.pop()]
        finally:
            for wait in waits:
                wait.cancel()

    async def _is_redis_up(self) -> bool:
        async with Redis(unix_socket_path=str(self._redis_socket)) as redis:
            try:
                return bool(await redis.ping())
            except (RedisError, OSError):
                return False

    async def _is_server_known(self) -> bool:
        """Whether the node has published its server and snapshots, so that requests for it are admitted."""
        async with Redis(unix_socket_path=str(self._redis_socket)) as redis:
            fields = await redis.hgetall(f"server:{SERVER_ID}")  # type: ignore[misc] # redis-py types it as both kinds
            return bool(fields) and b"unpublished" not in fields

    async def _authorized_client(
        self,
        file_name: str,
        whose: str,
        options: Sequence[str],
        settings: dict[str, str],
        has_access: Callable[[Client], Awaitable[bool]],
    ) -> Client:
        """A client with the token of the last run, or with a new token if there is none or it is no longer valid."""
        file = self._state.folder / file_name
        if file.exists():
            client = Client(self.url, file.read_text().strip())
            if await has_access(client):
                return client
        file.touch(mode=0o600)
        arguments = ("token", "create", "--name", f"make run: {whose}", *options)
        file.write_text(await _printed("vps-snapshots-api", *arguments, settings=settings))
        return Client(self.url, file.read_text().strip())


async def _printed(program: str, *arguments: str, settings: dict[str, str]) -> str:
    """The output of a program: a new secret."""
    process = await asyncio.create_subprocess_exec(
        _PROGRAMS / program,
        *arguments,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise ServiceFailed(f"{program} {arguments[0]}: {errors.decode().strip()}")
    return output.decode()
