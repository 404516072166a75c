"""The shipped Redis accounts: no account is for a node, and no program's account can stop or reconfigure Redis."""

import re
from pathlib import Path

import pytest
from redis.asyncio import Redis

ROOT = Path(__file__).parents[2]
USERS = {
    line.split()[1]: re.findall(r"\([^)]*\)|\S+", line)[2:]
    for line in (ROOT / "deploy/redis/users.acl").read_text().splitlines()
    if line.startswith("user ")
}
PROGRAMS = ("api", "gateway", "audit")
HARMFUL = (
    *("FLUSHALL", "FLUSHDB", "SHUTDOWN", "DEBUG SLEEP 1", "CONFIG GET *", "CONFIG SET maxmemory 1", "ACL LIST"),
    *(
        "ACL SETUSER x on",
        "KEYS *",
        "MONITOR",
        "REPLICAOF h 1",
        "FAILOVER",
        "MODULE LIST",
        "SLOWLOG GET",
        "LATENCY DOCTOR",
    ),
    *(
        "SAVE",
        "BGSAVE",
        "BGREWRITEAOF",
        "SYNC",
        "PSYNC ? -1",
        "MIGRATE h 1 k 0 1",
        "SCRIPT FLUSH",
        "FUNCTION FLUSH SYNC",
    ),
    *(
        "CLIENT KILL ID 1",
        "CLIENT PAUSE 1",
        "CLIENT LIST",
        "CLIENT UNBLOCK 1",
        "SWAPDB 0 1",
        "SORT k",
        "RESTORE k 0 x",
        "CLUSTER RESET",
        "PUBLISH c m",
    ),
)
FIRST_RELEASE_WORKER = (
    "~[^ta]* ~a[^u]* resetchannels -@all +@read +@write +@connection +@transaction +@scripting +@blocking -@dangerous"
)


def test_no_account_is_for_a_node() -> None:
    assert set(USERS) == {"default", *PROGRAMS, "operator", "replica", "sentinel"}
    assert "off" in (ROOT / "deploy/redis/users.acl").read_text().splitlines()[0].split()


async def _made(redis: Redis, name: str, *rules: str) -> str:
    user = f"shipped-{name}"
    await redis.execute_command("ACL", "SETUSER", user, "reset", "on", "nopass", *rules)  # type: ignore[no-untyped-call]
    return user


async def _allowed(redis: Redis, user: str, command: str) -> bool:
    answer = await redis.execute_command("ACL", "DRYRUN", user, *command.split())  # type: ignore[no-untyped-call]
    return bool(answer == b"OK")


@pytest.mark.parametrize("name", PROGRAMS)
async def test_no_program_can_stop_empty_or_reconfigure_redis(redis: Redis, name: str) -> None:
    rules = [rule for rule in USERS[name] if not rule.startswith(">") and rule != "on"]
    user = await _made(redis, name, *rules)
    try:
        assert [command for command in HARMFUL if await _allowed(redis, user, command)] == []
    finally:
        await redis.execute_command("ACL", "DELUSER", user)  # type: ignore[no-untyped-call]


async def test_the_check_sees_what_the_nodes_account_of_the_first_release_could_do(redis: Redis) -> None:
    user = await _made(redis, "worker", *FIRST_RELEASE_WORKER.split())
    try:
        for command in ("HGETALL snapshot:1", "DEL snapshot:1", "EVAL x 0", "FUNCTION STATS", "SCRIPT KILL", "SCAN 0"):
            assert await _allowed(redis, user, command), command
    finally:
        await redis.execute_command("ACL", "DELUSER", user)  # type: ignore[no-untyped-call]


def test_each_test_of_the_threat_model_exists() -> None:
    named = set(
        re.findall(r"`((?:unit|integration|security|browser)/\w+\.py)`", (ROOT / "docs/threat-model.md").read_text())
    )
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).exists()] == []
