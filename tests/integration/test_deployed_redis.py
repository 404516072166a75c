"""The Redis that is handed to an operator: durable, and each side let in to what is its own."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis, exceptions
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from deploy.demo.service import redis_configuration
from tests.conftest import needs

ACCOUNTS = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"


@dataclass(frozen=True, kw_only=True)
class DeployedRedis:
    socket: Path

    def as_user(self, name: str) -> Redis:
        """A client with the password that the file has before an operator sets one."""
        return Redis(unix_socket_path=str(self.socket), username=name, password=f"{name.upper()}-PASSWORD")


@pytest.fixture(scope="module")
def deployed() -> Iterator[DeployedRedis]:
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        redis = DeployedRedis(socket=Path(folder) / "redis.sock")
        configuration = Path(folder) / "redis.conf"
        configuration.write_text(redis_configuration(Path(folder)))
        here = ["--port", "0", "--bind", "", "--unixsocket", str(redis.socket)]
        command = ["redis-server", str(configuration), *here, "--aclfile", str(ACCOUNTS)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_for(redis)
            yield redis
        finally:
            process.terminate()
            process.wait()


def _wait_for(redis: DeployedRedis) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with redis.as_user("operator") as client:
            try:
                client.ping()
            except exceptions.ConnectionError:
                time.sleep(0.02)
            else:
                return
    raise RuntimeError("redis-server did not answer within 10 s")


def test_it_loses_nothing_it_answered_and_throws_nothing_away(deployed: DeployedRedis) -> None:
    wanted = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
    wanted |= {"maxmemory-policy": "noeviction", "maxmemory": str(1 << 30)}
    with deployed.as_user("operator") as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_nobody_gets_in_without_an_account(deployed: DeployedRedis) -> None:
    with Redis(unix_socket_path=str(deployed.socket)) as client, pytest.raises(AuthenticationError):
        client.ping()


@pytest.mark.parametrize("command", ["HGETALL token:x", "HSET token:x id x", "HGETALL tokens", "KEYS *"])
def test_a_node_can_neither_read_nor_make_a_token(deployed: DeployedRedis, command: str) -> None:
    words = command.split()
    with deployed.as_user("worker") as client:
        with pytest.raises(NoPermissionError):
            client.execute_command(*words)
        with pytest.raises(ResponseError, match="The user executing the script can't"):
            client.eval(f"return redis.call({','.join(map(repr, words))})", 0)


@pytest.mark.parametrize("user", ["api", "worker"])
@pytest.mark.parametrize("command", ["FLUSHALL", "CONFIG GET dir", "SHUTDOWN", "ACL LIST", "MONITOR"])
def test_neither_side_can_run_the_server(deployed: DeployedRedis, user: str, command: str) -> None:
    with deployed.as_user(user) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())
