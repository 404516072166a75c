"""IDs of snapshots: no claim of a node makes the service issue an ID twice or confuse two IDs."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from drivers.base import is_ours
from tests.conftest import RedisServer
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import DONE
from tests.security.conftest import ITS_SERVER, Hostile
from tests.security.test_claims import published
from worker.store import scripts
from worker.store.model import SnapshotId, snapshot_id_of, snapshot_tag

EPOCH = 1_735_689_600
AHEAD = 1_000_000

numbers = st.one_of(
    st.integers(0, 2**70).map(str),
    st.integers(10**14, 10**17).map(str),
    st.integers(2**53 - 3, 2**53 + 3).map(str),
    st.text(alphabet="0123456789 -+.exX_\u0663\x00", max_size=20),
    st.text(max_size=5),
)


@settings(deadline=None)
@given(numbers)
def test_a_tag_represents_an_id_in_one_form_only(number: str) -> None:
    found = snapshot_id_of(f"vps-{number}")
    if found is not None:
        assert snapshot_tag(found) == f"vps-{number}"
        assert 0 < found < 2**53
        assert is_ours(f"vps-{number}")
    elif number.isdecimal():
        assert not is_ours(f"vps-{number}")


@pytest.mark.parametrize("tag", ["vps-0001", "vps-0", "vps-9007199254740992", "vps-1000000000000000", "vps-\u0661"])
def test_a_tag_in_another_form_is_foreign(tag: str) -> None:
    assert snapshot_id_of(tag) is None
    assert not is_ours(tag)


ASKS = {
    "is_id": "-- include: ids\nreturn is_id(ARGV[1]) and 1 or 0",
    "may_be_given": "-- include: last_id\nreturn may_be_given(ARGV[1]) and 1 or 0",
}


class Ids:
    """`is_id` and `may_be_given` in Redis."""

    def __init__(self, redis: RedisServer) -> None:
        self._socket = redis.socket

    def __call__(self, what: str, text: str) -> bool:
        async def ask() -> bool:
            redis = Redis(unix_socket_path=str(self._socket))
            try:
                return bool(await redis.eval(scripts.linked(ASKS[what]), 0, text))  # type: ignore[misc]
            finally:
                await redis.aclose()

        return asyncio.run(ask())


@settings(deadline=None)
@given(text=numbers)
def test_lua_takes_for_an_id_what_python_does(redis_server: RedisServer, text: str) -> None:
    assert Ids(redis_server)("is_id", text) == (snapshot_id_of(f"vps-{text}") is not None)


@settings(deadline=None)
@given(text=st.one_of(numbers, st.integers(1, 10**9).map(str)))
def test_an_id_far_above_the_clock_was_never_issued(redis_server: RedisServer, text: str) -> None:
    assert not Ids(redis_server)("may_be_given", text) or int(text) < 2 * 10**8


async def now_s(cell: Cell) -> int:
    seconds, _ = await cell.redis.time()
    return int(seconds) - EPOCH


async def test_a_forged_last_id_is_ignored_and_no_id_is_issued_twice(cell: Cell) -> None:
    given_before = (await cell.create()).snapshot.id
    await cell.node.begin(await cell.holder())
    await cell.node.finish(await cell.holder(), DONE)
    for poison in ("9007199254740992", "9" * 30, "1e300", "nan", "inf", "-5", "x", ""):
        await cell.redis.set("snapshots:last_id", poison)
        ids = []
        for name in ("a", "b"):
            snapshot = (await cell.create(name)).snapshot
            ids.append(snapshot.id)
            job_id = await cell.holder()
            await cell.node.begin(job_id)
            await cell.node.finish(job_id, DONE)
            delete = await cell.store.delete(account_id=ACCOUNT, snapshot_id=snapshot.id, request_id="r")
            assert delete is not None
            await cell.node.begin(delete.id)
            await cell.node.finish(delete.id, DONE)
        assert len(set(ids)) == 2, poison
        assert given_before not in ids
        assert max(ids) < await now_s(cell) + 2 * AHEAD


async def test_an_id_whose_record_exists_is_skipped(cell: Cell) -> None:
    top = await now_s(cell) + 1000
    for snapshot_id in range(top, top + 3):
        await cell.raw("HSET", f"snapshot:{snapshot_id}", "server", "9", "account", "9")
    await cell.redis.set("snapshots:last_id", top - 1)
    assert (await cell.create()).snapshot.id == top + 3
    assert await cell.raw("HGETALL", f"snapshot:{top}") == {b"server": b"9", b"account": b"9"}


async def test_claims_raise_new_ids_by_no_more_than_the_bound(hostile: Hostile) -> None:
    cell = hostile.cell
    edge = await now_s(cell) + AHEAD
    claims = [1, edge - 5, edge + 60, 10**14, 10**15, 2**53 - 1, 2**53, 2**63 - 1, 10**30]
    new = await hostile.node.publish(ITS_SERVER, [published(n, name=str(n)) for n in claims], [])
    assert sorted(new) == [1, edge - 5]
    assert [reason for _, reason in hostile.refused] == ["id_not_given"] * 7
    created = (await cell.create()).snapshot
    assert created.id == edge - 4
    assert (await cell.store.snapshot(account_id=ACCOUNT, snapshot_id=created.id)).server_id == SERVER


async def test_after_a_loss_ids_from_before_come_back_and_new_ones_are_above_them(hostile: Hostile) -> None:
    cell = hostile.cell
    before = SnapshotId(await now_s(cell) + 30_000)  # as if the cell had issued that many IDs in a night
    await cell.redis.delete("snapshots:last_id")
    assert await cell.node.publish(SERVER, [published(before, name="before")], []) == (before,)
    assert (await cell.create("after")).snapshot.id == before + 1
