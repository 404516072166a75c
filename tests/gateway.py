"""A gateway in the test's own process, and credentials for nodes."""

import asyncio
import json
import subprocess
import sys
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from api.gateway.main import running
from api.gateway.metrics import Metrics
from api.gateway.settings import GatewaySettings
from deploy.demo.processes import Child
from worker.gateway_address import GatewayAddress
from worker.gateway_client import GatewayClient
from worker.program.background import in_background
from worker.store.access.credentials import PREFIX, Credentials
from worker.store.errors import StoreUnavailable
from worker.store.observer import Observer
from worker.store.redis_client import RedisSettings, connect

RESTORE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The address of a gateway, with the credential of one node."""

    node: str
    address: GatewayAddress
    metrics: Metrics

    @property
    def secret(self) -> str:
        return secret_of(self.node)

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a worker, without their prefix."""
        return {
            "GATEWAY__URLS": json.dumps(self.address.urls),
            "GATEWAY__CREDENTIAL_FILE": str(self.address.credential_file),
        }

    @asynccontextmanager
    async def client(
        self, *, machine: str = "m1", who: str = "pid 1 on m1", observer: Observer | None = None
    ) -> AsyncIterator[GatewayClient]:
        client = GatewayClient(self.address, node=self.node, machine=machine, who=who, observer=observer)
        async with in_background(client.keep_connected()):
            yield client


@asynccontextmanager
async def gateway(redis: Path, *, node: str = "n1", **settings: Any) -> AsyncIterator[Reached]:
    """A gateway for the Redis at that socket, which need not be up yet. The node has a credential, which is restored
    after a loss of Redis's data, as an operator would do."""
    at_redis = RedisSettings(url=f"unix://{redis}")
    with tempfile.TemporaryDirectory(prefix="vps-gateway-") as folder:
        socket, file = Path(folder) / "gateway.sock", Path(folder) / "credential"
        file.touch(mode=0o600)
        file.write_text(secret_of(node))
        metrics = Metrics()
        made = GatewaySettings(unix_socket=socket, redis=at_redis, **settings)
        address = GatewayAddress(urls=(f"unix://{socket}",), credential_file=file)
        client = connect(at_redis)
        reached = Reached(node=node, address=address, metrics=metrics)
        try:
            await _restored(Credentials(client), reached)
            async with in_background(_keep_credential(Credentials(client), reached)), running(made, metrics):
                yield reached
        finally:
            await client.aclose(close_connection_pool=True)


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate for localhost, which is its own authority."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*made, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)


def secret_of(node: str) -> str:
    """The secret of a node, the same for each gateway of a test."""
    return PREFIX + urlsafe_b64encode(sha256(node.encode()).digest()).decode().rstrip("=")


async def _keep_credential(credentials: Credentials, reached: Reached) -> None:
    while True:
        await asyncio.sleep(RESTORE_SECONDS)
        await _restored(credentials, reached)


async def _restored(credentials: Credentials, reached: Reached) -> None:
    with suppress(StoreUnavailable):
        if not await credentials.all(reached.node):  # a test may have rotated it
            await credentials.restore(reached.node, secret_of(reached.node))


class GatewayProgram:
    """A gateway in a separate process for the Redis at that socket, for nodes that are processes too."""

    def __init__(self, redis: Path) -> None:
        self._redis = RedisSettings(url=f"unix://{redis}")
        self._folder = tempfile.TemporaryDirectory(prefix="vps-gateway-")  # a short path for the socket
        self.process: Child | None = None

    @property
    def socket(self) -> Path:
        return Path(self._folder.name) / "gateway.sock"

    async def start(self, log: Path) -> None:
        settings = {
            "VPS_SNAPSHOTS_REDIS__URL": self._redis.url,
            "VPS_SNAPSHOTS_UNIX_SOCKET": str(self.socket),
        }
        command = (Path(sys.executable).parent / "vps-snapshots-gateway", "serve")
        self.process = await Child.start("gateway", command, settings=settings, log=log)

    async def let_in(self, node: str) -> None:
        """Make the node's credential valid, also after Redis has lost its data."""
        client = connect(self._redis)
        try:
            await Credentials(client).restore(node, secret_of(node))
        finally:
            await client.aclose(close_connection_pool=True)

    def settings_of(self, node: str) -> dict[str, str]:
        """The settings of a node's worker."""
        file = Path(self._folder.name) / node
        file.touch(mode=0o600)
        file.write_text(secret_of(node))
        return {
            "VPS_SNAPSHOTS_GATEWAY__URLS": json.dumps([f"unix://{self.socket}"]),
            "VPS_SNAPSHOTS_GATEWAY__CREDENTIAL_FILE": str(file),
        }

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.stop()
        self._folder.cleanup()
