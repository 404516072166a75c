"""A backup contains what only Redis stores, and brings it back after Redis lost all its data."""

import asyncio
import gzip
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RedisServer, lacking, needs
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.test_reconcile import Node, lose_redis_data, node, report
from tests.security.conftest import kept
from tests.trouble import TROUBLES
from worker.store.access.audit import Audit, AuditKeeper
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import Limits, Permission, Presented, Tokens
from worker.store.backup.file import LINE_BYTES, BackupFile, BackupUnusable, write
from worker.store.backup.restore import AuditLogInUse, Restore
from worker.store.backup.rows import Backup, DataLost, Row
from worker.store.customers.customer_store import Edit
from worker.store.errors import NodeNotFound
from worker.store.model import SnapshotId
from worker.store.nodes.claims import ReportedServer
from worker.store.operators.cell import Cell as CellNumbers
from worker.store.operators.operator_store import OperatorStore
from worker.store.schedules.schedules import Schedules, ScheduleSpec
from worker.store.webhooks.webhooks import WebhookChange, Webhooks

__all__ = ["node"]

PROGRAM = Path(sys.executable).parent / "vps-snapshots-api"
LIMITS = Limits(calls=100, failed_logins=100)


async def back_up(cell: Cell, folder: Path, *, recipient: str | None = None) -> Path:
    store, path = Backup(cell.redis), folder / "one.backup"

    async def rows() -> AsyncIterator[Row]:
        async for row in store.records():
            yield row
        async for row in store.audit():
            yield row

    made_ms, last_id = await store.now_ms(), await store.last_id()
    life, merged = await store.life(), await store.merged()
    await write(path, rows(), made_ms=made_ms, last_id=last_id, recipient=recipient, life=life, merged=merged)
    return path


async def put_back(cell: Cell, path: Path) -> dict[str, int]:
    found = BackupFile.open(path, identity=None)
    restore = Restore(cell.redis)
    written = dict(await restore.records(found, now_ms=await Backup(cell.redis).now_ms()))
    return written | {"audit": await restore.audit(found)}


async def have_all(node: Node) -> tuple[SnapshotId, dict[str, str]]:
    """Create one of each thing that only Redis stores. Returns the secrets."""
    cell = node.cell
    snapshot_id = await node.create("kept")
    expires_at = datetime.now(UTC) + timedelta(days=90)
    edit = Edit(description="as edited", labels={"team": "web"}, protected=True, expires_at=expires_at)
    await cell.store.edit(account_id=ACCOUNT, snapshot_id=snapshot_id, edit=edit)
    await cell.store.edit_server(account_id=ACCOUNT, server_id=SERVER, consistency="stop", labels={"env": "prod"})
    schedule = ScheduleSpec(name="nightly", when="daily", keep=3, expire_after=None, enabled=True, live=False)
    await Schedules(cell.redis).create(account_id=ACCOUNT, server_id=SERVER, spec=schedule, idempotency=None)
    by_label = replace(schedule, server_labels={"env": "prod"}, time_zone="Europe/Berlin", window=timedelta(hours=2))
    await Schedules(cell.redis).create(account_id=ACCOUNT, server_id=None, spec=by_label, idempotency=None)
    hook = WebhookChange(url="https://hooks.example.net/", description="", events=(), enabled=True)
    secret = await Webhooks(cell.redis).create(account_id=ACCOUNT, change=hook)
    token = await Tokens(cell.redis).create(
        name="tier", account_id=ACCOUNT, permissions=frozenset({Permission.SNAPSHOTS_READ}), lifetime=timedelta(days=9)
    )
    credential = await Credentials(cell.redis).create("n1")
    operators = OperatorStore(cell.redis, cell.store)
    await operators.limit_account(ACCOUNT, snapshots_max=9)
    await operators.pause("n1", by="anna", reason="kernel upgrade")
    audit = Audit(cell.redis, keeper=AuditKeeper(cell.redis, kept=None))
    for number in range(250):
        await audit.write({"path": f"/{number}"})
    secrets = {"token": token.secret, "credential": credential.secret, "webhook": secret.secret}
    return snapshot_id, secrets


