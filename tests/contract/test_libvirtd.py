"""The driver with a real libvirtd that is killed and restarted."""

import asyncio
import gc
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.lab.domain import disk
from deploy.lab.lab import Lab, make_disk
from drivers.base import HypervisorUnavailable, Power, SnapshotSpec
from tests.conftest import needs, needs_root
from tests.libvirtd import PROGRAMS, Daemon
from tests.queueing import until

SERVER, NAME = 12345, "s1"
SPEC = SnapshotSpec(tag="vps-7", name="n", description="", created_at=datetime(2025, 1, 15, tzinfo=UTC))


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    for program in PROGRAMS:
        needs(program)
    needs_root()
    with tempfile.TemporaryDirectory(prefix="vps-", dir="/tmp") as folder:
        daemon = Daemon(Path(folder))
        await daemon.start()
        try:
            yield daemon
        finally:
            daemon.stop_for_good()


def define(daemon: Daemon) -> None:
    import libvirt  # noqa: PLC0415 - only where there is one

    lab = Lab(daemon.folder / "l")  # only for its XML
    devices = [disk(make_disk(lab.disk_path(f"d{n}"), "16M")) for n in range(2)]
    connection = libvirt.open(daemon.uri)
    connection.defineXML(lab.domain_xml(NAME, devices, guest=False))
    connection.close()


def until_reconnected(daemon: Daemon) -> None:
    """Wait until a libvirtd that just started is connected to its guest's QEMU.

    It lists the guest as running before that. If the guest's power is cut then, libvirt sends no event.
    """
    import libvirt  # noqa: PLC0415 - only where there is one
    import libvirt_qemu  # noqa: PLC0415

    connection = libvirt.open(daemon.uri)
    libvirt_qemu.qemuMonitorCommand(connection.lookupByName(NAME), '{"execute": "query-status"}', 0)
    connection.close()


async def test_a_libvirtd_that_is_killed_takes_no_guest_along_and_its_successor_is_used_at_once(
    daemon: Daemon,
) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415 - only where there is a libvirt

    await asyncio.to_thread(define, daemon)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    hypervisor.watch(changed)
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=77)
    await hypervisor.take_snapshot(SERVER, SPEC)
    await hypervisor.start(SERVER)

    daemon.kill()
    with pytest.raises(HypervisorUnavailable):
        await hypervisor.power(SERVER)
    await daemon.start()

    assert await hypervisor.power(SERVER) is Power.ON
    assert [found.spec for found in await hypervisor.snapshots(SERVER)] == [SPEC]
    await asyncio.to_thread(until_reconnected, daemon)
    changes = 0
    await hypervisor.cut_power(SERVER)
    assert await hypervisor.wait_for_off(SERVER, timeout_seconds=30)
    async with asyncio.timeout(60):
        while not changes:  # noqa: ASYNC110 - a callback cannot be awaited
            await asyncio.sleep(0.05)
    await hypervisor.revert(SERVER, SPEC.tag)
    await hypervisor.delete_snapshot(SERVER, SPEC.tag)
    assert await hypervisor.snapshots(SERVER) == []
    await hypervisor.close()


async def test_a_mark_that_changed_while_libvirtd_was_away_is_read_again(daemon: Daemon) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415

    await asyncio.to_thread(define, daemon)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=77)
    assert [found.account_id for found in await hypervisor.domains(marks_seconds=3600)] == [77]
    daemon.kill()
    definition = daemon.folder / "etc" / "qemu" / f"{NAME}.xml"
    definition.write_text(definition.read_text().replace('account="77"', 'account="78"'))
    with pytest.raises(HypervisorUnavailable):
        await hypervisor.domains(marks_seconds=3600)
    await daemon.start()
    assert [found.account_id for found in await hypervisor.domains(marks_seconds=3600)] == [78]
    await hypervisor.close()


def descriptors() -> int:
    """How many descriptors this process has for the wake-ups of libvirt's connections."""
    gc.collect()
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += os.readlink(link) == "anon_inode:[eventfd]"
    return found


async def test_lost_connections_leave_no_descriptors(daemon: Daemon) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415 - only where there is a libvirt

    hypervisor = await KvmHypervisor.open(daemon.uri)
    before = descriptors()
    for _ in range(3):
        daemon.kill()
        await daemon.start()
        assert await hypervisor.domains() == []
    await until(lambda: descriptors() <= before)
    await hypervisor.close()


def has_pending(process_id: int, number: signal.Signals) -> bool:
    """Whether the stopped process has that signal to handle."""
    status = Path(f"/proc/{process_id}/status").read_text()
    (pending,) = (line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending, 16) >> number - 1 & 1)


