"""The current code works with libvirt's files, the images and the journal that commit 0a79ed0 left on a node."""

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.compat.recorded import Recorded
from tests.compat.recording import unpack
from tests.conftest import needs, needs_module, needs_root
from tests.libvirtd import PROGRAMS, Daemon
from tests.queueing import until_told
from tests.worker_process import worker_process

libvirt = needs_module("libvirt")

from drivers.kvm import KvmHypervisor  # noqa: E402 - only where there is a libvirt
from tests.contract.kvm_bench import qemu_img, read_text  # noqa: E402

SERVERS = {"plain": (12_201, 2), "uefi": (12_202, 1)}  # ID, number of disks
DESCRIPTION = "as <written>\non two lines 🎉"  # libvirt's list lost the carriage return


@dataclass(frozen=True, kw_only=True)
class Node:
    cell: Recorded
    daemon: Daemon

    def texts(self, name: str) -> set[str]:
        """The guest's data; the guest is off."""
        found = {read_text(path) for path in self.images(name)}
        nvram = self.daemon.folder / "disks" / f"{name}.nvram"
        return found | ({nvram.read_text()} if nvram.exists() else set())

    def images(self, name: str) -> list[Path]:
        return sorted((self.daemon.folder / "disks").glob(f"{name}-?.qcow2"))

    def tags(self, name: str) -> list[set[str]]:
        """The tags of each image."""
        infos = [json.loads(qemu_img("info", "--output=json", str(path))) for path in self.images(name)]
        return [{one["name"] for one in info.get("snapshots", [])} for info in infos]

    async def done(self, method: str, path: str, body: Any = None) -> None:
        answer = await self.cell.call(method, path, body)
        assert answer.status < 300, answer.body

        async def over() -> bool:
            return (await self.job(answer.job))["state"] in {"completed", "failed"}

        await until_told(over)
        assert (await self.job(answer.job))["error"] is None

    async def job(self, job_id: str) -> Any:
        return await self.cell.get(f"ops/jobs/{job_id}/", by="operator")

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        settings = {"DRIVER": "kvm", "LIBVIRT_URI": self.daemon.uri, "NODE": "k1"}
        settings |= {"FREE_FLOOR_MB": "0", "GRACE_SECONDS": "0"}
        redis = self.cell.stage.redis_server.socket
        async with worker_process(redis, self.daemon.folder / "state", **settings):

            async def has_them() -> bool:
                found = (await self.cell.get("ops/servers/", by="operator"))["results"]
                nodes = (await self.cell.get("ops/nodes/", by="operator"))["results"]
                unpublished = [
                    await self.cell.stage.redis.hexists(f"server:{one['id']}", "unpublished")  # type: ignore[misc] # redis-py: sync or async
                    for one in found
                ]
                return len(found) == len(SERVERS) and bool(nodes[0]["alive"]) and not any(unpublished)

            await until_told(has_them)
            yield


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """The node's libvirtd is running, but no worker."""
    for program in (*PROGRAMS, "qemu-io"):
        needs(program)
    needs_root()
    with tempfile.TemporaryDirectory(prefix="vps-", dir="/tmp") as name:
        async with Recorded.running("node", age_seconds=120) as cell:
            folder = Path(name)
            for path, content in cell.found["files"].items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                data = unpack(content)
                if path.endswith(".xml"):
                    data = cell.shift.text(data.decode().replace(cell.found["folder"], name)).encode()
                (folder / path).write_bytes(data)
            cell.shift_journal(folder / "state" / "journal.sqlite")
            daemon = Daemon(folder)
            await daemon.start()
            try:
                yield Node(cell=cell, daemon=daemon)
            finally:
                daemon.stop_for_good()


async def test_the_driver_finds_each_snapshot_with_what_was_written_down_of_it(node: Node) -> None:
    hypervisor = await KvmHypervisor.open(node.daemon.uri)
    try:
        servers = {domain.name: (domain.server_id, domain.account_id) for domain in await hypervisor.domains()}
        assert servers == {name: (server_id, 77) for name, (server_id, _) in SERVERS.items()}
        for name, (server_id, _) in SERVERS.items():
            made = node.cell.found["made"][name]
            found = {one.tag: one for one in await hypervisor.snapshots(server_id)}
            assert found.keys() == {f"vps-{made['first']}", f"vps-{made['second']}", f"vps-safety-{made['restore']}"}
            assert all(one.complete for one in found.values())
            for snapshot in ("first", "second"):
                spec = found[f"vps-{made[snapshot]}"].spec
                assert spec is not None
                assert (spec.name, spec.description) == (snapshot, DESCRIPTION)
    finally:
        await hypervisor.close()


@pytest.mark.parametrize("name", SERVERS)
async def test_older_snapshots_are_restored_undone_and_deleted(node: Node, name: str) -> None:
    server_id, disks = SERVERS[name]
    made = node.cell.found["made"][name]
    assert node.texts(name) == {"A"}
    async with node.worker():
        await node.done("POST", f"restores/{made['restore']}/undo/")
        assert node.texts(name) == {"B"}
        await node.done("POST", f"snapshots/{made['first']}/restore/")
        assert node.texts(name) == {"A"}
        await node.done("POST", f"snapshots/{made['second']}/restore/")
        assert node.texts(name) == {"B"}
        await node.done("DELETE", f"snapshots/{made['first']}/")
        await node.done("POST", "snapshots/", {"server_id": server_id, "name": "third"})
    assert all(f"vps-{made['first']}" not in tags for tags in node.tags(name))
    assert all(f"vps-{made['second']}" in tags for tags in node.tags(name))
    assert len(node.images(name)) == disks
    for path in node.images(name):
        qemu_img("check", "-q", str(path))


async def test_a_store_that_lost_its_data_is_built_up_from_the_node(node: Node) -> None:
    before = node.cell.found["answers"]["results"]
    redis = node.cell.stage.redis
    for key in await redis.keys("*"):
        if not key.startswith(b"token"):
            await redis.delete(key)
    async with node.worker():

        async def lists_them() -> bool:
            return bool((await node.cell.get("snapshots/"))["count"] == len(before))

        await until_told(lists_them)
        fields = ("id", "server", "name", "status", "created_at")
        now = (await node.cell.get("snapshots/"))["results"]
        assert [[one[name] for name in fields] for one in now] == [[one[name] for name in fields] for one in before]
        assert {one["description"] for one in now} == {DESCRIPTION}
        made = node.cell.found["made"]["plain"]
        await node.done("POST", f"snapshots/{made['second']}/restore/")
        assert node.texts("plain") == {"B"}