async def known(node: Node, snapshot_id: SnapshotId, secrets: dict[str, str]) -> dict[str, Any]:
    """All of these, as their readers see them."""
    cell = node.cell
    snapshot = await cell.store.snapshot(account_id=ACCOUNT, snapshot_id=snapshot_id)
    caller = await Tokens(cell.redis).authenticate(Presented(secret=secrets["token"], address="10.0.0.1"), LIMITS)
    assert caller.token
    webhooks = await Webhooks(cell.redis).all(account_id=ACCOUNT)
    return {
        "snapshot": (snapshot.description, dict(snapshot.labels), snapshot.protected, snapshot.expires_at),
        "server": await cell.raw("HMGET", f"server:{SERVER}", "consistency", "labels"),
        "token": (caller.token, [token.id for token in await Tokens(cell.redis).all()]),
        "credential": await Credentials(cell.redis).find(secrets["credential"]),
        "schedules": await Schedules(cell.redis).page(account_id=ACCOUNT, server_id=SERVER, offset=0, limit=9),
        "by label": await Schedules(cell.redis).page(
            account_id=ACCOUNT, server_id=None, offset=0, limit=9, by_label=True
        ),
        "due": await cell.raw("ZRANGE", "schedules:due", 0, -1, "WITHSCORES"),
        "webhooks": webhooks,
        "secret": await cell.raw("HGET", f"token:webhook:{webhooks[0].id}", "secret"),
        "limits": (await OperatorStore(cell.redis, cell.store).account(ACCOUNT)).snapshots_max,
        "paused": await cell.raw("HMGET", "node:n1", "paused_reason", "paused_by"),
        "paused nodes": await cell.raw("SMEMBERS", "nodes:paused"),
        "audit": await cell.raw("XRANGE", "audit", "-", "+"),
        "head": await cell.raw("HMGET", "audit:head", "seq", "chain", "first"),
    }


@pytest.mark.parametrize("nodes_first", [False, True])
async def test_everything_is_restored_before_or_after_nodes_report(
    node: Node, tmp_path: Path, nodes_first: bool
) -> None:
    snapshot_id, secrets = await have_all(node)
    before = await known(node, snapshot_id, secrets)
    path = await back_up(node.cell, tmp_path)
    await lose_redis_data(node)

    if nodes_first:
        await report(node)
    written = await put_back(node.cell, path)
    await report(node)

    after = await known(node, snapshot_id, secrets)
    if nodes_first:  # the node has published the snapshot's original description
        before["snapshot"] = ("", *before["snapshot"][1:])
    assert after == before
    assert written.pop("server", 1) == 1
    assert written == {
        **dict.fromkeys(("account", "token", "credential", "webhook", "secret", "snapshot", "node"), 1),
        "schedule": 2,
        "audit": 250,
    }


async def everything(cell: Cell) -> dict[bytes, Any]:
    keys = [key async for key in cell.redis.scan_iter(count=1000) if key != b"clock"]
    return {key: await kept(cell, key) for key in keys}


async def test_it_can_be_repeated_and_changes_nothing_that_is_there(node: Node, tmp_path: Path) -> None:
    await have_all(node)
    path = await back_up(node.cell, tmp_path)
    await node.cell.raw("DEL", "audit", "audit:head")
    await put_back(node.cell, path)
    before = await everything(node.cell)
    with pytest.raises(AuditLogInUse):
        await put_back(node.cell, path)
    assert await everything(node.cell) == before


async def test_without_a_loss_a_restore_brings_back_nothing_removed(node: Node, tmp_path: Path) -> None:
    """What was lost comes back: the label of a snapshot."""
    cell = node.cell
    snapshot_id, secrets = await have_all(node)
    path = await back_up(cell, tmp_path)
    (token,) = await Tokens(cell.redis).all()
    await Tokens(cell.redis).revoke(token.id)
    await Credentials(cell.redis).revoke("n1")
    page = await Schedules(cell.redis).page(account_id=ACCOUNT, server_id=SERVER, offset=0, limit=9)
    await Schedules(cell.redis).drop(account_id=ACCOUNT, schedule_id=page.results[0].id)
    operators = OperatorStore(cell.redis, cell.store)
    await operators.resume("n1")
    await operators.limit_account(ACCOUNT, snapshots_max=None)
    await cell.raw("HDEL", f"snapshot:{snapshot_id}", "labels")
    before = await everything(cell)
    found, restore = BackupFile.open(path, identity=None), Restore(cell.redis)
    now_ms = await Backup(cell.redis).now_ms()
    for times in range(2):
        assert await restore.has_lost_nothing(found)
        written = await restore.records(found, now_ms=now_ms, removed=False)
        assert +Counter(written) == ({} if times else {"snapshot": 1})
    after = await everything(cell)
    assert after.pop(f"snapshot:{snapshot_id}".encode())[b"labels"]
    before.pop(f"snapshot:{snapshot_id}".encode())
    assert after == before
    caller = await Tokens(cell.redis).authenticate(Presented(secret=secrets["token"], address="10.0.0.1"), LIMITS)
    assert caller.token is None


async def test_it_is_known_whether_redis_has_lost_its_data_since(node: Node, tmp_path: Path) -> None:
    path = await back_up(node.cell, tmp_path)
    found, restore = BackupFile.open(path, identity=None), Restore(node.cell.redis)
    await lose_redis_data(node)
    assert not await restore.has_lost_nothing(found)
    (tmp_path / "other").mkdir()
    other = BackupFile.open(await back_up(node.cell, tmp_path / "other"), identity=None)  # before the restore
    assert not await restore.has_lost_nothing(found)
    await put_back(node.cell, path)
    assert await restore.has_lost_nothing(found)  # a second restore does not bring back what is removed from now on
    assert await restore.has_lost_nothing(other)


