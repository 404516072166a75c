"""Servers with snapshots that move between two nodes with plain virsh, with processes killed meanwhile."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from deploy.lab.domain import UEFI_VARIABLES
from tests.conftest import RedisServer, lacking, needs, needs_module, needs_root
from tests.libvirtd import PROGRAMS
from tests.queueing import until_told

libvirt = needs_module("libvirt")

from drivers.kvm import listing, records  # noqa: E402 - only where there is a libvirt
from drivers.kvm.places import SYSTEM  # noqa: E402
from tests.migrating import ACCOUNT, NAME, SERVER, Two, two_nodes  # noqa: E402 - only where there is a libvirt
from worker.store.errors import ServerOnLiveNode  # noqa: E402
from worker.store.model import JobState, SnapshotStatus  # noqa: E402
from worker.store.operators.operator_store import OperatorStore  # noqa: E402

UNUSED = 0x40_000  # in a file of UEFI variables: the event log, which the firmware does not change
MARK_BYTES = 16


@pytest.fixture
async def undefined(redis_server: RedisServer, redis: Redis) -> AsyncIterator[Two]:
    for program in (*PROGRAMS, "virsh", "qemu-io"):
        needs(program)
    needs_root()
    async with two_nodes(redis_server, redis) as two:
        yield two


@pytest.fixture
async def two(undefined: Two) -> Two:
    await undefined.define()
    return undefined


@pytest.fixture
async def two_of_uefi(undefined: Two) -> Two:
    if not UEFI_VARIABLES.exists():
        lacking("the firmware for UEFI (Debian's ovmf) is not installed")
    await undefined.define(uefi=True)
    return undefined


def write_mark(variables: Path, mark: bytes) -> None:
    with variables.open("r+b") as file:
        file.seek(UNUSED)
        file.write(mark.ljust(MARK_BYTES))


def mark(variables: Path) -> bytes:
    with variables.open("rb") as file:
        file.seek(UNUSED)
        return file.read(MARK_BYTES).rstrip()


async def with_workers(two: Two) -> None:
    for node in (two.first, two.second):
        worker = await node.start_worker()
        await worker.says("worker.started")
    await two.until_on(two.first)


async def test_a_server_migrates_with_its_snapshots_its_undo_and_all_works_there(two: Two) -> None:
    await with_workers(two)
    two.first.ask("create")
    before = await two.created("before")
    two.written(two.first, "B")
    restored = await two.restored(before.id)
    assert (restored.state, two.text(two.first)) == (JobState.COMPLETED, "A")

    assert await two.migrate() == ""
    await two.until_on(two.second)
    for node in (two.first, two.second):
        assert node.worker is not None
        assert not node.worker.has_said("inventory.server_on_two_nodes")

    assert await two.snapshot(before.id) == before
    undone = await two.undone(restored.id)
    assert (undone.failure, two.text(two.second)) == (None, "B")
    later = await two.created("later")
    again = await two.restored(before.id)
    assert (again.failure, two.text(two.second)) == (None, "A")
    await two.deleted(before.id)
    await two.deleted(later.id)
    for snapshot in (before, later):
        assert f'tag="vps-{snapshot.id}"' not in two.second.ask("XMLDesc", 0)
    # and back
    kept = await two.created("kept")
    assert await two.migrate(back=True) == ""
    await two.until_on(two.first)
    assert await two.snapshot(kept.id) == kept
    assert (await two.restored(kept.id)).failure is None
    for node in (two.first, two.second):
        assert node.worker is not None
        errors = [line for line in node.worker.lines if json.loads(line)["level"] in {"error", "critical"}]
        assert errors == []


@pytest.mark.parametrize("the_source", ["comes back", "has failed"])
async def test_it_migrates_while_no_worker_runs(two: Two, the_source: str) -> None:
    worker = await two.first.start_worker()
    await worker.says("worker.started")
    await two.until_on(two.first)
    two.first.ask("create")
    before = await two.created("before")
    worker.signal(signal.SIGTERM)
    await worker.process.wait()

    assert await two.migrate() == ""
    target = await two.second.start_worker()
    await target.says("worker.started")
    if the_source == "comes back":
        await two.first.worker_ends()
        await two.first.start_worker()
    else:
        operators = OperatorStore(two.redis, two.store)

        async def is_there() -> bool:
            return bool(await two.redis.sismember("nodes", "n2"))  # type: ignore[misc] # redis-py's gap

        await until_told(is_there)
        with pytest.raises(ServerOnLiveNode):
            await operators.place(SERVER, node="n2")
        await two.redis.hset("node:n1", "heartbeat_ms", "1")  # type: ignore[misc] # redis-py's gap
        await operators.place(SERVER, node="n2")
    await two.until_on(two.second)

    assert await two.snapshot(before.id) == before
    assert (await two.restored(before.id)).failure is None


async def test_records_in_libvirts_list_are_moved_and_the_server_migrates(two: Two) -> None:
    worker = await two.first.start_worker()
    await worker.says("worker.started")
    await two.until_on(two.first)
    two.first.ask("create")
    before = await two.created("before")
    await two.first.worker_ends()
    as_older_versions_do(two)
    assert "cannot migrate" in await two.migrate()
    await with_workers(two)
    async with asyncio.timeout(60):
        while await asyncio.to_thread(two.first.ask, "listAllSnapshots", 0):
            pass
    assert await two.migrate() == ""
    await two.until_on(two.second)
    assert await two.snapshot(before.id) == before
    assert (await two.restored(before.id)).failure is None


async def test_a_definition_left_behind_does_not_block_the_new_node(two: Two) -> None:
    await with_workers(two)
    two.first.ask("create")
    before = await two.created("before")
    assert await two.migrate("--live", "--persistent", "--unsafe") == ""
    await two.until_on(two.second)
    assert (await two.restored(before.id)).failure is None
    assert two.first.has_it(running=False)


def as_older_versions_do(two: Two) -> None:
    connection = libvirt.open(two.first.daemon.uri)
    domain = connection.lookupByName(NAME)
    for tag, record in listing.written_down(domain, SYSTEM).records.items():
        listing.list_for_people(domain, record.spec, SYSTEM)
        assert tag in [one.getName() for one in domain.listAllSnapshots(0)]
    both = libvirt.VIR_DOMAIN_AFFECT_CONFIG | libvirt.VIR_DOMAIN_AFFECT_LIVE
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, records.NAMESPACE, both)
    connection.close()


async def test_no_migration_starts_while_a_job_is_running(two: Two) -> None:
    await two.first.start_worker(GRACE_SECONDS="60")  # this guest ignores shutdown requests
    await two.second.start_worker()
    await two.until_on(two.first)
    two.first.ask("create")
    admitted = await two.store.create(account_id=ACCOUNT, server_id=SERVER, name="x", description="", request_id="r")
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(two.first.ask, "listAllSnapshots", 0):
            pass
    for flags in (("--live", "--persistent", "--unsafe"), ("--offline", "--persistent", "--undefinesource")):
        assert "cannot migrate domain with 1 snapshots" in await two.migrate(*flags)
    two.first.ask("destroy")  # ends the stop
    assert (await two.over(admitted.job.id)).failure is None
    assert await two.migrate() == ""
    await two.until_on(two.second)


async def test_a_server_that_is_defined_anew_while_its_worker_is_dead_is_brought_up_again(two: Two) -> None:
    await two.first.start_worker(GRACE_SECONDS="60")  # this guest ignores shutdown requests: killed in the stop
    await two.until_on(two.first)
    two.first.ask("create")
    admitted = await two.store.create(account_id=ACCOUNT, server_id=SERVER, name="x", description="", request_id="r")
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(two.first.ask, "listAllSnapshots", 0):
            pass
    await two.first.worker_ends()
    two.first.ask("destroy")
    two.define_without_mark()
    await two.first.start_worker()
    job = await two.over(admitted.job.id)
    assert (job.state, job.failure) == (JobState.COMPLETED, None)
    assert two.first.has_it()
    assert two.first.ask("listAllSnapshots", 0) == []  # it has been released


async def test_a_job_that_comes_while_it_migrates_is_refused_and_nothing_is_changed(two: Two) -> None:
    await with_workers(two)
    two.first.ask("create")
    before = await two.created("before")
    migration = await two.slowly()
    failed = await two.restored(before.id)
    assert migration.poll() is None, "it was over before the job"
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.stranded) == ("server_busy", False)
    assert "migrated" in failed.failure.detail
    assert await asyncio.to_thread(migration.wait) == 0
    await two.until_on(two.second)
    assert (await two.restored(before.id)).failure is None


async def test_one_that_is_cancelled_leaves_all_as_it_was(two: Two) -> None:
    await with_workers(two)
    two.first.ask("create")
    before = await two.created("before")
    migration = await two.slowly()
    two.first.ask("abortJob")
    assert await asyncio.to_thread(migration.wait) != 0
    assert two.first.has_it()
    assert not two.second.has_it(running=False)
    await two.until_on(two.first)
    assert await two.snapshot(before.id) == before
    assert (await two.restored(before.id)).failure is None
    assert two.second.worker is not None
    assert not two.second.worker.has_said("reconcile.finding")


async def test_snapshots_on_storage_left_behind_are_reported_as_lost(two: Two) -> None:
    from deploy.lab.lab import make_disk  # noqa: PLC0415

    await with_workers(two)
    two.first.ask("create")
    before = await two.created("before")
    other = make_disk(two.folder / "d" / "other.qcow2")
    xml = two.folder / "other.xml"
    xml.write_text(two.first.ask("XMLDesc", libvirt.VIR_DOMAIN_XML_MIGRATABLE).replace(str(two.path), str(other)))
    persistent = two.folder / "persistent.xml"
    persistent.write_text(
        two.first.ask("XMLDesc", libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_INACTIVE).replace(
            str(two.path), str(other)
        )
    )
    flags = (
        "--live",
        "--persistent",
        "--undefinesource",
        "--copy-storage-all",
        "--disks-uri",
        f"unix://{two.folder}/n",
    )
    told = await two.migrate(*flags, "--xml", str(xml), "--persistent-xml", str(persistent))
    assert told == ""
    await two.until_on(two.second)
    async with asyncio.timeout(60):
        while (await two.snapshot(before.id)).status is not SnapshotStatus.FAILED:  # noqa: ASYNC110 - what another process does
            await asyncio.sleep(0.05)
    assert two.second.worker is not None
    await two.second.worker.says("reconcile.finding", finding="lost_snapshot")
    lost = [line for line in two.second.worker.lines if '"lost_snapshot"' in line]
    assert any("disk vda" in line for line in lost), lost  # the log has the reason
    assert (await two.created("after")).status is SnapshotStatus.COMPLETED


async def test_one_whose_qemu_dies_on_the_new_node_leaves_all_as_it_was(two: Two) -> None:
    await with_workers(two)
    two.first.ask("create")
    before = await two.created("before")
    migration = await two.slowly()
    os.kill(await two.second.gets_it(), signal.SIGKILL)
    assert await asyncio.to_thread(migration.wait) != 0
    assert two.first.has_it()
    assert not two.second.has_it(running=False)
    await two.until_on(two.first)
    assert await two.snapshot(before.id) == before
    restored = await two.restored(before.id)
    assert (restored.failure, two.text(two.first)) == (None, "A")


async def test_a_snapshots_uefi_variables_come_back_on_the_new_node(two_of_uefi: Two) -> None:
    two = two_of_uefi
    await with_workers(two)
    write_mark(two.nvram, b"of the snapshot")
    two.first.ask("create")
    before = await two.created("before")
    two.first.ask("destroy")
    write_mark(two.nvram, b"written since")
    two.first.ask("create")

    assert await two.migrate() == ""
    await two.until_on(two.second)
    shown = await two.snapshot(before.id)
    assert shown == before
    assert shown.contents is not None
    assert shown.contents.nvram
    restored = await two.restored(before.id)
    assert (restored.failure, mark(two.nvram)) == (None, b"of the snapshot")
    assert two.second.has_it()
    undone = await two.undone(restored.id)
    assert (undone.failure, mark(two.nvram)) == (None, b"written since")
    await two.deleted(before.id)
    assert not [path.name for path in two.path.parent.iterdir() if f"vps-{before.id}" in path.name]


class TestFence:
    async def test_no_second_worker_of_one_libvirt_starts_whatever_its_state_folder(self, two: Two) -> None:
        worker = await two.first.start_worker()
        await worker.says("worker.started")
        spelled = f"{two.first.daemon.uri.removesuffix('/libvirt-sock')}/../run//libvirt-sock"
        for _ in range(2):
            second = await two.second.start_worker(LIBVIRT_URI=spelled)
            assert await second.process.wait() == 2
            await two.second.worker_ends()
            assert f"is held by pid {worker.process.pid}" in two.second.said[-1]
            worker.signal(signal.SIGSTOP)  # for the second time
        worker.signal(signal.SIGCONT)
        await two.first.worker_ends()
        second = await two.second.start_worker(LIBVIRT_URI=spelled)
        await second.says("worker.started")
