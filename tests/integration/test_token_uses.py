"""The last use of each token, recorded without a write in the call that uses it."""

from datetime import UTC, datetime, timedelta

from tests.integration.conftest import Cell
from tests.integration.front_end import READ_WRITE, serving
from tests.integration.test_ops_api import Ops
from worker.store.access.tokens import Permission, Tokens
from worker.store.access.usage import TokenUses
from worker.store.model import AccountId


async def test_the_list_says_when_each_was_used_last(cell: Cell) -> None:
    unused = await Tokens(cell.redis).create(name="unused", account_id=AccountId(9), permissions=READ_WRITE)
    async with serving(cell) as api:
        ops = Ops(api=api, token=await api.new_token(account=None, permissions={Permission.OPERATOR}))
        before = datetime.now(UTC)
        await api.call("GET")
        listed = {one["name"]: one["last_used_at"] for one in (await ops.get("tokens/"))["results"]}
        assert listed["unused"] is None
        for name in ("a customer", "a test"):
            assert abs(datetime.fromisoformat(listed[name]) - before) < timedelta(minutes=1)
        written = await cell.raw("HGETALL", "tokens:used")
        assert unused.token.id.encode() not in written
        revoked = next(one for one in await api.tokens.all() if one.name == "a customer")
        await api.tokens.revoke(revoked.id)
    assert await cell.raw("HEXISTS", "tokens:used", revoked.id) == 0


async def test_noted_uses_are_written_at_the_end_and_survive(cell: Cell) -> None:
    async with serving(cell) as api:
        await api.call("GET")
        (token,) = await api.tokens.all()
        assert await cell.raw("HGET", "tokens:used", token.id) is None  # not yet: a call that reads writes nothing
    assert await cell.raw("HGET", "tokens:used", token.id) is not None


async def test_the_use_of_a_token_that_is_gone_is_not_kept(cell: Cell) -> None:
    uses = TokenUses(cell.redis)
    uses.note("0" * 12)
    assert dict(await uses.all()) == {}