async def test_a_kind_of_record_that_the_backup_does_not_name_is_restored_too(node: Node, tmp_path: Path) -> None:
    """A new resource cannot be forgotten, if its list has the usual name."""
    cell, thing_id = node.cell, "0" * 31 + "a"
    await cell.raw(
        "HSET", f"thing:{thing_id}", "v", "1", "account", ACCOUNT, "created_ms", "1737044100000", "size", "3"
    )
    await cell.raw("HSET", f"job:{thing_id}", "v", "1", "account", ACCOUNT, "created_ms", "1737044100000")
    path = await back_up(cell, tmp_path)
    record = await cell.raw("HGETALL", f"thing:{thing_id}")
    await lose_redis_data(node)

    assert (await put_back(cell, path))["thing"] == 1

    assert await cell.raw("HGETALL", f"thing:{thing_id}") == record
    listed = await cell.raw("ZRANGE", f"account:{ACCOUNT}:things", 0, -1, "WITHSCORES")
    assert listed == [thing_id.encode(), b"1737044100000"]
    assert not await cell.raw("EXISTS", f"job:{thing_id}")


@pytest.mark.parametrize("newer_first", [False, True])
async def test_the_later_of_two_backups_wins(node: Node, tmp_path: Path, newer_first: bool) -> None:
    cell, paths = node.cell, []
    snapshot_id = await node.create("kept")
    for name, edit in (("old", Edit(labels={"of": "old"})), ("new", Edit(labels={"of": "new"}))):
        await cell.store.edit(account_id=ACCOUNT, snapshot_id=snapshot_id, edit=edit)
        (tmp_path / name).mkdir()
        paths.append(await back_up(cell, tmp_path / name))
        await asyncio.sleep(0.002)  # in another millisecond
    await lose_redis_data(node)
    for path in paths[::-1] if newer_first else paths:
        found = BackupFile.open(path, identity=None)
        await Restore(cell.redis).records(found, now_ms=await Backup(cell.redis).now_ms())
    await report(node)
    snapshot = await cell.store.snapshot(account_id=ACCOUNT, snapshot_id=snapshot_id)
    assert snapshot.labels == {"of": "new"}


async def test_an_object_that_another_account_has_now_gets_nothing(node: Node, tmp_path: Path) -> None:
    snapshot_id, _ = await have_all(node)
    path = await back_up(node.cell, tmp_path)
    await lose_redis_data(node)
    rows = BackupFile.open(path, identity=None)
    await Restore(node.cell.redis).records(rows, now_ms=await Backup(node.cell.redis).now_ms())
    await node.cell.raw("HSET", f"snapshot:{snapshot_id}:restored", "account", "66")
    await report(node)
    snapshot = await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=snapshot_id)
    assert (dict(snapshot.labels), snapshot.protected, snapshot.expires_at) == ({}, False, None)


async def test_a_paused_node_that_has_not_come_back_is_not_a_damaged_record(node: Node, tmp_path: Path) -> None:
    await have_all(node)
    path = await back_up(node.cell, tmp_path)
    await node.cell.raw("FLUSHALL")
    await put_back(node.cell, path)
    operators = OperatorStore(node.cell.redis, node.cell.store)
    for call in (operators.node, operators.resume, operators.reconcile):
        with pytest.raises(NodeNotFound):
            await call("n1")
    assert await operators.unreadable() == ()
    await node.cell.node.take_lease(seconds=60)
    pause = (await operators.node("n1")).pause
    assert pause
    assert pause.reason == "kernel upgrade"


async def test_no_other_node_gets_a_server_before_its_own_reports(node: Node, tmp_path: Path) -> None:
    """Afterward, another node can claim it: it was moved there after the backup."""
    await have_all(node)
    path = await back_up(node.cell, tmp_path)
    await node.cell.raw("FLUSHALL")
    await put_back(node.cell, path)
    other = node_store(node.cell.redis, node="n2", machine="m2")
    for store in (other, node.cell.node):
        assert await store.take_lease(seconds=60) is None
    server = ReportedServer(id=SERVER, account_id=ACCOUNT, name="web-server-01", power="on")
    assert (await other.report([server])).conflicts == {SERVER}
    assert (await node.cell.node.report([])).gone == {SERVER}
    assert (await other.report([server])).fresh == {SERVER}


@pytest.mark.parametrize("nodes_first", [False, True])
async def test_no_snapshot_expires_at_once(node: Node, tmp_path: Path, nodes_first: bool) -> None:
    """Its owner may have extended it after the backup."""
    snapshot_id = await node.create("kept")
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    await node.cell.store.edit(account_id=ACCOUNT, snapshot_id=snapshot_id, edit=Edit(expires_at=expires_at))
    path = await back_up(node.cell, tmp_path)
    await lose_redis_data(node)
    if nodes_first:
        await report(node)
    await put_back(node.cell, path)
    await report(node)
    snapshot = await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=snapshot_id)
    assert snapshot.expires_at
    assert snapshot.expires_at > datetime.now(UTC) + timedelta(days=6)


