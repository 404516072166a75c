"""Credentials of nodes in the operators' API and the command line, with a gateway that checks them."""

import re
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from api.cli.exits import Exit
from tests.conftest import RedisServer
from tests.gateway import Reached, gateway
from tests.integration.cli import Cli
from tests.integration.conftest import Cell
from tests.integration.front_end import serving
from tests.integration.test_gateway import HELLO, ask, gone, raw
from tests.integration.test_ops_api import KEY, Ops
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import Permission

PATH = "nodes/n2/credentials/"
SECRET = re.compile(r"vpsnode_[A-Za-z0-9_-]{43}")


@pytest.fixture
async def ops(cell: Cell) -> AsyncIterator[Ops]:
    async with serving(cell, calls_per_minute=100_000) as api:
        yield Ops(api=api, token=await api.new_token(account=None, permissions={Permission.OPERATOR}))


@pytest.fixture
def cli(ops: Ops) -> Cli:
    return Cli(url=f"http://127.0.0.1:{ops.api.port}", token=ops.token)


@pytest.fixture
async def reached(cell: Cell, redis_server: RedisServer) -> AsyncIterator[Reached]:
    async with gateway(redis_server.socket) as reached:
        yield reached


async def is_let_in(reached: Reached, secret: str) -> bool:
    try:
        async with raw(reached, secret=secret) as connection:
            return "answer" in await ask(connection, "hello", **(HELLO | {"node": "n2"}))
    except InvalidStatus as refused:
        if refused.response.status_code != 401:
            raise
        return False


async def made(ops: Ops, path: str = PATH, **body: Any) -> dict[str, Any]:
    return dict(await ops.post(path, body, status=201))


class TestCalls:
    async def test_a_revoked_node_is_cut_and_stays_out(self, ops: Ops, reached: Reached) -> None:
        secret = (await made(ops))["secret"]
        async with raw(reached, secret=secret) as connection:
            assert (await ask(connection, "hello", **(HELLO | {"node": "n2"})))["answer"]
            assert (await ops.call("DELETE", PATH)).status == 204
            await gone(connection)
        assert not await is_let_in(reached, secret)
        assert (await ops.get(PATH))["results"] == []
        (await ops.call("DELETE", PATH)).refused(404, "credential_not_found")
        assert await is_let_in(reached, (await made(ops))["secret"])

    async def test_a_rotated_one_is_valid_beside_the_new_one_until_the_overlap_ends(
        self, ops: Ops, reached: Reached
    ) -> None:
        first = await made(ops)
        second = await made(ops, f"{PATH}rotate/")
        assert [await is_let_in(reached, one["secret"]) for one in (first, second)] == [True, True]
        listed = {one["id"]: one for one in (await ops.get(PATH))["results"]}
        assert set(listed) == {first["id"], second["id"]}
        ends = datetime.fromisoformat(listed[first["id"]]["expires_at"])
        assert timedelta(minutes=9) < ends - datetime.now(UTC) <= timedelta(minutes=10)
        assert listed[second["id"]]["expires_at"] is None

        async with raw(reached, secret=first["secret"]) as before:
            third = await made(ops, f"{PATH}rotate/", overlap_minutes=0)
            await gone(before)
        secrets = [one["secret"] for one in (first, second, third)]
        assert [await is_let_in(reached, secret) for secret in secrets] == [False, False, True]

    async def test_one_that_has_expired_lets_nobody_in(self, ops: Ops, reached: Reached) -> None:
        new = await made(ops, lifetime_hours=1)
        lasts = datetime.fromisoformat(new["expires_at"]) - datetime.fromisoformat(new["created_at"])
        assert lasts == timedelta(hours=1)
        found = await Credentials(ops.api.cell.redis).find(new["secret"])
        assert found is not None
        async with raw(reached, secret=new["secret"]) as connection:
            await ops.api.cell.redis.pexpire(found.key, 1)  # the hour has passed
            await gone(connection)
        assert not await is_let_in(reached, new["secret"])
        (await ops.call("POST", f"{PATH}rotate/", {})).refused(404, "credential_not_found")

    async def test_a_rotation_that_a_full_redis_refuses_ends_nothing(self, ops: Ops) -> None:
        await made(ops)
        before = await ops.get(PATH)
        await ops.api.cell.redis.config_set("maxmemory", 1)
        try:
            (await ops.call("POST", f"{PATH}rotate/", {})).refused(503, "store_read_only")
        finally:
            await ops.api.cell.redis.config_set("maxmemory", 0)
        assert await ops.get(PATH) == before

    async def test_a_read_only_operator_can_only_list_them(self, ops: Ops) -> None:
        await made(ops)
        reader = Ops(api=ops.api, token=await ops.api.new_token(account=None, permissions={Permission.OPERATOR_READ}))
        assert len((await reader.get(PATH))["results"]) == 1
        before = await ops.get(PATH)
        for method, path, body in (("POST", PATH, {}), ("POST", f"{PATH}rotate/", {}), ("DELETE", PATH, None)):
            (await reader.call(method, path, body)).refused(403, "permission_denied")
        assert await ops.get(PATH) == before

    async def test_the_secret_is_shown_once_and_kept_nowhere(self, ops: Ops) -> None:
        first, again = [await ops.call("POST", PATH, {}, headers=KEY) for _ in range(2)]
        assert first.raw == again.raw
        assert first.headers["Cache-Control"] == "no-store"
        secret = first.body["secret"]
        assert SECRET.fullmatch(secret)
        assert secret not in str(await ops.get(PATH))
        (await ops.call("POST", PATH, {})).refused(409, "credential_exists")
        rotated = await made(ops, f"{PATH}rotate/")
        (last, _, _, created) = (await ops.get("audit/?method=POST"))["results"]
        assert created["fields"]["made"] == f"credential {first.body['id']}"
        assert last["fields"]["made"] == f"credential {rotated['id']}"
        redis = ops.api.cell.redis
        kept = [key + (await redis.dump(key) or b"") async for key in redis.scan_iter("*")]
        parts = [one.removeprefix("vpsnode_").encode() for one in (secret, rotated["secret"])]
        assert not any(part in record for record in kept for part in parts)

    @pytest.mark.parametrize(
        ("path", "body", "field"),
        [
            (PATH, {"lifetime_hours": 0}, "lifetime_hours"),
            (PATH, {"lifetime_hours": 87_601}, "lifetime_hours"),
            (PATH, {"lifetime_hours": "1"}, "lifetime_hours"),
            (PATH, {"overlap_minutes": 1}, "overlap_minutes"),
            (f"{PATH}rotate/", {"overlap_minutes": -1}, "overlap_minutes"),
            (f"{PATH}rotate/", {"overlap_minutes": 10_081}, "overlap_minutes"),
            (f"{PATH}rotate/", {"overlap_minutes": None}, "overlap_minutes"),
            (PATH, [], "body"),
        ],
    )
    async def test_what_cannot_be_is_named(self, ops: Ops, path: str, body: object, field: str) -> None:
        await made(ops, "nodes/n3/credentials/")
        assert (await ops.call("POST", path.replace("n2", "n3"), body)).refused_fields() == [field]
        (await ops.call("POST", "nodes/n%202/credentials/", {})).refused(404, "node_not_found")
        assert len((await ops.get("nodes/n3/credentials/"))["results"]) == 1


