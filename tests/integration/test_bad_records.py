"""One bad record breaks nothing else.

Each field of each record of `worker/store/KEYS.md` is damaged in turn, each key is replaced by one of another type, and
each list gets members that point nowhere. Then every list, page, record, chore and loop is tried: only the damaged
record may be missing, and its key is shown to operators.
"""

import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from tests.integration.bad_records import DAMAGES, LISTS, SINGLES, Hosted, World, ended, made, work, work_damaged
from tests.integration.cli import Cli
from tests.integration.conftest import ACCOUNT, Cell
from tests.integration.test_keyspace import ROWS
from tests.integration.test_ops_api import failed
from worker.store import scripts
from worker.store.access.credentials import Credentials, key_of
from worker.store.bounds import Bounds
from worker.store.chores.chores import Chores
from worker.store.errors import OutcomeUnknown
from worker.store.model import AccountId, JobId, JobKind, WebhookId
from worker.store.operators.cell import Cell as CellStore
from worker.store.operators.operator_store import OperatorStore
from worker.store.webhooks.webhooks import Webhooks

# "all": each damage of each field, and each key alone; otherwise two per field, and several keys at once, in turn.
ALL_WAYS = os.environ.get("BAD_RECORDS") == "all"
SERVERS = 25  # in all but the last, one field at a time is damaged
KEYS_AT_ONCE = 1 if ALL_WAYS else 8


@pytest.fixture
async def world(cell: Cell) -> AsyncIterator[World]:
    async with made(cell, servers=3) as world:
        yield world


@pytest.fixture
async def large(cell: Cell) -> AsyncIterator[World]:
    async with made(cell, servers=SERVERS) as world:
        yield world


def fields_of(kind: str) -> list[str]:
    (row,) = [row for row in ROWS if row.pattern == f"{kind}:<{kind}>"]
    assert row.fields is not None
    return sorted(row.fields)


def ways(fields: Iterable[str]) -> list[tuple[str, str]]:
    """Each field with the names of its damages."""
    names = list(DAMAGES)
    return [
        (field, name)
        for place, field in enumerate(sorted(fields))
        for name in (names if ALL_WAYS else {"absent": 0, names[1 + place % (len(names) - 1)]: 0})
    ]


async def test_a_damaged_field_hides_its_own_record_only(large: World) -> None:
    world, kinds = large, ("job", "snapshot", "server", "node", "schedule")
    await world.lists({})
    assert await world.told() == set()
    damages = [(kind, *way) for kind in kinds for way in ways(fields_of(kind))]
    for first in range(0, len(damages), SERVERS - 1):
        await world.restore()
        damaged: dict[str, set[str]] = {kind: set() for kind in kinds}
        hosts = world.hosted[: len(damages[first : first + SERVERS - 1])]
        for place, ((kind, field, name), hosted) in enumerate(zip(damages[first:], hosts, strict=False)):
            record = hosted.ids[kind][place % len(hosted.ids[kind])]
            await world.damage(f"{kind}:{record}", field, DAMAGES[name])
            damaged[kind].add(record)
        await world.lists(damaged)
        for kind, ids in damaged.items():
            for record in ids:
                await world.singles(kind, record)
        indexed = tuple(f"account:{ACCOUNT}:{kind}s " for kind, ids in damaged.items() if ids)
        for key in await world.told():
            kind, _, rest = key.partition(":")
            assert rest.split(":")[0] in damaged.get(kind, ()) or key.startswith(indexed), key
        for hosted in hosts:
            await work_damaged(hosted)
        await work(world, well=world.hosted[-1])


DAMAGES_OF_CHANGED: Mapping[str, bytes | None] = {
    **DAMAGES,
    "late": b"8000000000000000",
    "fraction": b"12.5",
    "not UTF-8": "\xfc\u20ac\U0001f600".encode() + b"\xc3",
}


