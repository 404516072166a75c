"""The shipped files together: Redis keeps what it has confirmed, and admits each program only to its own data."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Self

import pytest
from redis import Redis, exceptions
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from deploy.demo.client import Answer, Client
from deploy.demo.processes import Child
from deploy.demo.service import free_port, redis_configuration
from tests.conftest import needs
from tests.redis_program import NOT_ALLOWED_IN_SCRIPT

DEPLOY = Path(__file__).parents[2] / "deploy"
ACCOUNTS = DEPLOY / "redis" / "users.acl"
EXAMPLES = DEPLOY / "examples"
EVERY_PROGRAM = (("api", "serve"), ("gateway", "serve"), ("worker", "run"))
PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class DeployedRedis:
    socket: Path

    def as_user(self, name: str) -> Redis:
        """A client with the password that is in the file before an operator sets one."""
        return Redis(unix_socket_path=str(self.socket), username=name, password=f"{name.upper()}-PASSWORD")


@pytest.fixture
def folder() -> Iterator[Path]:
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:  # a short path for the socket
        yield Path(folder)


@pytest.fixture(scope="module")
def deployed() -> Iterator[DeployedRedis]:
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder, running(Path(folder)) as redis:
        yield redis


@contextmanager
def running(folder: Path) -> Iterator[DeployedRedis]:
    """With the data that it has stored there."""
    redis = DeployedRedis(socket=folder / "redis.sock")
    configuration = folder / "redis.conf"
    configuration.write_text(redis_configuration(folder))
    here = ["--port", "0", "--bind", "", "--unixsocket", str(redis.socket)]
    command = ["redis-server", str(configuration), *here, "--aclfile", str(ACCOUNTS)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for(redis)
        yield redis
    finally:
        process.kill()  # confirmed data is on the disk
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


def test_it_loses_nothing_confirmed_and_evicts_nothing(deployed: DeployedRedis) -> None:
    wanted = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
    wanted |= {"maxmemory-policy": "noeviction", "maxmemory": str(1 << 30)}
    with deployed.as_user("operator") as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_it_has_all_of_it_after_a_restart(folder: Path) -> None:
    """Redis loads its append-only file as the account `default`, which must allow all commands, although nobody can
    log in with it. Otherwise writes of scripts and transactions are lost."""
    with running(folder) as redis, redis.as_user("api") as client:
        client.eval("for n = 1, 3 do redis.call('HSET', 'token:' .. n, 'id', n) end", 0)
        with client.pipeline(transaction=True) as pipe:
            pipe.set("k", "v").zadd("z", {"member": 1.0}).xadd("s", {"f": "v"}).execute()
        with redis.as_user("audit") as keeper:
            keeper.eval("redis.call('XADD', 'audit', '*', 'f', 'v') redis.call('HSET', 'audit:head', 'seq', 1)", 0)
        kept = client.dbsize()
    with running(folder) as redis, redis.as_user("api") as client:
        assert kept == client.dbsize() == 8


def test_nobody_gets_in_without_an_account(deployed: DeployedRedis) -> None:
    with Redis(unix_socket_path=str(deployed.socket)) as client, pytest.raises(AuthenticationError):
        client.ping()


def test_a_missing_permission_is_named_with_the_setting(deployed: DeployedRedis) -> None:
    settings = {"URL": f"unix://{deployed.socket}", "USERNAME": "api", "PASSWORD": "API-PASSWORD"}
    done = subprocess.run(
        [PROGRAMS / "vps-snapshots-api", *["token", "create", "--name", "a", "--service", "--permission", "operator"]],
        env={f"VPS_SNAPSHOTS_REDIS__{key}": text for key, text in settings.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("vps_")
    assert "may not be in the audit log" in done.stderr
    assert "set `audit_keeper = false`" in done.stderr


@pytest.mark.parametrize("command", ["HGETALL token:x", "HSET token:x id x", "HGETALL tokens", "KEYS *"])
def test_a_gateway_can_neither_read_nor_make_a_token(deployed: DeployedRedis, command: str) -> None:
    words = command.split()
    with deployed.as_user("gateway") as client:
        with pytest.raises(NoPermissionError):
            client.execute_command(*words)
        with pytest.raises(ResponseError, match=NOT_ALLOWED_IN_SCRIPT):
            client.eval(f"return redis.call({','.join(map(repr, words))})", 0)


@pytest.mark.parametrize("user", ["api", "gateway"])
@pytest.mark.parametrize(
    "command",
    [
        *("DEL audit", "RENAME audit x", "SET audit x", "XDEL audit 0-1", "XADD audit * f x", "XTRIM audit MAXLEN 0"),
        *("XADD audit MAXLEN 0 * f x", "DEL audit:new", "LTRIM audit:new 1 0", "LPOP audit:new", "LSET audit:new 0 x"),
        *("RENAME x audit", "COPY x audit REPLACE", "HSET audit:head seq 0", "DEL audit:head"),
    ],
)
def test_neither_side_can_remove_audit_entries(deployed: DeployedRedis, user: str, command: str) -> None:
    with deployed.as_user(user) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())


@pytest.mark.parametrize("user", ["api", "gateway"])
@pytest.mark.parametrize("command", ["FLUSHALL", "CONFIG GET dir", "SHUTDOWN", "ACL LIST", "MONITOR"])
def test_neither_side_can_administer_redis(deployed: DeployedRedis, user: str, command: str) -> None:
    with deployed.as_user(user) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())


@dataclass(frozen=True, kw_only=True)
class Machines:
    """A front end, a gateway and a node with the example settings on one machine."""

    socket: Path  # of Redis
    folder: Path
    port: int = field(default_factory=free_port)

    @classmethod
    def of(cls, redis: DeployedRedis, folder: Path) -> Self:
        machines = cls(socket=redis.socket, folder=folder)
        shutil.copytree(EXAMPLES, machines.etc)
        for file in machines.etc.iterdir():
            file.chmod(0o600)  # as install.sh does, because they contain passwords
        machines.credential.touch(mode=0o600)
        return machines

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    @property
    def credential(self) -> Path:
        return self.folder / "credential"

    @property
    def settings(self) -> dict[str, str]:
        """The example settings with this machine's paths."""
        gateway = f"{self.socket.with_name('gateway.sock')}"
        return {
            "VPS_SNAPSHOTS_REDIS__URL": f"unix://{self.socket}",
            "VPS_SNAPSHOTS_DRIVER": "fake",
            "VPS_SNAPSHOTS_STATE_DIR": str(self.folder),
            "VPS_SNAPSHOTS_GATEWAY__URLS": json.dumps([f"unix://{gateway}"]),
            "VPS_SNAPSHOTS_GATEWAY__CREDENTIAL_FILE": str(self.credential),
        }

    async def say(self, program: str, settings: str, *arguments: str) -> str:
        """The output of a program."""
        command = [f"{PROGRAMS}/vps-snapshots-{program}", "--config", f"{self.etc}/{settings}.toml", *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, env=self.settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output, trouble = await process.communicate()
        assert process.returncode == 0, trouble.decode()
        return output.decode().strip()

    async def new_token(self) -> str:
        permissions = ("--permission", "snapshots:read", "--permission", "snapshots:write")
        return await self.say("api", "api", "token", "create", "--name", "test", "--account", "77", *permissions)

    async def start(self, program: str, command: str) -> Child:
        arguments = [command, "--config", f"{self.etc}/{program}.toml"]
        own = {
            "api": {"VPS_SNAPSHOTS_PORT": str(self.port)},
            "gateway": {"VPS_SNAPSHOTS_UNIX_SOCKET": str(self.socket.with_name("gateway.sock"))},
        }
        return await Child.start(
            program,
            [f"{PROGRAMS}/vps-snapshots-{program}", *arguments],
            settings=self.settings | own.get(program, {}),
            log=self.log(program),
        )

    def log(self, program: str) -> Path:
        return self.folder / f"{program}.log"


async def test_a_cell_with_the_example_settings_serves(deployed: DeployedRedis, tmp_path: Path) -> None:
    """The Redis accounts permit everything that the programs do, from creating a token to deleting a snapshot."""
    machines = Machines.of(deployed, tmp_path)
    machines.credential.write_text(await machines.say("gateway", "gateway", "credential", "create", "node-1"))
    client = Client(f"http://127.0.0.1:{machines.port}", await machines.new_token())
    children = [await machines.start(*command) for command in EVERY_PROGRAM]
    try:
        await _becomes(client.is_up)
        created = await _create(client)
        snapshot = created.headers["Location"]
        restored = await client.call("POST", f"{snapshot}restore/")
        await _completed(client, restored)
        assert (await client.call("DELETE", snapshot)).status == HTTPStatus.NO_CONTENT
        assert (await client.call("GET", "/api/v1/snapshots/")).body == {"count": 0, "results": []}
    finally:
        statuses = [await child.stop() for child in reversed(children)]
    assert statuses == [0, 0, 0]
    assert not [one for one, _ in EVERY_PROGRAM if "NOPERM" in machines.log(one).read_text()]


async def test_everything_is_restored_after_a_loss_of_the_front_sides_disks(folder: Path, tmp_path: Path) -> None:
    """With the exact commands of the instructions. The nodes keep running."""
    text = (DEPLOY.parent / "docs" / "operations" / "recover.md").read_text()
    text = text.split("## All data of Redis is lost")[1].split("## ")[0]
    restores = re.findall(r"^vps-snapshots-api --config /etc/vps-snapshots/(\w+)\.toml (.*)$", text, re.MULTILINE)
    assert [settings for settings, _ in restores] == ["audit", "api"]
    with running(folder) as redis:
        machines = Machines.of(redis, tmp_path)
        machines.credential.write_text(await machines.say("gateway", "gateway", "credential", "create", "node-1"))
        client = Client(f"http://127.0.0.1:{machines.port}", await machines.new_token())
        api, gateway, worker = [await machines.start(*command) for command in EVERY_PROGRAM]
        await _becomes(client.is_up)
        snapshot = (await _create(client)).headers["Location"]
        change = {"protected": True, "labels": {"team": "web"}, "description": "as edited"}
        before = (await client.call("PATCH", snapshot, change)).body
        schedule = {"server_id": 12345, "name": "nightly", "when": "daily", "keep": 3}
        schedules = (await client.call("POST", "/api/v1/schedules/", schedule)).body
        backup = await machines.say("api", "api", "backup", str(tmp_path))
        for burning in (api, gateway):
            burning.kill()
            await burning.ended()
    for burned in folder.iterdir():
        shutil.rmtree(burned) if burned.is_dir() else burned.unlink()

    with running(folder):
        for settings, command in restores:
            await machines.say("api", settings, *command.replace("$FILE", backup).split())
        children = [await machines.start(*command) for command in EVERY_PROGRAM[:2]]
        try:
            await _becomes(client.is_up)

            async def is_back() -> bool:
                return (await client.call("GET", snapshot)).status == HTTPStatus.OK

            await _becomes(is_back)
            assert (await client.call("GET", snapshot)).body == before
            assert (await client.call("GET", "/api/v1/schedules/")).body["results"] == [schedules]
            assert (await client.call("DELETE", snapshot)).body["code"] == "snapshot_protected"
            await _completed(client, await client.call("POST", f"{snapshot}restore/"))
        finally:
            statuses = [await child.stop() for child in (worker, *children)]
    assert statuses == [0, 0, 0]


async def _create(client: Client) -> Answer:
    """Create a completed snapshot; at the first attempt, the node may not have reported its server yet."""
    answers: list[Answer] = []

    async def ask() -> bool:
        answers.append(await client.call("POST", "/api/v1/snapshots/", {"server_id": 12345, "name": "before-update"}))
        return answers[-1].status == HTTPStatus.CREATED

    await _becomes(ask)
    await _completed(client, answers[-1])
    return answers[-1]


async def _completed(client: Client, admitted: Answer) -> None:
    job = await client.follow(admitted.headers["Operation-Location"], timeout_seconds=30)
    assert job["state"] == "completed", job["error"]


async def _becomes(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await is_so():  # noqa: ASYNC110 - another process tells nobody that it is up
            await asyncio.sleep(0.05)


def program(redis: DeployedRedis, account: str, *arguments: str | Path) -> str:
    settings = {"URL": f"unix://{redis.socket}", "USERNAME": account, "PASSWORD": f"{account.upper()}-PASSWORD"}
    done = subprocess.run(
        [PROGRAMS / "vps-snapshots-api", *arguments],
        env={f"VPS_SNAPSHOTS_REDIS__{key}": text for key, text in settings.items()}
        | {"VPS_SNAPSHOTS_AUDIT_KEEPER": "false"},  # as in the example
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_backup_and_restore_need_the_accounts_in_the_instructions(folder: Path) -> None:
    with running(folder) as redis, redis.as_user("operator") as operator:
        operator.hset(f"token:{'a' * 64}", mapping={"v": "1", "id": "0123456789ab", "account": "", "name": "tier"})
        operator.hset("tokens", "0123456789ab", f"token:{'a' * 64}")
        operator.xadd("audit", {"path": "/", "seq": "1", "chain": "c"})
        operator.hset("audit:head", mapping={"seq": "1", "chain": "c", "first": "1"})
        made = program(redis, "api", "backup", folder).strip()
        before = operator.xrange("audit")
        operator.flushall()

        program(redis, "audit", "restore", "--audit", made)
        program(redis, "api", "restore", made)

        assert operator.xrange("audit") == before
        assert operator.hget(f"token:{'a' * 64}", "name") == b"tier"