@pytest.mark.parametrize("nodes_first", [False, True])
async def test_a_snapshot_whose_expiry_was_taken_away_is_published(
    node: Node, tmp_path: Path, nodes_first: bool
) -> None:
    snapshot_id = await node.create("kept")
    edits = (
        Edit(expires_at=datetime.now(UTC) + timedelta(hours=1)),
        Edit(labels={"team": "web"}, protected=True, expires_at="never"),
    )
    for edit in edits:
        await node.cell.store.edit(account_id=ACCOUNT, snapshot_id=snapshot_id, edit=edit)
    path = await back_up(node.cell, tmp_path)
    await lose_redis_data(node)
    if nodes_first:
        await report(node)
    await put_back(node.cell, path)
    await report(node)
    snapshot = await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=snapshot_id)
    assert (dict(snapshot.labels), snapshot.protected, snapshot.expires_at) == ({"team": "web"}, True, None)
    assert await node.cell.raw("ZCARD", "snapshots:expiring") == 0


async def test_a_token_that_has_ended_meanwhile_does_not_come_back(node: Node, tmp_path: Path) -> None:
    await have_all(node)
    path = await back_up(node.cell, tmp_path)
    await lose_redis_data(node)
    ten_days = 10 * 86_400_000
    found = BackupFile.open(path, identity=None)
    written = await Restore(node.cell.redis).records(found, now_ms=found.made_ms + ten_days)
    assert (written["token"], written["credential"]) == (0, 1)


async def test_an_unreadable_record_does_not_exclude_others(node: Node, tmp_path: Path) -> None:
    snapshot_id, secrets = await have_all(node)
    before = await known(node, snapshot_id, secrets)
    await node.cell.raw("HSET", f"schedule:{'0' * 32}", b"\xff", b"\xff")
    await node.cell.raw("XADD", "audit", "*", "seq", "some text", "chain", "")
    before["audit"] = await node.cell.raw("XRANGE", "audit", "-", "+")
    path = await back_up(node.cell, tmp_path)
    await lose_redis_data(node)
    await put_back(node.cell, path)
    await report(node)
    assert await known(node, snapshot_id, secrets) == before


async def test_an_unreadable_head_omits_no_entry(node: Node, tmp_path: Path) -> None:
    await have_all(node)
    await node.cell.raw("HSET", "audit:head", "seq", "some text")
    path = await back_up(node.cell, tmp_path)
    assert sum(row["kind"] == "audit" for row in BackupFile.open(path, identity=None).rows()) == 250


async def test_an_unreadable_audit_entry_does_not_exclude_others(node: Node, tmp_path: Path) -> None:
    await have_all(node)
    await node.cell.raw("XADD", "audit", "*", "seq", b"\xff")
    await node.cell.raw("XADD", "audit", "*", "seq", "soon")
    path = await back_up(node.cell, tmp_path)
    assert [kind for kind, _ in names(path, None)].count("audit") == 251  # including the one without a number
    operators = OperatorStore(node.cell.redis, node.cell.store)
    assert {one.key.split()[0] for one in await operators.unreadable()} == {"audit"}


class TestTheFile:
    @pytest.fixture
    async def path(self, node: Node, tmp_path: Path) -> Path:
        await have_all(node)
        return await back_up(node.cell, tmp_path)

    def test_only_its_owner_can_read_it(self, path: Path) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []

    @pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
    def test_one_that_was_cut_off_is_refused(self, path: Path, part: float) -> None:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
        with pytest.raises(BackupUnusable):
            BackupFile.open(path, identity=None)

    def test_one_that_was_changed_is_refused(self, path: Path) -> None:
        text = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(text.replace(b"anna", b"eve")))
        with pytest.raises(BackupUnusable, match="damaged"):
            BackupFile.open(path, identity=None)

    def test_one_with_wrong_bytes_is_refused(self, path: Path) -> None:
        whole = path.read_bytes()
        for place in range(20, len(whole) - 8, len(whole) // 20):
            path.write_bytes(whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :])
            with pytest.raises(BackupUnusable, match=r"damaged|invalid row"):
                BackupFile.open(path, identity=None)

    def test_one_of_a_later_release_is_refused(self, path: Path) -> None:
        text = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(text.replace(b'"vps_snapshots_backup":1', b'"vps_snapshots_backup":2')))
        with pytest.raises(BackupUnusable, match="it has version 2; this program reads 1"):
            BackupFile.open(path, identity=None)

    @pytest.mark.parametrize("place", [12, 30, 60, 120, 250])
    def test_a_bit_that_changed_on_the_disk_is_noticed(self, path: Path, place: int) -> None:
        held = bytearray(path.read_bytes())
        held[place] ^= 0x5A
        path.write_bytes(held)
        with pytest.raises(BackupUnusable):
            BackupFile.open(path, identity=None)

    async def test_two_at_once_are_both_whole(self, node: Node, path: Path) -> None:
        """Each has its own file until it is complete."""
        both_write = asyncio.Barrier(2)

        async def one() -> None:
            async def rows() -> AsyncIterator[Row]:
                await both_write.wait()
                async for row in Backup(node.cell.redis).records():
                    yield row

            await write(path, rows(), made_ms=1, last_id="", recipient=None)
            BackupFile.open(path, identity=None)

        await asyncio.gather(one(), one())
        assert [file.name for file in path.parent.iterdir() if file.name.endswith(".new")] == []

    async def test_one_that_names_another_key_is_refused(self, node: Node, tmp_path: Path) -> None:
        async def forged() -> AsyncIterator[Row]:
            yield {"kind": "token", "key": "tokens", "record": {"id": "x", "account": ""}}

        path = tmp_path / "forged"
        await write(path, forged(), made_ms=0, last_id="", recipient=None)
        with pytest.raises(BackupUnusable, match="a row of kind 'token' for the key 'tokens'"):
            await put_back(node.cell, path)

    async def test_a_full_disk_leaves_the_former_one(self, node: Node, path: Path) -> None:
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                await back_up(node.cell, path.parent)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir() if file.name.endswith(".new")] == []

    async def test_it_is_encrypted_for_whoever_has_the_key(self, node: Node, path: Path) -> None:
        needs("age")
        keys = [path.parent / "key", path.parent / "other"]
        recipient, _ = [key_pair(key) for key in keys]
        plain = names(path, None)
        await back_up(node.cell, path.parent, recipient=recipient)
        assert b"anna" not in path.read_bytes()
        assert names(path, keys[0]) == plain
        for identity in (None, keys[1]):
            with pytest.raises(BackupUnusable):
                BackupFile.open(path, identity=identity)
        with pytest.raises(OSError, match=r"age|Broken pipe"):
            await back_up(node.cell, path.parent, recipient="age1nobody")