def changing_calls(world: World, kind: str) -> tuple[str, Sequence[tuple[str, str, object]]]:
    """The key of a record of the kind, and calls that change something for it: method, path and body. Each call is
    accepted if the record is whole."""
    server, ids = world.hosted[0].server, world.hosted[0].ids
    snapshot, job = ids["snapshot"][0], ids["job"][0]
    restore, create = f"/api/v1/snapshots/{snapshot}/restore/", {"server_id": int(server), "name": "new"}
    undo = f"/api/v1/restores/{job}/undo/"
    match kind:
        case "snapshot":
            edits = ("description", "new"), ("labels", {"a": "b"}), ("protected", False), ("expires_at", None)
            path = f"/api/v1/snapshots/{snapshot}/"
            calls = [*((("PATCH", path, {field: value})) for field, value in edits), ("DELETE", path, None)]
            return f"snapshot:{snapshot}", [("POST", restore, None), *calls]
        case "server":
            label = ("PATCH", f"/api/v1/servers/{server}/", {"labels": {"a": "b"}})
            changes = [("POST", "/api/v1/snapshots/", create), ("POST", restore, None), ("POST", undo, None), label]
            return f"server:{server}", changes
        case "job":
            return f"job:{job}", [("POST", undo, None)]
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in ("snapshot", "server", "job") for field in fields_of(kind)]
)
async def test_a_refused_change_of_a_damaged_record_has_changed_nothing(world: World, kind: str, field: str) -> None:
    server, ids = world.hosted[0].server, world.hosted[0].ids
    await world.redis.hset(f"snapshot:{ids['snapshot'][0]}", "status", "completed")
    await world.redis.hset(f"server:{server}", "undoable", ids["job"][0])
    await world.redis.hset(f"job:{ids['job'][0]}", mapping={"kind": "restore", "undoable_until_ms": "9" * 13})
    await world.redis.hdel(f"server:{server}", "job")
    key, calls = changing_calls(world, kind)
    for call in calls:
        assert await changed_or_refused(world, *call, damaged=(key, "unknown", b"")) < 300, call
        for damage in DAMAGES_OF_CHANGED.values():
            await changed_or_refused(world, *call, damaged=(key, field, damage))


async def changed_or_refused(
    world: World, method: str, path: str, body: object, *, damaged: tuple[str, str, bytes | None]
) -> int:
    """Damage a field, make the call, and put all back. Returns the call's status. A refused call has changed nothing,
    and none has an unknown outcome, because its caller would have to find out."""
    kept = {key: await world.redis.dump(key) for key in await world.redis.keys() if key != b"clock"}
    await world.damage(*damaged)
    before = await changed_by_calls(world)
    answer = await world.api.call(method, path, body=body)
    assert answer.status < 500 or answer.body["code"] == "node_unavailable", (path, damaged, answer.raw)
    if answer.status >= 400:
        after = await changed_by_calls(world)
        changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        assert not changed, (path, damaged, answer.raw)
    async with world.redis.pipeline(transaction=False) as pipe:
        pipe.delete(*[key for key in await world.redis.keys() if key not in {b"clock", *kept}], "")
        for key, value in kept.items():
            pipe.restore(key, 0, value, replace=True)
        await pipe.execute()
    return answer.status


async def changed_by_calls(world: World) -> dict[bytes, object]:
    """All data but what every call and every unreadable record writes."""
    but = ("audit", "calls:", "clock", "token:", "tokens:", "unreadable")
    keys = [key for key in await world.redis.keys() if not key.decode().startswith(but)]
    async with world.redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.type(key)
        kinds = await pipe.execute()
        for key, kind in zip(keys, kinds, strict=True):
            # the fields of a large hash have no lasting order
            pipe.hgetall(key) if kind == b"hash" else pipe.dump(key)
        return dict(zip(keys, await pipe.execute(), strict=True))


async def test_a_record_of_a_newer_release_is_set_aside_until_that_release_is_back(world: World) -> None:
    newer = {kind: {world.hosted[0].ids[kind][0]} for kind in ("job", "snapshot", "schedule")}
    newer["webhook"] = {world.webhooks[0]}
    await world.lists({})
    for kind, (record,) in newer.items():
        await world.damage(f"{kind}:{record}", "v", b"2")
    before = {kind: await world.redis.hgetall(f"{kind}:{record}") for kind, (record,) in newer.items()}
    await world.lists(newer)
    for kind, (record,) in newer.items():
        assert (await world.ask(SINGLES[kind][0].format(record))).status == 409, kind
    await work_damaged(world.hosted[0])
    await work(world, well=world.hosted[-1])
    assert await world.told() >= {f"{kind}:{record}" for kind, (record,) in newer.items()}
    for kind, (record,) in newer.items():
        assert await world.redis.hgetall(f"{kind}:{record}") == before[kind]
        await world.damage(f"{kind}:{record}", "v", b"1")
        await world.singles(kind, record)


