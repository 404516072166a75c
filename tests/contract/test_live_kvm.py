"""Snapshots of running servers on real QEMU: a guest with an agent that is frozen, and changes by other tools."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest
import pytest_asyncio

from deploy.lab import domains
from deploy.lab.domain import disk
from deploy.lab.lab import make_disk
from drivers import qcow2
from drivers.base import DiskFailed, InvalidState, Power, ServerInUse, UnsupportedServer
from drivers.kvm import guest_agent
from tests.contract.harness import ACCOUNT_ID
from tests.contract.killed_writes import KilledWrites
from tests.contract.kvm_bench import KvmBench, qemu_img, read_text, write_text
from tests.walking import SPEC
from worker.procedures.disks import without
from worker.store.model import ServerId

pytestmark = pytest.mark.asyncio(loop_scope="session")

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def tagged(path: Path) -> list[str]:
    info = json.loads(qemu_img("info", "-U", "-f", "qcow2", "--output=json", str(path)))
    return [snapshot["name"] for snapshot in info.get("snapshots", [])]


def monitor(domain: Any, command: str, **arguments: object) -> Any:
    asked = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuMonitorCommand(domain, asked, 0))["return"]


@pytest_asyncio.fixture(scope="class", loop_scope="session")
async def guest(node: KvmBench) -> AsyncIterator[KvmBench]:
    """A running server with an agent, which takes 10 s to boot."""
    lab = node.lab
    devices = [disk(make_disk(lab.disk_path(name))) for name in ("ga", "gb")]
    domains.define(node.connection, lab.domain_xml("server-1", devices, agent=True))
    await node.hypervisor.adopt("server-1", server_id=1, account_id=ACCOUNT_ID)
    await node.hypervisor.start(1)
    await lab.console("server-1").ready(after=0)
    async with asyncio.timeout(60):
        while not await node.hypervisor.refuse_live(1):  # noqa: ASYNC110 - the agent comes up a moment later
            await asyncio.sleep(0.1)
    yield node
    await node.close()


class TestAgent:
    async def test_its_file_systems_are_frozen_at_the_snapshot_and_thawed_after_it(self, guest: KvmBench) -> None:
        console = guest.lab.console("server-1")
        await console.write("before")
        await console.write("unwritten", synced=False)  # in the guest's memory until it is frozen
        assert await guest.hypervisor.freeze(1, timeout_seconds=30)
        await guest.hypervisor.take_live_snapshot(1, SPEC)
        assert await guest.hypervisor.thaw(1)
        await guest.hypervisor.list_snapshot(1, SPEC, consistency="agent_frozen")
        await console.write("after")
        copies = [guest.lab.disk_path(f"copy-{name}") for name in ("ga", "gb")]
        for copy in copies:
            image = guest.lab.disk_path(copy.name.removeprefix("copy-"))
            qemu_img("convert", "-U", "-l", f"snapshot.name={SPEC.tag}", "-O", "raw", str(image), str(copy))
            assert b"unwritten\n" in copy.read_bytes(), "the agent had it written"
        await guest.hypervisor.delete_snapshot(1, SPEC.tag)

    async def test_one_that_another_tool_has_frozen_is_refused_and_stays_frozen(self, guest: KvmBench) -> None:
        domain = guest.domain(1)
        domain.fsFreeze()
        for call in (guest.hypervisor.refuse_live(1), guest.hypervisor.freeze(1, timeout_seconds=5)):
            with pytest.raises(ServerInUse, match="frozen by another tool"):
                await call
        freeze = json.dumps({"execute": "guest-fsfreeze-freeze"})
        with pytest.raises(libvirt.libvirtError) as lost:  # how a freeze that lost the race fails
            libvirt_qemu.qemuAgentCommand(domain, freeze, 30, 0)
        assert guest_agent.is_refused(lost.value)
        assert domain.fsThaw() == 2

    async def test_a_thaw_may_be_asked_for_at_any_time(self, guest: KvmBench) -> None:
        assert not await guest.hypervisor.thaw(1)
        assert await guest.hypervisor.freeze(1, timeout_seconds=30)
        assert await guest.hypervisor.thaw(1)
        assert not await guest.hypervisor.thaw(1)

    async def test_one_that_the_driver_froze_is_thawed_by_the_next_process(self, guest: KvmBench) -> None:
        assert await guest.hypervisor.freeze(1, timeout_seconds=30)
        await guest.reopen()
        assert await guest.hypervisor.thaw(1)
        await guest.lab.console("server-1").write("again")


async def test_a_disk_behind_a_filter_is_refused_by_name(kvm_bench: KvmBench) -> None:
    await _running(kvm_bench, instead=("<driver name='qemu'", "<driver name='qemu' copy_on_read='on'"))
    for call in (kvm_bench.hypervisor.refuse_live(1), kvm_bench.hypervisor.take_live_snapshot(1, SPEC)):
        with pytest.raises(UnsupportedServer, match="vda"):
            await call
    assert _tags(kvm_bench) == [[], []]


async def test_where_one_disk_refuses_no_disk_has_the_snapshot(kvm_bench: KvmBench) -> None:
    await _running(kvm_bench)
    copy = kvm_bench.lab.disk_path("copy")
    target = make_disk(copy)
    node = _node(kvm_bench, "vdb")
    monitor(kvm_bench.domain(1), "blockdev-add", driver="qcow2", **{"node-name": "c"}, file=_file(target))
    monitor(kvm_bench.domain(1), "blockdev-mirror", device=node, target="c", sync="full", **{"job-id": "j"})
    with pytest.raises(DiskFailed):
        await kvm_bench.hypervisor.take_live_snapshot(1, SPEC)
    assert _tags(kvm_bench) == [[], []]
    assert await kvm_bench.hypervisor.power(1) is Power.ON


async def test_dirty_bitmaps_and_backing_files_stay_as_they_are(kvm_bench: KvmBench) -> None:
    base = make_disk(kvm_bench.lab.disk_path("base"))
    write_text(base, "of the base")
    before = base.read_bytes()
    over = make_disk(kvm_bench.lab.disk_path("over"), backing=base)
    plain = make_disk(kvm_bench.lab.disk_path("plain"))
    qemu_img("bitmap", "--add", "-f", "qcow2", str(plain), "b0")
    await kvm_bench.add_domain(1, [disk(over), disk(plain)])
    await kvm_bench.hypervisor.start(1)
    await kvm_bench.hypervisor.take_live_snapshot(1, SPEC)
    await kvm_bench.hypervisor.list_snapshot(1, SPEC)
    assert kvm_bench.domain(1).listAllSnapshots() == [], "libvirt would not migrate it"
    await kvm_bench.hypervisor.cut_power(1)
    assert await kvm_bench.hypervisor.repair(1) == ()
    (vda, vdb) = (await kvm_bench.hypervisor.layout(1)).disks
    assert (vda.bitmaps, vdb.bitmaps) == ((), ("b0",))
    write_text(over, "own")
    assert (await kvm_bench.hypervisor.restore_plan(1, SPEC.tag)).bitmaps == ("vdb",)
    await kvm_bench.hypervisor.clear_bitmaps(1)
    await kvm_bench.hypervisor.revert(1, SPEC.tag)
    assert read_text(over) == "of the base"
    assert base.read_bytes() == before


async def test_disks_of_different_threads_have_it_together(kvm_bench: KvmBench) -> None:
    devices = [disk(make_disk(kvm_bench.lab.disk_path(name))) for name in ("a", "b")]
    xml = kvm_bench.lab.domain_xml("server-1", devices).replace("<vcpu>", "<iothreads>2</iothreads><vcpu>")
    for number in (1, 2):
        xml = xml.replace("<driver name='qemu' type", f"<driver name='qemu' iothread='{number}' type", 1)
    domains.define(kvm_bench.connection, xml)
    await kvm_bench.hypervisor.adopt("server-1", server_id=1, account_id=ACCOUNT_ID)
    await kvm_bench.hypervisor.start(1)
    for number in range(5):
        await kvm_bench.hypervisor.take_live_snapshot(1, replace(SPEC, tag=f"vps-{number + 1}"))
    assert all(found.complete for found in await kvm_bench.hypervisor.snapshots(1))


async def test_a_disk_that_the_running_server_lacks_is_refused(kvm_bench: KvmBench) -> None:
    await _running(kvm_bench)
    path = make_disk(kvm_bench.lab.disk_path("new"))
    xml = (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{path}'/><target dev='vdz' bus='virtio'/></disk>"
    )
    kvm_bench.domain(1).attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    with pytest.raises(InvalidState, match="vdz"):
        await kvm_bench.hypervisor.take_live_snapshot(1, SPEC)
    assert _tags(kvm_bench) == [[], []]


async def test_the_disks_of_a_qemu_that_dies_at_any_write_are_repaired(kvm_bench: KvmBench, tmp_path: Path) -> None:
    killed_writes = KilledWrites(tmp_path)
    variables = "".join(
        f"<qemu:env name='{name}' value='{value}'/>" for name, value in killed_writes.environment.items()
    )
    end = f"<qemu:commandline xmlns:qemu='{QEMU}'>{variables}</qemu:commandline></domain>"
    await _running(kvm_bench, instead=("</domain>", end))
    partly = damaged = False
    for write in itertools.count(1):
        with killed_writes.kill(after_runs=0, at_write=write):
            try:
                await kvm_bench.hypervisor.take_live_snapshot(1, SPEC)
            except DiskFailed:
                assert await kvm_bench.hypervisor.power(1) is Power.OFF, "or its disks would not be mended"
        if not killed_writes.have_happened:
            break
        assert await kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60)
        partly |= _tags(kvm_bench) in ([[SPEC.tag], []], [[], [SPEC.tag]])
        damaged |= await _is_damaged(kvm_bench)
        await without(kvm_bench.hypervisor, ServerId(1), SPEC.tag)
        assert _tags(kvm_bench) == [[], []]
        assert await kvm_bench.hypervisor.repair(1) == ()
        assert not await _is_damaged(kvm_bench)
        await kvm_bench.hypervisor.start(1)
    assert partly
    assert damaged


async def _running(bench: KvmBench, *, instead: tuple[str, str] = ("", "")) -> None:
    """Start a server with two disks and this replacement in its definition."""
    devices = [disk(make_disk(bench.path(1, target))) for target in ("vda", "vdb")]
    xml = bench.lab.domain_xml("server-1", devices, guest=False)
    domains.define(bench.connection, xml.replace(*instead) if instead[0] else xml)
    await bench.hypervisor.adopt("server-1", server_id=1, account_id=ACCOUNT_ID)
    await bench.hypervisor.start(1)


def _tags(bench: KvmBench) -> list[list[str]]:
    return [tagged(bench.path(1, target)) for target in ("vda", "vdb")]


async def _is_damaged(bench: KvmBench) -> bool:
    return any([(await qcow2.damage(str(bench.path(1, target)))).any for target in ("vda", "vdb")])


def _node(bench: KvmBench, target: str) -> str:
    devices = monitor(bench.domain(1), "query-block")
    return next(
        str(device["inserted"]["node-name"])
        for device in devices
        if str(bench.path(1, target)) in json.dumps(device.get("inserted", {}).get("image", {}))
    )


def _file(path: Path) -> dict[str, str]:
    return {"driver": "file", "filename": str(path)}