HEAD = b'{"vps_snapshots_backup":1,"made_ms":5,"last_id":""}'
SERVER_ROW = b'{"kind":"server","key":"server:1","record":{"account":"7"}}'


def forged(path: Path, *lines: bytes) -> Path:
    """A file with these lines and a valid end."""
    text = b"".join(line + b"\n" for line in lines)
    end = json.dumps({"rows": len(lines) - 1, "sha256": hashlib.sha256(text).hexdigest()}).encode()
    path.write_bytes(gzip.compress(text + end, compresslevel=1))
    return path


@pytest.mark.parametrize(
    "lines",
    [
        (HEAD.replace(b"5", b'"x"'),),
        (HEAD.replace(b"5", b"1e999"),),
        (HEAD.replace(b'"made_ms":5,', b""),),
        (b"[" * 100_000,),
        (HEAD, b"[" * 100_000),
        (HEAD, b"x" * (LINE_BYTES + 1)),
        (HEAD, b"{}"),
        (HEAD, SERVER_ROW.replace(b'"server",', b'["server"],')),
        (HEAD, SERVER_ROW.replace(b'"server:1"', b"1")),
        (HEAD, SERVER_ROW.replace(b'"server:1"', b'"server:1\\u0000"')),
        (HEAD, SERVER_ROW.replace(b'"7"', b"7")),
        (HEAD, SERVER_ROW.replace(b'"7"', b"null")),
        (HEAD, SERVER_ROW[:-1] + b',"lifetime_ms":1e300}'),
        (HEAD, SERVER_ROW[:-1] + b',"lifetime_ms":-1}'),
        (HEAD, b'{"kind":"audit","record":{"seq":"1"},"id":"99999999999999999999-0"}'),
        (HEAD, b'{"kind":"audit_head","record":[]}'),
    ],
)
def test_a_file_with_rows_that_no_backup_has_is_refused_before_anything_is_written(
    tmp_path: Path, lines: tuple[bytes, ...]
) -> None:
    BackupFile.open(forged(tmp_path / "good", HEAD, SERVER_ROW), identity=None)
    with pytest.raises(BackupUnusable):
        BackupFile.open(forged(tmp_path / "forged", *lines), identity=None)


def names(path: Path, identity: Path | None) -> list[tuple[str, str]]:
    """The kinds and names in a backup."""
    return [(row["kind"], row.get("key", "")) for row in BackupFile.open(path, identity=identity).rows()]


def key_pair(secret: Path) -> str:
    """Write a secret age key. Returns its public key."""
    subprocess.run(["age-keygen", "--output", secret], check=True, capture_output=True)
    shown = subprocess.run(["age-keygen", "-y", secret], check=True, capture_output=True, text=True)
    return shown.stdout.strip()