@pytest.mark.parametrize("kind", ["webhook", "delivery", "token:webhook"])
async def test_a_damaged_webhook_delays_no_other(world: World, kind: str) -> None:
    pattern = f"{kind}:<{kind.removeprefix('token:')}>"
    (fields,) = [row.fields for row in ROWS if row.pattern == pattern]
    pairs = ways(fields or ())
    for first in range(0, len(pairs), 9):
        await world.restore()
        damaged = world.webhooks[: len(pairs[first : first + 9])]
        for (field, name), webhook in zip(pairs[first:], damaged, strict=False):
            key = f"{kind}:{webhook}"
            if kind == "delivery":
                (delivery,) = await world.redis.zrange(f"webhook:{webhook}:log", 0, 0)
                key = f"delivery:{delivery.decode()}"
            await world.damage(key, field, DAMAGES[name])
        await world.lists({"webhook": set(damaged) if kind == "webhook" else set()})
        for webhook in damaged:
            again = await world.api.call("POST", f"/api/v1/webhooks/{webhook}/redeliver/")
            assert again.status in ({202} if kind == "delivery" else {202, 404, 409}), again.raw
            await world.singles("webhook", webhook)
        await work(world, well=world.hosted[-1])
        assert all(
            key.startswith((f"{kind}:", "webhook:", f"account:{ACCOUNT}:webhooks ")) for key in await world.told()
        )


def keys_of(world: World, pattern: str) -> list[str]:
    (row,) = [row for row in ROWS if row.pattern == pattern]
    return sorted(key.decode() for key, _, _ in world.dumped if row.matches(key.decode(errors="replace")))


PATTERNS = [row.pattern for row in ROWS]
SHARED = [pattern for pattern in PATTERNS if "<" not in pattern or pattern.startswith(("account:<account>", "stats:"))]
MEMBERS: Mapping[str, Sequence[Sequence[Any]]] = {
    "hash": (("HSET", "nobody", "{"), ("HSET", b"\xff", b"\xff")),
    "zset": (("ZADD", 1, "nobody"), ("ZADD", "+inf", "1" * 32), ("ZADD", 2, b"\xff\xfe"), ("ZADD", "-inf", "-1")),
    "set": (("SADD", "nobody", b"\xff\xfe"),),
    "list": (("LPUSH", "{", b"\xff\xfe", "[1]", "9" * 30),),
    "stream": (("XADD", "*", "f", b"\xff"), ("XADD", "*", "job", "x", "kind", "new", "account", "nan")),
    "string": (("SET", "some text"), ("SET", b"\xff\xfe"), ("SET", "9" * 30), ("SET", "{}"), ("SET", "")),
}


async def _replace(world: World, key: str) -> None:
    """Replace the key by one of another type."""
    kind = await world.redis.type(key)
    await world.redis.delete(key)
    await (world.redis.rpush(key, "x") if kind in {b"string", b"none"} else world.redis.set(key, "x"))


def others(world: World, key: str) -> Hosted | None:
    """Servers about whose records the damaged key says nothing."""
    last = world.hosted[-1]
    credential = key_of(last.secret).partition(":")[2]
    mine = {str(last.server), credential, *(one for ids in last.ids.values() for one in ids)}
    is_shared = any(row.matches(key) for row in ROWS if row.pattern in SHARED)
    return None if is_shared or mine & set(key.split(":")) else last