async def test_after_a_libvirtd_dies_during_a_call_its_outcome_is_read(daemon: Daemon) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415

    await asyncio.to_thread(define, daemon)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=77)
    await hypervisor.start(SERVER)
    qemu = int((daemon.folder / "run" / "qemu" / f"{NAME}.pid").read_text())
    os.kill(qemu, signal.SIGSTOP)  # so that the call lasts
    cutting = asyncio.create_task(hypervisor.cut_power(SERVER))
    await until(lambda: has_pending(qemu, signal.SIGTERM))
    daemon.kill()
    with pytest.raises(HypervisorUnavailable):
        await cutting
    os.kill(qemu, signal.SIGCONT)
    await daemon.start()
    await hypervisor.cut_power(SERVER)
    assert await hypervisor.power(SERVER) is Power.OFF
    assert await hypervisor.repair(SERVER) == ()
    await hypervisor.close()


async def test_a_libvirtd_that_hangs_is_given_up_and_used_again_once_it_answers(daemon: Daemon) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415

    await asyncio.to_thread(define, daemon)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=77)
    await hypervisor.start(SERVER)
    daemon.signal(signal.SIGSTOP)
    async with asyncio.timeout(60):  # far above the 15 to 20 s of silence after which the connection is closed
        with pytest.raises(HypervisorUnavailable):
            await hypervisor.power(SERVER)
    daemon.signal(signal.SIGCONT)
    assert await hypervisor.power(SERVER) is Power.ON
    await hypervisor.close()


async def test_a_start_in_which_libvirtd_was_killed_is_repeated(daemon: Daemon) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415
    from tests.contract.kvm_bench import cut_off_start  # noqa: PLC0415

    await asyncio.to_thread(define, daemon)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=77)
    await hypervisor.start(SERVER)
    daemon.kill()
    cut_off_start(daemon.folder / "run" / "qemu", NAME)
    await daemon.start()
    assert await hypervisor.power(SERVER) is Power.OFF
    await hypervisor.start(SERVER)
    assert await hypervisor.power(SERVER) is Power.ON
    await hypervisor.close()


async def test_the_next_libvirtd_keeps_the_hold_and_can_release_it(daemon: Daemon) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415

    await asyncio.to_thread(define, daemon)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=77)
    await hypervisor.hold(SERVER)
    daemon.kill()
    await daemon.start()
    assert await asyncio.to_thread(held_by, daemon) == ["vps-job"]
    await hypervisor.let_go(SERVER)
    assert await asyncio.to_thread(held_by, daemon) == []
    await hypervisor.close()


def held_by(daemon: Daemon) -> list[str]:
    """The entries that prevent libvirt from moving the server."""
    import libvirt  # noqa: PLC0415

    connection = libvirt.open(daemon.uri)
    names = [found.getName() for found in connection.lookupByName(NAME).listAllSnapshots()]
    connection.close()
    return names


async def test_a_libvirtd_that_is_killed_meanwhile_finds_the_server_off(daemon: Daemon) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415
    from drivers.kvm.places import pid_files_of  # noqa: PLC0415
    from drivers.kvm.qemu_process import QemuProcess  # noqa: PLC0415

    await asyncio.to_thread(define, daemon)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=77)
    await hypervisor.start(SERVER)
    folder = pid_files_of(daemon.uri)
    assert folder is not None
    qemu = QemuProcess.found(folder / f"{NAME}.pid", await hypervisor.identity(SERVER))
    assert qemu is not None
    with closing(qemu):
        assert await asyncio.to_thread(qemu.end)
        daemon.kill()
        with pytest.raises(HypervisorUnavailable):
            await hypervisor.cut_power(SERVER)
    await daemon.start()
    await hypervisor.cut_power(SERVER, in_a_hurry=True)
    assert await hypervisor.power(SERVER) is Power.OFF
    assert await hypervisor.repair(SERVER) == ()
    await hypervisor.start(SERVER)
    await hypervisor.cut_power(SERVER, in_a_hurry=True)
    assert await hypervisor.power(SERVER) is Power.OFF
    await hypervisor.close()


async def test_a_libvirtd_that_is_restarted_connects_again_while_a_worker_waits_for_the_guest(daemon: Daemon) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415
    from drivers.kvm.places import pid_files_of  # noqa: PLC0415
    from drivers.kvm.qemu_process import QemuProcess  # noqa: PLC0415

    await asyncio.to_thread(define, daemon)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=77)
    await hypervisor.start(SERVER)
    folder = pid_files_of(daemon.uri)
    assert folder is not None
    qemu = QemuProcess.found(folder / f"{NAME}.pid", await hypervisor.identity(SERVER))
    assert qemu is not None
    with closing(qemu):
        daemon.kill()
        await daemon.start()
        await asyncio.to_thread(until_reconnected, daemon)
        await hypervisor.cut_power(SERVER, in_a_hurry=True)
    assert await hypervisor.power(SERVER) is Power.OFF
    await hypervisor.close()