def program(cell_url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VPS_SNAPSHOTS_REDIS__URL": cell_url}
    return subprocess.run([PROGRAM, *arguments], env=environment, capture_output=True, text=True, check=False)


async def test_the_commands(node: Node, redis_server: RedisServer, tmp_path: Path) -> None:
    snapshot_id, secrets = await have_all(node)
    before = await known(node, snapshot_id, secrets)
    for name in ("vps-snapshots-20250101T000000Z.backup", "vps-snapshots-20250102T000000Z.backup"):
        (tmp_path / name).touch()
    await Backup(node.cell.redis).made(1)  # those
    killed, being_written = (tmp_path / f".vps-snapshots-20250103T000000Z.backup.{one}.new" for one in "ab")
    also_killed = tmp_path / "..vps-snapshots-life.a.new"
    for file in (killed, also_killed):
        file.touch()
        os.utime(file, (0, 0))
    being_written.touch()
    done = program(f"unix://{redis_server.socket}", "backup", tmp_path, "--keep", "2")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert (await CellNumbers(node.cell.redis).numbers()).backup_made > datetime.now(UTC).timestamp() - 3600
    assert sorted(file.name for file in tmp_path.glob("*.backup")) == [
        "vps-snapshots-20250102T000000Z.backup",
        path.name,
    ]
    assert (killed.exists(), also_killed.exists(), being_written.exists()) == (False, False, True)

    refused = program(f"unix://{redis_server.socket}", "restore", path)
    assert (refused.returncode, "Redis has tokens" in refused.stderr) == (1, True)
    await lose_redis_data(node)
    audited = program(f"unix://{redis_server.socket}", "restore", path, "--audit")
    assert (audited.returncode, audited.stderr) == (0, "250 entries of the audit log restored\n")
    done = program(f"unix://{redis_server.socket}", "restore", path)
    assert done.returncode == 0, done.stderr
    assert "token       1" in done.stdout
    await report(node)
    after = await known(node, snapshot_id, secrets)
    for part in ("audit", "head"):  # the restore itself adds an entry
        del before[part], after[part]
    assert after == before
    (hook,) = await Webhooks(node.cell.redis).all(account_id=ACCOUNT)
    await Webhooks(node.cell.redis).drop(account_id=ACCOUNT, webhook_id=hook.id)
    merged = program(f"unix://{redis_server.socket}", "restore", path, "--merge")
    assert (merged.returncode, "missing records were deleted on purpose" in merged.stderr) == (0, True)
    assert not await Webhooks(node.cell.redis).all(account_id=ACCOUNT)
    merged = program(f"unix://{redis_server.socket}", "restore", path, "--merge", "--removed")
    assert (merged.returncode, merged.stderr) == (0, "")
    assert await Webhooks(node.cell.redis).all(account_id=ACCOUNT) == (hook,)
    again = program(f"unix://{redis_server.socket}", "restore", path, "--audit")
    assert (again.returncode, "only an empty one can be restored" in again.stderr) == (1, True)


@pytest.mark.parametrize("emergency", [False, True], ids=["what nodes published", "and a new token"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["one folder", "after a backup to another folder"])
async def test_what_is_left_after_a_loss_does_not_become_the_newest_backup(
    node: Node, redis_server: RedisServer, tmp_path: Path, emergency: bool, elsewhere: bool
) -> None:
    """It would be restored in place of the last one that has the data."""
    url, folder = f"unix://{redis_server.socket}", tmp_path / "nightly"
    folder.mkdir()
    snapshot_id, secrets = await have_all(node)
    before = await known(node, snapshot_id, secrets)
    good = Path(program(url, "backup", folder).stdout.strip())
    await lose_redis_data(node)
    await report(node)
    if emergency:
        new = await Tokens(node.cell.redis).create(
            name="new", account_id=None, permissions=frozenset({Permission.OPERATOR}), lifetime=None
        )
    if elsewhere:
        (tmp_path / "other").mkdir()
        assert program(url, "backup", tmp_path / "other").returncode == (0 if emergency else 1)
    made = (await CellNumbers(node.cell.redis).numbers()).backup_made

    for _ in range(2):  # each night
        refused = program(url, "backup", folder, "--keep", "1")
        assert (refused.returncode, "Redis has lost" in refused.stderr) == (1, True), refused
    assert [*folder.glob("*backup*")] == [good]
    assert (await CellNumbers(node.cell.redis).numbers()).backup_made == made

    done = program(url, "restore", good, *(["--merge"] if emergency else []))
    assert (done.returncode, "lost nothing" in done.stderr) == (0, False), done.stderr
    await report(node)
    if emergency:
        await Tokens(node.cell.redis).revoke(new.token.id)
    after = await known(node, snapshot_id, secrets)
    for part in ("audit", "head", "snapshot"):  # not restored; the restore's own entry; as its node published it
        del before[part], after[part]
    assert after == before
    assert program(url, "backup", folder).returncode == 0


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return f"unix://{redis_server.socket}"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders for backups."""
    for name in ("nightly", "other"):
        (tmp_path / name).mkdir()
    return tmp_path / "nightly", tmp_path / "other"


def backed_up(url: str, folder: Path) -> Path:
    done = program(url, "backup", folder)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def restored(url: str, *arguments: str | Path) -> None:
    done = program(url, "restore", *arguments)
    assert done.returncode == 0, done.stderr


def is_refused(url: str, folder: Path) -> bool:
    done = program(url, "backup", folder)
    assert done.returncode == ("Redis has lost" in done.stderr), done.stderr
    return done.returncode == 1


async def lose_all(cell: Cell) -> None:
    """Redis loses its data, and an operator creates a token."""
    await cell.raw("FLUSHALL")
    await Tokens(cell.redis).create(
        name="new", account_id=None, permissions=frozenset({Permission.OPERATOR}), lifetime=None
    )


def without_life(path: Path) -> Path:
    """As an older release wrote it."""
    lines = gzip.decompress(path.read_bytes()).splitlines()
    head = {name: what for name, what in json.loads(lines[0]).items() if name not in {"life", "merged"}}
    (path.parent / ".vps-snapshots-life").unlink()
    return forged(path, json.dumps(head).encode(), *lines[1:-1])


async def test_after_a_merge_backups_go_on_to_the_folders_of_both(
    cell: Cell, url: str, folders: tuple[Path, Path]
) -> None:
    """The data of the backup that was made between the loss and the restore was not lost."""
    nightly, other = folders
    await lose_all(cell)
    old = backed_up(url, nightly)
    await lose_all(cell)
    new = backed_up(url, other)
    restored(url, old, "--merge")
    restored(url, new, "--merge")  # again the other way round
    for folder in (other, nightly, other):
        assert not is_refused(url, folder)
    await lose_all(cell)
    assert is_refused(url, nightly)
    assert is_refused(url, other)


async def test_a_backup_after_a_merge_has_the_data_of_both(cell: Cell, url: str, folders: tuple[Path, Path]) -> None:
    nightly, other = folders
    await lose_all(cell)
    old = backed_up(url, nightly)
    await lose_all(cell)
    backed_up(url, other)
    restored(url, old, "--merge")
    merged = backed_up(url, nightly)
    await cell.raw("FLUSHALL")
    restored(url, merged)
    for folder in folders:
        assert not is_refused(url, folder)
    await lose_all(cell)
    for folder in folders:
        assert is_refused(url, folder)


@pytest.mark.parametrize("merge", [False, True], ids=["into an empty Redis", "merged"])
async def test_a_restored_backup_of_a_release_without_an_id_is_followed_by_others(
    cell: Cell, url: str, folders: tuple[Path, Path], merge: bool
) -> None:
    nightly, other = folders
    await lose_all(cell)
    old = without_life(backed_up(url, nightly))
    if merge:
        await lose_all(cell)
        assert is_refused(url, nightly)
        backed_up(url, other)
    else:
        await cell.raw("FLUSHALL")
    restored(url, old, *(["--merge"] if merge else []))
    for folder in (nightly, other):
        assert not is_refused(url, folder)
    await lose_all(cell)
    for folder in (nightly, other):
        assert is_refused(url, folder)


async def test_a_merge_by_an_older_release_and_its_folder_are_known(
    cell: Cell, url: str, folders: tuple[Path, Path]
) -> None:
    """An older release reads the ID of the file that was restored last, and knows no other."""
    nightly, other = folders
    await lose_all(cell)
    old = backed_up(url, nightly)
    await lose_all(cell)
    backed_up(url, other)
    restored(url, old, "--merge")
    assert (await cell.raw("GET", "backups:life")).decode() == (nightly / ".vps-snapshots-life").read_text()
    await cell.raw("DEL", "backups:merged")  # as an older release leaves it
    assert not is_refused(url, nightly)
    assert is_refused(url, other)


@pytest.mark.parametrize("cause", TROUBLES)
async def test_redis_that_accepts_no_writes_is_backed_up_each_night(
    cell: Cell, redis_server: RedisServer, url: str, folders: tuple[Path, Path], cause: str
) -> None:
    """It gets no ID, so a later loss is known only by what else a backup leaves."""
    nightly, _ = folders
    await lose_all(cell)
    async with TROUBLES[cause](cell.redis, redis_server):
        for _ in range(2):
            assert not is_refused(url, nightly)
    assert not await cell.raw("EXISTS", "backups:life")
    await lose_all(cell)
    assert is_refused(url, nightly)


def on_full_disk(url: str, folder: Path, *, files: int) -> subprocess.CompletedProcess[str]:
    """Back up to a file system that has room for this number of files. The program's output ends with their names."""
    shell = """mount -t tmpfs -o nr_inodes=$1 tmpfs "$2" && { "$3" backup "$2"; code=$?; ls -A "$2"; exit $code; }"""
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", str(files + 1), str(folder), str(PROGRAM)]
    environment = {**os.environ, "VPS_SNAPSHOTS_REDIS__URL": url}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


async def test_a_backup_whose_id_has_no_room_is_made(cell: Cell, url: str, folders: tuple[Path, Path]) -> None:
    if os.getuid():
        lacking("only root may mount")
    nightly, _ = folders
    await lose_all(cell)
    done = on_full_disk(url, nightly, files=1)
    path, *files = done.stdout.splitlines()
    assert (done.returncode, files) == (1, [Path(path).name])
    assert "the backup was written, but .vps-snapshots-life was not" in done.stderr
    assert "No space left on device" in done.stderr
    assert (await CellNumbers(cell.redis).numbers()).backup_made > 0

    done = on_full_disk(url, nightly, files=0)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the backup was not written" in done.stderr


async def test_an_old_backup_that_cannot_be_deleted_is_told(cell: Cell, url: str, folders: tuple[Path, Path]) -> None:
    nightly, _ = folders
    await lose_all(cell)
    await Backup(cell.redis).made(1)
    (nightly / "vps-snapshots-20250101T000000Z.backup").mkdir()
    done = program(url, "backup", nightly, "--keep", "1")
    assert done.returncode == 1
    assert "the backup was written, but old ones are left: [Errno 21] Is a directory" in done.stderr
    assert Path(done.stdout.strip()).is_file()
    assert (nightly / ".vps-snapshots-life").read_bytes() == await cell.raw("GET", "backups:life")


@pytest.mark.parametrize("life", ["", "another"])
async def test_an_id_that_was_left_in_an_empty_folder_is_not_believed(
    cell: Cell, url: str, folders: tuple[Path, Path], life: str
) -> None:
    """The ID is replaced at once, never emptied, so that one that was linked to is as before."""
    nightly, other = folders
    await lose_all(cell)
    (nightly / ".vps-snapshots-life").write_text(life)
    (other / "link").hardlink_to(nightly / ".vps-snapshots-life")
    for _ in range(2):
        assert not is_refused(url, nightly)
    assert (other / "link").read_text() == life


async def test_an_empty_id_does_not_end_the_refusals(cell: Cell, url: str, folders: tuple[Path, Path]) -> None:
    """An older release left an empty file on a full disk."""
    nightly, _ = folders
    await lose_all(cell)
    backed_up(url, nightly)
    (nightly / ".vps-snapshots-life").write_text("")
    assert not is_refused(url, nightly)
    (nightly / ".vps-snapshots-life").write_text("")
    await lose_all(cell)
    assert is_refused(url, nightly)


async def test_a_backup_that_would_hold_no_token_is_refused(
    node: Node, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Also by a folder that has no other backup."""
    await node.create("kept")
    refused = program(f"unix://{redis_server.socket}", "backup", tmp_path)
    assert (refused.returncode, "Redis has no tokens" in refused.stderr) == (1, True), refused
    assert [*tmp_path.glob("*backup*")] == []
    assert (await CellNumbers(node.cell.redis).numbers()).backup_made == 0


async def test_a_backup_during_which_redis_loses_its_data_is_refused(node: Node) -> None:
    await have_all(node)
    backup = Backup(node.cell.redis)
    rows = backup.all(life=await backup.life(), audit=True)
    await anext(rows)
    await node.cell.raw("FLUSHALL")
    with pytest.raises(DataLost, match="during the backup"):
        async for _ in rows:
            pass


async def test_whoever_moves_the_old_backups_away_goes_on_without_them(
    node: Node, redis_server: RedisServer, tmp_path: Path
) -> None:
    url, folder = f"unix://{redis_server.socket}", tmp_path / "nightly"
    folder.mkdir()
    await have_all(node)
    old = Path(program(url, "backup", folder).stdout.strip())
    await lose_redis_data(node)
    await Tokens(node.cell.redis).create(
        name="new", account_id=None, permissions=frozenset({Permission.OPERATOR}), lifetime=None
    )
    assert program(url, "backup", folder).returncode == 1
    old.rename(tmp_path / old.name)
    for _ in range(2):
        done = program(url, "backup", folder)
        assert done.returncode == 0, done.stderr


async def test_a_backup_of_a_release_without_an_id_is_followed_by_others(
    node: Node, redis_server: RedisServer, tmp_path: Path
) -> None:
    await have_all(node)
    (tmp_path / "vps-snapshots-20250101T000000Z.backup").touch()
    await Backup(node.cell.redis).made(1)
    assert program(f"unix://{redis_server.socket}", "backup", tmp_path).returncode == 0


async def test_a_backup_without_tokens_is_not_restored_without_a_question(
    node: Node, redis_server: RedisServer, tmp_path: Path
) -> None:
    """An older release made such files after a loss."""
    url = f"unix://{redis_server.socket}"
    row = SERVER_ROW.replace(b'"7"', b'"7","node":"n1"')
    path = forged(tmp_path / "one.backup", HEAD, row)
    refused = program(url, "restore", path)
    assert (refused.returncode, "it has no tokens" in refused.stderr) == (1, True), refused
    assert program(url, "restore", path, "--merge").returncode == 0


async def test_a_line_of_the_file_is_json(tmp_path: Path) -> None:
    """So that a person can read it: `zcat FILE | jq`."""

    async def one() -> AsyncIterator[Row]:
        yield {"kind": "server", "key": "server:1", "record": {"account": "7"}}

    await write(tmp_path / "b", one(), made_ms=5, last_id="9", recipient=None)
    lines = [json.loads(line) for line in gzip.decompress((tmp_path / "b").read_bytes()).splitlines()]
    assert lines[0] == {"vps_snapshots_backup": 1, "made_ms": 5, "last_id": "9", "life": ""}
    assert lines[2]["rows"] == 1