@pytest.mark.parametrize("of_all", [True, False])
async def test_keys_of_another_type_or_with_members_that_lead_nowhere_break_nothing(world: World, of_all: bool) -> None:
    """`of_all`: keys about every server, or those about one server, node or webhook."""
    found = [(await _not_of_the_last(world, keys_of(world, pattern)))[:1] for pattern in _patterns()]
    keys = [key for one in found for key in one if (others(world, key) is None) == of_all]
    assert len(keys) > 30
    rounds = -(-len(keys) // KEYS_AT_ONCE)
    for batch in (keys[n::rounds] for n in range(rounds)):
        await world.restore()
        for key in batch:
            await _replace(world, key)
        records = {one: world.ids(one) for one in LISTS if one} if of_all else _records(batch)
        await _tried(world, records, well=None if of_all else world.hosted[-1])
        await world.restore()
        for key in batch:
            kind = (await world.redis.type(key)).decode()
            for command, *arguments in MEMBERS[kind]:
                await world.api.cell.raw(command, key, *arguments)
        are_records = [key for key in batch if any(row.matches(key) and row.fields for row in ROWS)]
        await _tried(world, _records(are_records), well=None)


def _records(keys: Iterable[str]) -> dict[str, set[str]]:
    """The records of these keys, by kind."""
    found: dict[str, set[str]] = {}
    for key in keys:
        kind, _, rest = key.partition(":")
        found.setdefault(kind, set()).add(rest.split(":")[0])
    return found


async def _not_of_the_last(world: World, keys: Sequence[str]) -> list[str]:
    """Without keys of the last webhook, which must be served."""
    last = world.webhooks[-1]
    deliveries = {f"delivery:{one.decode()}" for one in await world.redis.zrange(f"webhook:{last}:log", 0, -1)}
    return [key for key in keys if last not in key and key not in deliveries]


def _patterns() -> list[str]:
    """Patterns of all keys except those that authenticate callers."""
    return [pattern for pattern in PATTERNS if pattern not in {"token:<sha256>", "token:session:<sha256>"}]


async def _tried(world: World, missing: Mapping[str, set[str]], *, well: Hosted | None) -> None:
    await world.lists(missing)
    await work_damaged(world.hosted[0])
    for one in SINGLES:
        await world.singles(one, world.webhooks[0] if one == "webhook" else world.hosted[0].ids[one][0])
    await work(world, well=well)


@pytest.mark.parametrize("kind", ["token", "token:session"])
async def test_a_damaged_credential_admits_nobody_and_locks_out_nobody(world: World, kind: str) -> None:
    (pattern,) = [pattern for pattern in PATTERNS if pattern == f"{kind}:<sha256>"]
    (fields,) = [row.fields for row in ROWS if row.pattern == pattern]
    browser, secret = world.browser, await world.api.new_token()
    known = set(keys_of(world, pattern))
    (new,) = {key.decode() async for key in world.redis.scan_iter(f"{kind}:*") if key.count(b":") == 1} - known or {""}
    if kind == "token:session":
        (new,) = known
    kept = await world.redis.dump(new)
    for field, name in ways(fields or ()):
        await world.redis.restore(new, 0, kept, replace=True)
        await world.damage(new, field, DAMAGES[name])
        if kind == "token":
            answer = await world.api.call("GET", token=secret)
            assert answer.status in {200, 401, 403, 400}, (field, name, answer.raw)
            await world.answered("api/v1/ops/tokens/")
        else:
            assert (await browser.get("/ops/jobs/")).status in {200, 303}, (field, name)
            await world.answered("api/v1/ops/overview/")


async def test_a_damaged_node_credential_admits_nobody_and_is_reported(world: World) -> None:
    credentials, secret = Credentials(world.redis), world.hosted[0].secret
    key = key_of(secret)
    (fields,) = [row.fields for row in ROWS if row.pattern == "credential:<sha256>"]
    kept = await world.redis.dump(key)
    for field, name in ways(fields or ()):
        await world.redis.restore(key, 0, kept, replace=True)
        await world.damage(key, field, DAMAGES[name])
        found = await credentials.find(secret)
        assert found is None or (found.node == "n0" and field not in {"node", "id"}), (field, name)
        assert {"n1", "n2"} <= {one.node for one in await credentials.all()}
        assert await credentials.find(world.hosted[1].secret) is not None
    assert key in await world.told()
    await world.redis.restore(key, 0, kept, replace=True)
    await world.redis.hset("node:n0:credentials", mapping={"x": "server:1000", b"\xff": b"\xff"})
    assert len(await credentials.all("n0")) == 1
    assert await credentials.revoke("n0") == 1
    assert await world.redis.exists("server:1000")


async def test_an_unreadable_stored_response_prevents_a_second_run(world: World) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    body = {"url": "https://example.com/"}
    await world.redis.delete(f"account:{ACCOUNT}:webhooks")
    before = {one async for one in world.redis.scan_iter("idempotency:*")}
    assert (await world.api.call("POST", "/api/v1/webhooks/", body=body, headers=key)).status == 201
    (kept,) = {one async for one in world.redis.scan_iter("idempotency:*")} - before
    for damage in (b"some text", b"[]", b'{"fingerprint": 1}', b"\xff"):
        await world.redis.set(kept, damage)
        again = await world.api.call("POST", "/api/v1/webhooks/", body=body, headers=key)
        again.refused(409, "record_unreadable")
    assert len((await world.api.call("GET", "/api/v1/webhooks/")).body["results"]) == 1


async def test_a_waiting_process_is_woken_although_its_list_was_of_another_type(world: World) -> None:
    hosted = world.hosted[0]
    await world.redis.delete("webhooks:due")
    await world.redis.set("webhooks:wake", "x")
    await world.redis.set("arq:queue:n0:wake", "x")
    made = await world.api.call("POST", body={"server_id": hosted.server, "name": "next"})
    assert made.status == 201, made.raw
    assert await world.redis.llen("arq:queue:n0:wake") == 1
    await Webhooks(world.redis).test(account_id=ACCOUNT, webhook_id=WebhookId(world.webhooks[0]))
    assert await world.redis.llen("webhooks:wake") == 1


async def test_operators_see_the_key_whatever_read_it(world: World) -> None:
    snapshot = world.hosted[0].ids["snapshot"][0]
    await world.damage(f"snapshot:{snapshot}", "size_mb", b"large")
    with capture_logs() as logs:
        for _ in range(3):
            await world.api.call("GET")
    told = [line for line in logs if line["event"] == "record.unreadable"]
    assert [(line["key"], line["log_level"]) for line in told] == [(f"snapshot:{snapshot}", "warning")]
    assert await world.told() == {f"snapshot:{snapshot}"}
    assert f"snapshot:{snapshot}" in await world.browser.seen("/ops/findings/")
    assert "cannot be read" in await world.browser.seen("/ops/")
    assert (await world.answered("api/v1/ops/overview/")).body["unreadable_records"] == 1
    assert (await CellStore(world.redis).numbers()).unreadable == 1
    cli = Cli(url=f"http://127.0.0.1:{world.api.port}", token=world.ops)
    listed = await cli.run("findings")
    assert f"snapshot:{snapshot}" in listed.out, listed
    for command in ("overview", "jobs", "nodes", "servers", "tokens"):
        assert (await cli.run(command)).code == 0, command
    await world.redis.delete(f"snapshot:{snapshot}")
    assert await world.told() == set()


async def test_operators_see_a_member_that_points_nowhere(world: World) -> None:
    snapshot, index = world.hosted[0].ids["snapshot"][0], f"account:{ACCOUNT}:snapshots"
    await world.redis.delete(f"snapshot:{snapshot}")
    await world.lists({"snapshot": {snapshot}})
    assert await world.told() == {f"{index} {snapshot}"}


async def test_a_stranger_learns_nothing_of_a_damaged_record(world: World) -> None:
    stranger = await world.api.new_token(account=AccountId(78))
    for kind, field in (("snapshot", "created_ms"), ("job", "queued_ms"), ("schedule", "server"), ("webhook", "url")):
        record = world.webhooks[0] if kind == "webhook" else world.hosted[0].ids[kind][0]
        await world.damage(f"{kind}:{record}", field, b"some text" if kind != "webhook" else None)
        path = f"/api/v1/{kind}s/{record}/"
        (await world.api.call("GET", path)).refused(409, "record_unreadable")
        (await world.api.call("GET", path, token=stranger)).refused(404, f"{kind}_not_found")


async def test_excess_entries_are_deleted_although_some_are_unreadable(world: World) -> None:
    few = {name: 2 if name.startswith("failed") else 1 for name in Bounds.model_fields}
    await Chores(world.redis).keep_bounds(Bounds(**few))
    hosted = world.hosted[0]
    for job in hosted.ids["job"]:
        await world.damage(f"job:{job}", "state", b"some text")
    await world.damage(f"snapshot:{hosted.ids['snapshot'][1]}", "created_ms", b"some text")
    await world.redis.lpush(f"idempotency:{ACCOUNT}:answers", "servers", b"\xff")
    for number in range(6):
        body, key = {"server_id": hosted.server, "name": f"next-{number}"}, {"Idempotency-Key": uuid4().hex}
        made = await world.api.call("POST", body=body, headers=key)
        assert made.status == 201, made.raw
        await ended(hosted.node, JobId(made.headers["X-Job-Id"]), failed("start_failed"))
    counted = (await world.answered(f"api/v1/snapshots/?server_id={hosted.server}")).body["results"]
    assert [one["name"] for one in counted] == ["next-5", "kept"]
    assert await world.redis.exists("servers")


async def test_bounds_that_cannot_be_read_are_the_defaults(world: World) -> None:
    for damage in (b"some text", b"-5", b"nan", b"9" * 30):
        await world.redis.hset("bounds", mapping=dict.fromkeys(Bounds.model_fields, damage))
        check: Mapping[str, Any] = {"account_id": ACCOUNT, "server_id": world.hosted[0].server, "request_id": "r"}
        await world.api.cell.store.check_create(name="next", **check)


async def test_a_server_with_damaged_records_goes_to_another_account_and_node(world: World) -> None:
    hosted, operators = world.hosted[0], OperatorStore(world.redis, world.api.cell.store)
    await world.damage(f"snapshot:{hosted.ids['snapshot'][0]}", "created_ms", b"some text")
    await operators.place(hosted.server, account_id=AccountId(78))
    await world.damage(f"job:{hosted.ids['job'][0]}", "queued_ms", b"some text")
    await world.redis.hset(f"server:{hosted.server}", mapping={"job": hosted.ids["job"][0], "missing": "1"})
    await operators.place(hosted.server, node="n1")
    record = await world.redis.hgetall(f"server:{hosted.server}")
    assert (record[b"account"], record[b"node"], b"job" in record) == (b"78", b"n1", False)


async def test_a_server_whose_job_has_no_record_accepts_the_next_one(world: World) -> None:
    server = world.hosted[0].server
    await world.redis.hset(f"server:{server}", "job", "0" * 32)
    made = await world.api.call("POST", body={"server_id": server, "name": "next"})
    assert made.status == 201, made.raw


async def test_a_key_of_another_type_stops_a_write_also_after_many_of_them(cell: Cell) -> None:
    await cell.redis.mset({f"server:{n}": "" for n in range(150)})  # more than one reply lists
    script = "-- include: records\nfor n = 0, 149 do redis.call('HGETALL', 'server:' .. n) end\nread('server:149')"
    with pytest.raises(ResponseError, match="UNREADABLE server:149"):
        await cell.redis.eval(scripts.linked(script), 0)  # type: ignore[misc]  # redis-py types it as a value, too


async def test_a_change_whose_record_cannot_be_shown_afterwards_has_an_unknown_outcome(world: World) -> None:
    """For an operator must be able to change a damaged record, too."""
    server = world.hosted[0].server
    await world.damage(f"server:{server}", "labels", b"\xff")
    with pytest.raises(OutcomeUnknown):
        await OperatorStore(world.redis, world.api.cell.store).take(server, by="ann")
    assert await world.redis.hget(f"server:{server}", "taken_by") == b"ann"


@pytest.mark.parametrize("record", ["snapshot", "server"])
async def test_labels_that_no_answer_can_show_are_found_before_a_change(world: World, record: str) -> None:
    """The JSON reader of Redis accepts more than ours."""
    server, snapshot = world.hosted[0].server, world.hosted[0].ids["snapshot"][0]
    key, path, change = {
        "snapshot": (f"snapshot:{snapshot}", f"/api/v1/snapshots/{snapshot}/", {"protected": True}),
        "server": (f"server:{server}", f"/api/v1/servers/{server}/", {"consistency": "stop"}),
    }[record]
    for damage in (b'{"a": "\xff"}', b'{"a": "\x01"}', b"[]", b'{"a": 1}'):
        await world.damage(key, "labels", damage)
        answer = await world.api.call("PATCH", path, body=change)
        answer.refused(409, "record_unreadable")


async def test_an_edit_can_repair_a_missing_description(world: World) -> None:
    snapshot = world.hosted[0].ids["snapshot"][0]
    await world.damage(f"snapshot:{snapshot}", "description", None)
    answer = await world.api.call("PATCH", f"/api/v1/snapshots/{snapshot}/", body={"description": "new"})
    assert (answer.status, answer.body["description"]) == (200, "new")


@pytest.mark.parametrize("field", ["name", "description", "created_ms"])
@pytest.mark.parametrize("damage", [None, b"\xff", b"8000000000000000"])
async def test_the_delete_of_a_damaged_snapshot_reaches_its_node_or_is_refused(
    world: World, field: str, damage: bytes | None
) -> None:
    """Its node would refuse a job that it cannot read, and the job would hold the server forever."""
    hosted = world.hosted[0]
    snapshot = hosted.ids["snapshot"][0]
    await world.redis.hset(f"snapshot:{snapshot}", "status", "completed")
    await world.redis.hdel(f"server:{hosted.server}", "job")
    await world.damage(f"snapshot:{snapshot}", field, damage)
    answer = await world.api.call("DELETE", f"/api/v1/snapshots/{snapshot}/")
    if answer.status == 409:
        assert await world.redis.hget(f"server:{hosted.server}", "job") is None
    else:
        assert (await hosted.node.begin(JobId(answer.headers["X-Job-Id"]))).kind is JobKind.DELETE
