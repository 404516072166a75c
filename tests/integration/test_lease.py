"""One worker per node: the lock file that the kernel releases, and the lease that all nodes can see."""

import asyncio
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.conftest import RedisServer, needs
from tests.integration.conftest import Cell, node_store
from tests.integration.counted import counted
from tests.queueing import PATIENCE_SECONDS, client, until
from worker import lease
from worker.lease import HypervisorLock, Lease, NodeLock, NodeTaken, machine_id, who_am_i
from worker.store.errors import StoreUnavailable
from worker.store.nodes.claims import LeaseLost
from worker.store.nodes.node_store import NodeStore

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from worker.lease import NodeLock
lock = NodeLock(Path(sys.argv[1]))
lock.take()
print("taken", flush=True)
time.sleep(3600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the folder's lock."""
    program = [sys.executable, "-c", HOLD_THE_LOCK, str(tmp_path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_node(
    holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    with pytest.raises(NodeTaken, match=f"held by pid {holder.pid} on "):
        NodeLock(tmp_path).take()
    with pytest.raises(NodeTaken, match=f"pid {holder.pid} "):  # the refused one has not written its own PID
        NodeLock(tmp_path).take()


def test_the_lock_of_a_killed_process_is_free_at_once(holder: subprocess.Popen[bytes], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    lock = NodeLock(tmp_path)
    lock.take()
    assert (tmp_path / "worker.lock").read_text() == who_am_i()
    lock.release()


def test_a_child_of_a_killed_process_blocks_the_next_one_until_it_ends(tmp_path: Path) -> None:
    orphaning = HOLD_THE_LOCK.replace("import sys,", "import subprocess, sys,").replace(
        "time.sleep(3600)",
        # cat runs until its input ends
        "subprocess.Popen(['cat'], close_fds=False)\nprint('child', flush=True)\ntime.sleep(3600)",
    )
    program = [sys.executable, "-c", orphaning, str(tmp_path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == [b"taken\n", b"child\n"]
        process.kill()
        process.wait()
        with pytest.raises(NodeTaken):
            NodeLock(tmp_path).take(orphan_seconds=0)
        process.stdin.close()
        lock = NodeLock(tmp_path)
        lock.take()
        lock.release()


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    first, second = NodeLock(tmp_path), NodeLock(tmp_path)
    first.take()
    with pytest.raises(NodeTaken):
        second.take()
    first.release()
    second.take()
    second.release()
    second.release()


def test_the_machine_is_the_same_for_workers_of_one_folder_only(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    assert machine_id(tmp_path) == machine_id(tmp_path / "link") != machine_id(tmp_path / "other")


class Told:
    """What the lease has reported to the rest of the worker."""

    def __init__(self, store: NodeStore) -> None:
        self.gained = 0
        self.lost = 0
        self.lease = Lease(store, gained=self._gain, lost=self._lose, heartbeat_seconds=0.05)

    async def _gain(self) -> None:
        self.gained += 1

    def _lose(self) -> None:
        self.lost += 1


@asynccontextmanager
async def kept(told: Told) -> AsyncIterator[None]:
    await told.lease.take_at_start()
    keeping = asyncio.create_task(told.lease.keep())
    try:
        yield
    finally:
        assert not keeping.done()
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


async def test_a_free_node_is_taken(redis: Redis) -> None:
    told = Told(node_store(redis))
    await told.lease.take_at_start()
    assert (told.gained, told.lost) == (1, 0)
    held = await node_store(redis, machine="m2", who="pid 9 on m2").take_lease(seconds=1)
    assert held is not None
    assert held.who == "pid 1 on m1"


async def test_a_node_with_a_worker_elsewhere_is_refused_and_the_holder_named(redis: Redis) -> None:
    await node_store(redis, machine="m2", who="pid 9 on m2").take_lease(seconds=60)
    told = Told(node_store(redis))
    with pytest.raises(NodeTaken, match=r"node n1 already has a worker: pid 9 on m2; its lease expires in \d+ s"):
        await told.lease.take_at_start()
    assert told.gained == 0


async def test_a_worker_that_is_started_again_on_the_same_machine_waits_for_nothing(redis: Redis) -> None:
    dead = node_store(redis, who="pid 1 on m1")
    await dead.take_lease(seconds=60)
    told = Told(node_store(redis, who="pid 2 on m1"))
    await told.lease.take_at_start()
    assert told.gained == 1
    with pytest.raises(LeaseLost):
        await dead.report([])


async def test_a_lease_that_ran_out_can_be_taken_from_elsewhere(redis: Redis) -> None:
    await node_store(redis, machine="m2").take_lease(seconds=0)
    told = Told(node_store(redis))
    await told.lease.take_at_start()
    assert told.gained == 1


async def test_a_lease_that_is_lost_pauses_and_one_that_is_ours_again_resumes(redis: Redis) -> None:
    ours = node_store(redis)
    other = node_store(redis, machine="m2", who="pid 9 on m2")
    told = Told(ours)
    async with kept(told):
        await ours.take_lease(seconds=0)  # as after a long silence
        while await other.take_lease(seconds=60) is not None:  # our heartbeats continue in between
            await ours.take_lease(seconds=0)
        await until(lambda: told.lost > 0)
        assert told.gained == 1
        with pytest.raises(LeaseLost):
            await ours.report([])
        await other.take_lease(seconds=0)
        await until(lambda: told.gained == 2)
        await ours.report([])


async def test_an_expired_lease_is_told_apart_from_a_kept_one(redis: Redis) -> None:
    lease = Told(node_store(redis)).lease
    before = lease.absences  # it has expired, as after a long sleep
    await lease.take_at_start()
    had_again = lease.absences
    await lease.take_at_start()
    assert before != had_again == lease.absences


async def test_a_worker_that_wakes_after_its_lease_went_to_another_knows_before_its_heart_beats(
    redis: Redis,
) -> None:
    ours = node_store(redis)
    told = Told(ours)
    await told.lease.take_at_start()
    assert await told.lease.still_ours()
    waking = Told(ours)  # a worker that is unsure of everything, as after a long sleep
    assert await waking.lease.still_ours()
    await ours.take_lease(seconds=0)
    assert await waking.lease.still_ours(), "nobody else has it"
    other = node_store(redis, machine="m2", who="pid 9 on m2")
    assert await other.take_lease(seconds=60) is None
    assert not await waking.lease.still_ours()
    assert (await ours.lease_holder()) is not None, "to ask takes nothing"
    await other.take_lease(seconds=0)
    assert await waking.lease.still_ours()


async def test_a_store_that_is_away_takes_no_lease_from_anyone(server: RedisServer) -> None:
    client = server.client()
    told = Told(node_store(client))
    server.kill()
    assert await told.lease.still_ours()
    await client.aclose(close_connection_pool=True)


async def test_a_holder_that_is_not_known_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has just taken the lock or has just released it."""
    tries = 0

    def counted_locked(file: int) -> bool:
        nonlocal tries
        tries += 1
        return locked(file)

    locked = lease._locked
    monkeypatch.setattr(lease, "_locked", counted_locked)
    with (tmp_path / "worker.lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(NodeTaken, match="an unknown process"):
            NodeLock(tmp_path).take(orphan_seconds=0)
        lock = NodeLock(tmp_path)
        before = tries
        taking = asyncio.create_task(asyncio.to_thread(lock.take))
        await until(lambda: taking.done() or tries >= before + 3)
        assert not taking.done()
    await taking
    lock.release()


class TestHypervisorLock:
    async def test_it_is_held_once_for_each_folder_and_names_its_holder(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "a")
        first, second = HypervisorLock(tmp_path / "a"), HypervisorLock(tmp_path / "link")
        first.take()
        with pytest.raises(NodeTaken, match=f"held by pid {os.getpid()}"):
            second.take()
        first.release()
        second.take()
        second.release()
        with pytest.raises(FileNotFoundError):
            HypervisorLock(tmp_path / "none").take()

    async def test_it_waits_for_the_children_of_a_dead_worker(self, tmp_path: Path) -> None:
        code = (
            "import subprocess, sys; from pathlib import Path; from worker.lease import HypervisorLock;"
            "HypervisorLock(Path(sys.argv[1])).take();"
            "subprocess.Popen(['cat'], close_fds=False)"  # until its input ends
        )
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(tmp_path), stdin=reading)
        os.close(reading)
        assert await process.wait() == 0
        lock = HypervisorLock(tmp_path)
        with pytest.raises(NodeTaken):
            lock.take(orphan_seconds=0)
        os.close(writing)
        lock.take()
        lock.release()


async def test_giving_back_lets_the_next_take_it_at_once(redis: Redis) -> None:
    told = Told(node_store(redis))
    await told.lease.take_at_start()
    await told.lease.give_back()
    assert await node_store(redis, machine="m2").take_lease(seconds=60) is None


async def test_giving_back_a_lease_that_was_lost_leaves_it_to_its_holder(cell: Cell, redis: Redis) -> None:
    told = Told(node_store(redis, machine="m2"))
    with pytest.raises(NodeTaken):
        await told.lease.take_at_start()
    await told.lease.give_back()
    await cell.node.report([])


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder))
        yield server
        server.kill()


async def test_a_worker_that_starts_before_redis_takes_its_lease_when_redis_comes(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RETRY_SECONDS", 0.01)
    async with client(server.socket) as redis:
        store, calls = counted(node_store(redis))
        told = Told(store)
        with capture_logs() as lines:
            taking = asyncio.create_task(told.lease.take_at_start())
            await until(lambda: taking.done() or calls.ended["take_lease"] >= 3)
            assert not taking.done()
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await taking
        assert [line["event"] for line in lines].count("lease.store_unavailable") == 1
        assert told.gained == 1


async def test_a_lease_outlives_redis_and_its_loss_of_all_data(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RETRY_SECONDS", 0.01)
    server.start()
    async with client(server.socket) as redis:
        ours, calls = counted(node_store(redis))
        told = Told(ours)
        async with kept(told):
            server.kill()
            server.lose_data()
            with pytest.raises(StoreUnavailable):
                await ours.take_lease(seconds=60)
            await told.lease.give_back()  # no error either
            before = calls.ended["take_lease"]
            await until(lambda: calls.ended["take_lease"] >= before + 3)  # some heartbeats fail
            await asyncio.to_thread(server.start)
            await until(lambda: told.gained == 2)  # everything is reported again
            await ours.report([])
