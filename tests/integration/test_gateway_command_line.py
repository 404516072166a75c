"""`vps-snapshots-gateway credential`, as an operator types it."""

import re
import subprocess
import sys
from pathlib import Path

from redis.asyncio import Redis

from tests.conftest import RedisServer
from worker.store.access.audit import AuditKeeper
from worker.store.access.credentials import Credentials

PROGRAM = Path(sys.executable).parent / "vps-snapshots-gateway"


def run(server: RedisServer, *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROGRAM, *arguments],
        input=typed,
        env={"VPS_SNAPSHOTS_REDIS__URL": f"unix://{server.socket}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


async def test_a_credential_is_made_rotated_listed_and_revoked(redis: Redis, redis_server: RedisServer) -> None:
    created = run(redis_server, "credential", "create", "n1", "--expires-in", "90d")
    assert created.returncode == 0, created.stderr
    assert re.fullmatch(r"vpsnode_[A-Za-z0-9_-]{43}\n", created.stdout)
    first = await Credentials(redis).find(created.stdout.strip())
    assert first is not None
    again = run(redis_server, "credential", "create", "n1")
    assert (again.returncode, again.stdout) == (1, "")
    assert "Rotate it instead" in again.stderr
    rotated = run(redis_server, "credential", "rotate", "n1", "--overlap", "1h")
    assert await Credentials(redis).find(rotated.stdout.strip())
    listed = run(redis_server, "credential", "list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["NODE", "n1", "n1"]
    assert created.stdout.strip() not in "".join(listed)
    assert any(line.endswith("never") for line in listed)
    assert run(redis_server, "credential", "revoke", "n1").returncode == 0
    assert run(redis_server, "credential", "list", "n1").stdout.splitlines()[1:] == []
    assert await Credentials(redis).find(rotated.stdout.strip()) is None
    assert run(redis_server, "credential", "revoke", "n1").returncode == 1
    await AuditKeeper(redis, kept=None).keep()
    audited = [entry[b"path"].decode() for _, entry in await redis.xrange("audit")]
    assert audited == ["credential create n1", "credential rotate n1", "credential revoke n1"]


async def test_a_lost_credential_is_restored_from_standard_input(redis: Redis, redis_server: RedisServer) -> None:
    secret = run(redis_server, "credential", "create", "n1").stdout
    await redis.flushdb()
    assert run(redis_server, "credential", "restore", "n1", typed=secret).returncode == 0
    found = await Credentials(redis).find(secret.strip())
    assert found is not None
    assert found.node == "n1"
    assert run(redis_server, "credential", "restore", "n2", typed="vps_token").returncode == 1


def test_an_invalid_name_and_a_gateway_without_tls_are_refused(redis_server: RedisServer) -> None:
    assert "a node's name" in run(redis_server, "credential", "create", "n 1").stderr
    served = subprocess.run(
        [PROGRAM, "serve"],
        env={"VPS_SNAPSHOTS_HOST": "10.20.0.6"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert served.returncode == 2
    assert "needs tls_cert_file and tls_key_file" in served.stderr
