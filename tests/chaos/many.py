"""A cell of many real nodes: five hypervisors of `tests.chaos.hosts`, two gateways, two front ends behind HAProxy,
and three machines with Redis and Sentinel."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.demo.processes import Child
from deploy.demo.service import free_port
from tests.chaos.hosts import Guest, Host
from tests.chaos.redundant import DOWN_MS, MACHINES, Redundant
from tests.chaos.told import Teller
from tests.gateway import secret_of
from tests.namespaces import network
from tests.sentinel import Cell, Machine, certificate

NODES, GATEWAYS, FIRST_SERVER = 5, 2, 12345
SILENT_SECONDS = 12.0  # a little more than two heartbeats, because a campaign has only an hour
WAITING_SECONDS = 60.0  # the minimum


@dataclass(kw_only=True)
class Many(Redundant):
    """`guests_each`: per host at the start. `homes`: the host on which each guest was last placed."""

    guests_each: int
    hosts: list[Host] = field(default_factory=list)
    guests: dict[int, Guest] = field(default_factory=dict)
    homes: dict[int, Host] = field(default_factory=dict)
    gateways: list[Child] = field(default_factory=list)
    gateway_ports: list[int] = field(default_factory=lambda: [free_port() for _ in range(GATEWAYS)])

    async def stop(self) -> None:
        for host in self.hosts:
            await host.worker_dies()
            host.close()
        for gateway in self.gateways:
            gateway.kill()
            await gateway.ended()
        await super().stop()

    def tellers(self) -> list[Teller]:
        """An operator for each front end."""
        urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        return [Teller(url=url, operator=self.operator_token, customer=self.token) for url in urls]

    def on(self, host: Host) -> list[Guest]:
        return [self.guests[server] for server, home in self.homes.items() if home is host]

    async def gateway(self, place: int) -> Child:
        """A new gateway process."""
        settings = self._settings("gateway") | {
            "VPS_SNAPSHOTS_HOST": self.network.here,
            "VPS_SNAPSHOTS_PORT": str(self.gateway_ports[place]),
            "VPS_SNAPSHOTS_TLS_CERT_FILE": str(self.folder / "gateway.pem"),
            "VPS_SNAPSHOTS_TLS_KEY_FILE": str(self.folder / "gateway.key"),
        }
        return await self._program(f"gateway-{place}", "vps-snapshots-gateway", "serve", settings=settings)

    async def _start_nodes(self) -> None:
        certificate(self.folder, "gateway", f"IP:{self.network.here}")
        self.gateways = [await self.gateway(place) for place in range(GATEWAYS)]
        (self.folder / "d").mkdir()
        self.hosts = [self._host(number) for number in range(NODES)]
        first, *others = self.hosts
        await first.boot()
        for host in others:  # libvirt needs a second to probe QEMU's capabilities
            shutil.copytree(first.daemon.folder / "cache", host.daemon.folder / "cache")
        await asyncio.gather(*(host.boot() for host in others))
        for number in range(self.guests_each * NODES):
            host, guest = self.hosts[number % NODES], Guest(id=FIRST_SERVER + number, folder=self.folder / "d")
            await host.add(guest)
            self.guests[guest.id], self.homes[guest.id] = guest, host
        for host in self.hosts:
            await host.start_worker()

    def _host(self, number: int) -> Host:
        name, folder = self.nodes[number], self.folder / self.nodes[number]
        folder.mkdir()
        credential = folder / "credential"
        credential.touch(mode=0o600)
        credential.write_text(secret_of(name))
        gateway = {
            "VPS_SNAPSHOTS_GATEWAY__URLS": json.dumps([f"wss://{self.network.here}:{p}" for p in self.gateway_ports]),
            "VPS_SNAPSHOTS_GATEWAY__TLS_CA_FILE": str(self.folder / "gateway.pem"),
            "VPS_SNAPSHOTS_GATEWAY__CREDENTIAL_FILE": str(credential),
        }
        return Host(name=name, place=MACHINES + number, network=self.network, folder=folder, gateway=gateway)

    async def _is_published(self) -> bool:
        """Whether a job for any of the servers would be admitted."""
        answer = await self.operator.call("GET", "/api/v1/ops/servers/?limit=100")
        found = answer.body["results"] if answer.status == 200 else []
        return len(found) == len(self.guests) and all(server["reachable"] for server in found)


@asynccontextmanager
async def many(folder: Path, *, guests_each: int) -> AsyncIterator[Many]:
    """`folder`: a short path, because sockets are below it."""
    with network(MACHINES + NODES) as made:
        machines = [
            Machine(host=made.hosts[place], port=6379, sentinel=26379, inside=made.inside(place))
            for place in range(MACHINES)
        ]
        more = ["min-replicas-to-write 1", "min-replicas-max-lag 10"]
        cell = Many(
            folder=folder,
            redis=Cell(folder, machines, down_ms=DOWN_MS, more=more),
            network=made,
            wait_for_replicas=1,
            nodes=[f"n{number + 1}" for number in range(NODES)],
            of_cell={"NODE_SILENT_SECONDS": str(SILENT_SECONDS), "WAITING_SECONDS": str(WAITING_SECONDS)},
            guests_each=guests_each,
        )
        try:
            await cell.start()
            yield cell
        finally:
            await cell.stop()
