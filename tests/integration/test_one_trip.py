"""An HTTP call is one Redis command: authentication, rate limit, the call itself, and the audit entry."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from tests.conftest import RedisServer
from tests.integration.conftest import SERVER, Cell
from tests.integration.front_end import SNAPSHOTS, FrontEnd, serving
from worker.program import log_fields
from worker.store.access.audit import NEW
from worker.store.redis_client import RedisSettings, connect


class Commands:
    """Counts the commands that were answered, by request; background work has none."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def answered(self, seconds: float) -> None:
        self.of[str(log_fields.current().get("request_id", ""))] += 1

    def failed(self, error: Exception) -> None:
        raise AssertionError from error


@dataclass(frozen=True, kw_only=True)
class Counted:
    api: FrontEnd
    commands: Commands

    async def of(self, method: str, path: str, status: int, body: object = None, **headers: str) -> int:
        """How many commands the call took."""
        answer = await self.api.call(method, path, body=body, headers=headers)
        assert answer.status == status, answer.raw
        return self.commands.of[answer.headers["X-Request-Id"]]


@pytest.fixture
async def counted(cell: Cell, redis_server: RedisServer) -> AsyncIterator[Counted]:
    commands = Commands()
    redis = connect(RedisSettings(url=f"unix://{redis_server.socket}"), observer=commands)
    try:
        async with serving(replace(cell, redis=redis), audit_keeper=False) as api:
            yield Counted(api=api, commands=commands)
    finally:
        await redis.aclose(close_connection_pool=True)


async def test_each_call_of_a_customer_is_one_command(counted: Counted) -> None:
    snapshot = await counted.api.have_snapshot()
    one = f"{SNAPSHOTS}{snapshot}/"
    restored = await counted.api.call("POST", f"{one}restore/")
    await counted.api.work(restored)
    job = restored.headers["X-Job-Id"]
    for path in (SNAPSHOTS, one, "/api/v1/jobs/"):
        await counted.of("GET", path, 200)  # a script that Redis does not have is sent once more

    assert await counted.of("GET", SNAPSHOTS, 200) == 1
    assert await counted.of("GET", f"{SNAPSHOTS}?server_id={SERVER}", 200) == 1
    assert await counted.of("GET", one, 200) == 1
    assert await counted.of("GET", "/api/v1/jobs/", 200) == 1
    assert await counted.of("GET", f"/api/v1/jobs/{job}/", 200) == 1
    assert await counted.of("GET", f"/api/v1/servers/{SERVER}/", 200) == 1
    restored = await counted.api.call("POST", f"{one}restore/")
    await counted.api.work(restored)
    await counted.of("PATCH", one, 200, {"description": "new"})
    assert await counted.of("PATCH", one, 200, {"description": "other"}) == 2  # one for its audit entry
    assert await counted.of("DELETE", one, 204) == 1


@pytest.mark.parametrize("key", [{}, {"Idempotency_Key": "k"}])
async def test_a_create_and_its_entry_are_written_as_one(counted: Counted, key: dict[str, str]) -> None:
    await counted.api.have_snapshot()
    body = {"server_id": SERVER, "name": "before-update"}
    headers = {name.replace("_", "-"): value for name, value in key.items()}
    for _ in range(2 if key else 1):
        entries = await counted.api.cell.redis.llen(NEW)  # type: ignore[misc]  # typed for the blocking client too
        assert await counted.of("POST", SNAPSHOTS, 201, body, **headers) == 1
        assert await counted.api.cell.redis.llen(NEW) == entries + 1  # type: ignore[misc]


async def test_a_stranger_and_an_invalid_request_are_one_as_well(counted: Counted) -> None:
    stranger = {"Authorization": "Bearer vps_" + "x" * 43}
    await counted.of("POST", SNAPSHOTS, 401, {"server_id": SERVER, "name": "x"}, **stranger)
    await counted.of("POST", SNAPSHOTS, 401, {"server_id": 0}, **stranger)
    assert await counted.of("POST", SNAPSHOTS, 401, {"server_id": SERVER, "name": "x"}, **stranger) == 1
    assert await counted.of("POST", SNAPSHOTS, 401, {"server_id": 0}, **stranger) == 1
    assert await counted.of("GET", f"{SNAPSHOTS}x/", 401, **stranger) == 1
    assert await counted.of("GET", f"{SNAPSHOTS}x/", 404) == 1
