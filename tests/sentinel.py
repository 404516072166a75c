"""Redis with replicas and Sentinels, from the files in deploy/redis, with TLS and accounts."""

import asyncio
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import SSLConnection
from redis.exceptions import RedisError

from deploy.demo.service import free_port
from worker.store.connection import Tls, over_tls
from worker.store.redis_client import RedisSettings

FILES = Path(__file__).parents[1] / "deploy" / "redis"
READY_SECONDS = 60
NAME = "vps-snapshots"


def with_lines(name: str, lines: Mapping[str, str]) -> str:
    """A production file with the machine's own values in place of the examples."""
    text = (FILES / name).read_text()
    for begins, line in lines.items():
        text, found = re.subn(rf"(?m)^{begins} .*$", line, text)
        if not found:
            text, found = re.subn(rf"(?m)^#   {begins} .*$", line, text)
        assert found == 1, begins
    return text


def certificate(folder: Path, name: str, of: str) -> None:
    """Write NAME.pem and NAME.key to the folder; the certificate is its own authority."""
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={of}"]
    out = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
    subprocess.run(["openssl", *made, *names, *out], check=True, capture_output=True, timeout=READY_SECONDS)


def password_of(account: str) -> str:
    """The password in the file before an operator sets one."""
    return f"{account.upper()}-PASSWORD"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The place of a Redis and a Sentinel. `inside`: a command that starts a program there."""

    port: int
    sentinel: int
    host: str = "127.0.0.1"
    inside: Sequence[str] = ()

    @classmethod
    def here(cls) -> "Machine":
        return cls(port=free_port(), sentinel=free_port())


class Cell:
    """The first machine is the primary at the start. `down_ms`: time after which a Sentinel considers a silent Redis
    down. `more`: further settings of redis.conf, by the beginning of their line."""

    def __init__(
        self, folder: Path, machines: Sequence[Machine], *, down_ms: int = 1000, more: Iterable[str] = ()
    ) -> None:
        self.machines = machines
        self.processes: list[subprocess.Popen[bytes]] = []  # each machine's Redis
        self._others: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._tls = Tls(ca_file=self.authority, cert_file=None, key_file=None, names_host=False)
        self._down_ms = down_ms
        self._more = {line.split()[0]: line for line in more}

    def start(self) -> None:
        hosts = sorted({f"IP:{machine.host}" for machine in self.machines})
        certificate(self._folder, "redis", ",".join(hosts))
        tls = {"tls-cert-file": f"tls-cert-file {self._folder}/redis.pem"}
        tls |= {"tls-key-file": f"tls-key-file {self._folder}/redis.key"}
        tls |= {"tls-ca-cert-file": f"tls-ca-cert-file {self.authority}"}
        for place in range(len(self.machines)):
            self._configure(place, tls)
            self.processes.append(self.started(place))
        for place in range(len(self.machines)):
            self._others.append(self._started_sentinel(place, tls))

    def stop(self) -> None:
        for process in (*self._others, *self.processes):
            process.kill()
            process.wait()

    def _configure(self, place: int, tls: Mapping[str, str]) -> None:
        machine, first = self.machines[place], self.machines[0]
        folder = self._folder_of(place)
        folder.mkdir()
        lines = {"dir": f"dir {folder}", "unixsocket": "unixsocket redis.sock"}  # below `dir`
        lines |= {"port": "port 0", "bind": f"bind {machine.host}"} | dict(tls)
        lines |= {"tls-port": f"tls-port {machine.port}", "tls-replication": "tls-replication yes"}
        lines |= {"tls-auth-clients": "tls-auth-clients no"}
        lines |= {"aclfile": f"aclfile {FILES / 'users.acl'}", "masteruser": "masteruser replica"}
        lines |= {"masterauth": "masterauth REPLICA-PASSWORD"} | self._more
        if place:
            lines |= {"replicaof": f"replicaof {first.host} {first.port}"}
        (folder / "redis.conf").write_text(with_lines("redis.conf", lines))

    def started(self, place: int) -> subprocess.Popen[bytes]:
        """Start that machine's Redis with its current file."""
        file = self._folder_of(place) / "redis.conf"
        return self._run(place, "redis-server", str(file))

    def start_again(self, place: int) -> None:
        self.processes[place].wait()
        self.processes[place] = self.started(place)

    def _started_sentinel(self, place: int, tls: Mapping[str, str]) -> subprocess.Popen[bytes]:
        machine, first = self.machines[place], self.machines[0]
        lines = {"sentinel monitor": f"sentinel monitor {NAME} {first.host} {first.port} 2"} | dict(tls)
        lines |= {"sentinel down-after-milliseconds": f"sentinel down-after-milliseconds {NAME} {self._down_ms}"}
        lines |= {"tls-port": f"tls-port {machine.sentinel}", "dir": f"dir {self._folder}"}
        lines |= {"bind": f"bind {machine.host}"}
        file = self._folder / f"sentinel-{place}.conf"
        file.write_text(with_lines("sentinel.conf", lines))
        return self._run(place, "redis-server", str(file), "--sentinel")

    def _run(self, place: int, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.machines[place].inside, *command], stdout=subprocess.DEVNULL)

    def _folder_of(self, place: int) -> Path:
        return self._folder / f"redis-{place}"

    def operator(self, place: int) -> Redis:
        """A client with the operator's account of a machine's Redis."""
        machine = self.machines[place]
        return self.client(machine.port, "operator", password_of("operator"), host=machine.host)

    def operator_of_sentinel(self, place: int = 0) -> Redis:
        machine = self.machines[place]
        return self.client(machine.sentinel, "operator", password_of("operator"), host=machine.host)

    def client(
        self, port: int, username: str | None = None, password: str | None = None, *, host: str = "127.0.0.1"
    ) -> Redis:
        pool = ConnectionPool(
            connection_class=over_tls(SSLConnection, self._tls),
            host=host,
            port=port,
            username=username,
            password=password,
            decode_responses=True,
            socket_timeout=2,
            socket_connect_timeout=2,
        )
        return Redis.from_pool(pool)

    @property
    def authority(self) -> Path:
        return self._folder / "redis.pem"

    @property
    def settings(self) -> RedisSettings:
        return self.settings_of("api")

    def settings_of(self, account: str, *, wait_for_replicas: int = 0) -> RedisSettings:
        """The settings of docs/operations/scale.md for Sentinel."""
        return RedisSettings(
            connect_seconds=1,
            command_seconds=2,
            url="rediss://127.0.0.1",
            sentinels=[f"{machine.host}:{machine.sentinel}" for machine in self.machines],
            username=account,
            password=SecretStr(password_of(account)),
            sentinel_username="client",
            sentinel_password=SecretStr(password_of("client")),
            tls_ca_file=self.authority,
            wait_for_replicas=wait_for_replicas,
        )

    async def ready(self) -> int:
        """Wait until all replicas follow one primary and all Sentinels know them. Returns the primary's position."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                with suppress(RedisError, OSError):
                    if (primary := await self._whole()) is not None:
                        return primary
                await asyncio.sleep(0.1)

    async def primary(self, *, without: int | None = None) -> int | None:
        """The position of a primary other than `without`."""
        for place in range(len(self.machines)):
            if place != without:
                with suppress(RedisError, OSError):
                    async with self.operator(place) as redis:
                        if (await redis.info("replication"))["role"] == "master":
                            return place
        return None

    async def _whole(self) -> int | None:
        others = len(self.machines) - 1
        primaries = []
        for place in range(len(self.machines)):
            async with self.operator(place) as redis:
                told = await redis.info("replication")
            if told["role"] == "master":
                primaries.append(place)
                if told["connected_slaves"] != others:
                    return None
                # a replica is good once it has acknowledged; before that, writes may be refused
                if told.get("min_slaves_good_slaves", others) != others:
                    return None
            elif told["master_link_status"] != "up":
                return None
        for place in range(len(self.machines)):
            async with self.operator_of_sentinel(place) as sentinel:
                (found,) = (await sentinel.sentinel_masters()).values()  # type: ignore[no-untyped-call] # redis-py's gap
            if not found["num-other-sentinels"] == found["num-slaves"] == others or found["is_sdown"]:
                return None
            if (found["ip"], found["port"]) != (self.machines[primaries[0]].host, self.machines[primaries[0]].port):
                return None
        return primaries[0] if len(primaries) == 1 else None