class TestCommands:
    async def test_a_nodes_credential_is_created_rotated_listed_and_revoked(
        self, ops: Ops, cli: Cli, reached: Reached, tmp_path: Path
    ) -> None:
        created = await cli.run("node", "credential", "create", "n2", "--expires-in", "90d", "--yes")
        assert SECRET.fullmatch(created.out.strip()), created
        assert re.fullmatch(r"credential \w{12} of node n2 created; its secret is shown only once:\n", created.err)
        assert await is_let_in(reached, created.out.strip())
        again = await cli.run("node", "credential", "create", "n2", "--yes")
        assert (again.code, again.out) == (Exit.REFUSED, "")
        assert "Rotate it instead. (credential_exists, " in again.err

        file = tmp_path / "credential"
        file.write_text("an old one")
        file.chmod(0o644)
        rotated = await cli.run("node", "credential", "rotate", "n2", "--overlap", "1h", "--out", file, "--yes")
        assert (rotated.code, rotated.out) == (0, "")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert await is_let_in(reached, file.read_text().strip())
        assert [one.name for one in tmp_path.iterdir()] == ["credential"]

        listed = await cli.run("node", "credential", "list", "n2")
        assert [line.split()[1] for line in listed.out.splitlines()] == ["NODE", "n2", "n2"]
        assert (await cli.run("node", "credential", "list", "n2", "--json")).body == await ops.get(PATH)
        revoked = await cli.run("node", "credential", "revoke", "n2", "--yes")
        assert revoked.out == "the credentials of node n2 are revoked\n"
        assert not await is_let_in(reached, file.read_text().strip())
        none = await cli.run("node", "credential", "revoke", "n2", "--yes")
        assert none.code == Exit.NOT_FOUND
        assert (await cli.run("node", "credential", "list", "n2")).err == "Node n2 has no valid credential.\n"

    async def test_nothing_is_made_if_the_file_cannot_be_written(self, ops: Ops, cli: Cli, tmp_path: Path) -> None:
        for out in (tmp_path / "missing" / "credential", tmp_path):
            done = await cli.run("node", "credential", "create", "n2", "--out", out, "--yes")
            assert (done.code, done.out) == (Exit.USAGE, "")
            assert f"Cannot write {out}" in done.err
        assert (await ops.get(PATH))["results"] == []

    async def test_json_has_the_secret_unless_it_is_in_the_file(self, cli: Cli, tmp_path: Path) -> None:
        created = (await cli.run("node", "credential", "create", "n2", "--yes", "--json")).body
        assert SECRET.fullmatch(created["secret"])
        file = tmp_path / "credential"
        rotated = (await cli.run("node", "credential", "rotate", "n2", "--yes", "--json", "--out", file)).body
        assert "secret" not in rotated
        assert rotated["id"] != created["id"]
        assert SECRET.fullmatch(file.read_text().strip())
