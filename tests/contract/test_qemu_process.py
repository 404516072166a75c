"""Libvirt is told of the end of a QEMU when its process is gone: what it does, and what goes wrong meanwhile.

In most tests the test itself ends QEMU, and keeps libvirt from hearing of it, for as long as it takes to look.
"""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from drivers.base import Power
from tests.conftest import needs_module
from tests.contract.kvm_bench import KvmBench
from tests.queueing import until
from tests.walking import SPEC

if TYPE_CHECKING:
    from drivers.kvm.qemu_process import QemuProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")
needs_module("libvirt")

HOLDER = """
import sys
from pathlib import Path
from drivers.kvm.qemu_process import QemuProcess
qemu = QemuProcess.found(Path(sys.argv[1]), sys.argv[2])
assert qemu is not None
print("held", flush=True)
sys.stdin.read()
"""


def pid_file(bench: KvmBench, server_id: int = 1) -> Path:
    return bench.lab.folder / "run" / "qemu" / f"server-{server_id}.pid"


def found(bench: KvmBench, server_id: int = 1) -> "QemuProcess | None":
    from drivers.kvm.qemu_process import QemuProcess  # noqa: PLC0415 - only where there is a libvirt

    return QemuProcess.found(pid_file(bench, server_id), bench.domain(server_id).UUIDString())


def holds_a_process() -> bool:
    """Whether this process holds a pidfd."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of the listing itself
            if os.readlink(link) == "anon_inode:[pidfd]":
                return True
    return False


@contextmanager
def held(bench: KvmBench) -> Iterator["QemuProcess"]:
    qemu = found(bench)
    assert qemu is not None
    with closing(qemu):
        yield qemu


def kill(pid_file: Path) -> None:
    """Kill the process and wait until it is gone."""
    process = os.pidfd_open(int(pid_file.read_text()))
    signal.pidfd_send_signal(process, signal.SIGKILL)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll()
    with suppress(ProcessLookupError):
        while True:  # until it is reaped
            signal.pidfd_send_signal(process, 0)
    os.close(process)


async def test_libvirt_hears_of_the_end_when_the_copy_is_closed(kvm_bench: KvmBench) -> None:
    await kvm_bench.add_server(1, running=True)
    with held(kvm_bench) as qemu:
        assert await asyncio.to_thread(qemu.end)
        assert kvm_bench.domain(1).isActive(), "libvirt was not told"
    assert await kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60)
    assert await kvm_bench.hypervisor.was_shut_down(1) is False
    assert await kvm_bench.hypervisor.repair(1) == ()
    await kvm_bench.hypervisor.take_snapshot(1, SPEC)


async def test_a_hurried_cut_is_a_cut_for_its_worker(kvm_bench: KvmBench) -> None:
    await kvm_bench.add_server(1, running=True)
    await kvm_bench.hypervisor.cut_power(1, in_a_hurry=True)
    assert await kvm_bench.hypervisor.power(1) is Power.OFF
    assert await kvm_bench.hypervisor.was_shut_down(1) is False
    await kvm_bench.hypervisor.take_snapshot(1, SPEC)


@pytest.mark.parametrize("is_reaped", [True, False])
async def test_libvirt_does_not_end_the_next_qemu(
    kvm_bench: KvmBench, monkeypatch: pytest.MonkeyPatch, is_reaped: bool
) -> None:
    """A second stop of the domain, which would come after its next start: seen on busy machines only."""
    if not is_reaped:  # as if the first process took long
        monkeypatch.setattr("drivers.kvm.qemu_process._is_gone", lambda _: False)
        monkeypatch.setattr("drivers.kvm.qemu_process.REAP_SECONDS", 0)
    await kvm_bench.add_server(1, running=True)
    with busy():
        for _ in range(8):
            await kvm_bench.hypervisor.cut_power(1, in_a_hurry=True)
            await kvm_bench.hypervisor.start(1)
            pid = pid_file(kvm_bench).read_text()
            kvm_bench.domain(1).suspend()  # after what libvirt has queued for the domain
            kvm_bench.domain(1).resume()
            assert (await kvm_bench.hypervisor.power(1), pid_file(kvm_bench).read_text()) == (Power.ON, pid)


@contextmanager
def busy() -> Iterator[None]:
    """All CPUs are busy."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


async def test_a_waiting_worker_tells_libvirt(kvm_bench: KvmBench) -> None:
    await kvm_bench.add_server(1, running=True)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60))
        await until(holds_a_process)
        await asyncio.to_thread(kill, pid_file(kvm_bench))
    assert waiting.result()


async def test_a_wait_that_ends_leaves_nothing_open(kvm_bench: KvmBench) -> None:
    await kvm_bench.add_server(1, running=True, deaf=True)
    before = len(os.listdir("/proc/self/fd"))
    assert not await kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=0)
    waiting = asyncio.create_task(kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await kvm_bench.hypervisor.power(1) is Power.ON  # the cancelled call has returned
    await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_if_the_worker_is_killed_meanwhile_libvirt_hears_of_it_at_once(kvm_bench: KvmBench) -> None:
    await kvm_bench.add_server(1, running=True)
    uuid = kvm_bench.domain(1).UUIDString()
    command = [sys.executable, "-c", HOLDER, str(pid_file(kvm_bench)), uuid]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # noqa: ASYNC220
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
        await asyncio.to_thread(kill, pid_file(kvm_bench))
        assert kvm_bench.domain(1).isActive(), "libvirt was not told"
        holder.kill()
    assert await kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60)
    await kvm_bench.hypervisor.start(1)
    assert await kvm_bench.hypervisor.power(1) is Power.ON


async def test_nobody_can_start_the_server_before_libvirt_knows(kvm_bench: KvmBench) -> None:
    import libvirt  # noqa: PLC0415 - only where there is one

    await kvm_bench.add_server(1, running=True)
    with held(kvm_bench) as qemu:
        assert await asyncio.to_thread(qemu.end)
        with pytest.raises(libvirt.libvirtError, match="already running"):
            kvm_bench.domain(1).create()
        assert not pid_file(kvm_bench).exists() or found(kvm_bench) is None
    assert await kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60)
    assert await kvm_bench.hypervisor.repair(1) == ()


async def test_a_call_that_waits_for_qemus_answer_does_not_block_the_cut(kvm_bench: KvmBench) -> None:
    """Of another tool, such as `virsh domblkinfo`. Libvirt would wait 30 s for it, and it for the answer."""
    import libvirt  # noqa: PLC0415
    import libvirt_qemu  # noqa: PLC0415

    await kvm_bench.add_server(1, running=True)
    domain, said = kvm_bench.domain(1), list[Exception]()

    def ask() -> None:
        try:
            libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-block"}', 0)
        except libvirt.libvirtError as error:
            said.append(error)

    os.kill(int(pid_file(kvm_bench).read_text()), signal.SIGSTOP)
    with held(kvm_bench):
        asking = threading.Thread(target=ask)
        asking.start()
        await asyncio.to_thread(until_it_waits, domain)
        await asyncio.to_thread(kill, pid_file(kvm_bench))
    assert await kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60)
    await asyncio.to_thread(asking.join)
    assert len(said) == 1
    assert await kvm_bench.hypervisor.power(1) is Power.OFF


def until_it_waits(domain: Any) -> None:
    """Wait until libvirt waits for an answer of the domain's QEMU."""
    import libvirt  # noqa: PLC0415

    while domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OCCUPIED:
        pass


async def test_a_qemu_that_does_not_end_is_left_to_libvirt(kvm_bench: KvmBench) -> None:
    """It hangs: libvirt kills it after 10 s."""
    await kvm_bench.add_server(1, running=True)
    os.kill(int(pid_file(kvm_bench).read_text()), signal.SIGSTOP)
    await kvm_bench.hypervisor.cut_power(1, in_a_hurry=True)
    assert await kvm_bench.hypervisor.power(1) is Power.OFF
    assert await kvm_bench.hypervisor.was_shut_down(1) is False


async def test_a_guest_that_reboots_stays_on(kvm_bench: KvmBench) -> None:
    await kvm_bench.add_server(1, running=True)
    pid = pid_file(kvm_bench).read_text()
    waiting = asyncio.create_task(kvm_bench.hypervisor.wait_for_off(1, timeout_seconds=60))
    await until(holds_a_process)
    kvm_bench.domain(1).reset()
    assert not waiting.done()
    assert (await kvm_bench.hypervisor.power(1), pid_file(kvm_bench).read_text()) == (Power.ON, pid)
    await kvm_bench.hypervisor.cut_power(1)
    assert await waiting


async def test_a_server_that_libvirt_restarts_after_a_shutdown_is_cut_off_too(kvm_bench: KvmBench) -> None:
    await kvm_bench.add_server(1)
    xml = kvm_bench.domain(1).XMLDesc()
    changed = xml.replace("<on_poweroff>destroy</on_poweroff>", "<on_poweroff>restart</on_poweroff>")
    assert changed != xml
    kvm_bench.connection.defineXML(changed)
    await kvm_bench.hypervisor.start(1)
    await kvm_bench.hypervisor.cut_power(1, in_a_hurry=True)
    assert await kvm_bench.hypervisor.power(1) is Power.OFF
    assert await kvm_bench.hypervisor.repair(1) == ()


class TestOnlyTheDomainsOwn:
    async def test_no_process_of_a_server_that_is_off(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, running=True)
        number = pid_file(kvm_bench).read_text()
        await kvm_bench.hypervisor.cut_power(1)
        assert found(kvm_bench) is None
        pid_file(kvm_bench).write_text(number)  # libvirt was killed before it removed the file
        assert found(kvm_bench) is None
        pid_file(kvm_bench).unlink()

    @pytest.mark.parametrize("content", ["", "x", "0", "-1", "99999999999", "of this test"])
    async def test_no_other_process(self, kvm_bench: KvmBench, tmp_path: Path, content: str) -> None:
        from drivers.kvm.qemu_process import QemuProcess  # noqa: PLC0415

        await kvm_bench.add_server(1)
        (tmp_path / "pid").write_text(content.replace("of this test", str(os.getpid())))
        assert QemuProcess.found(tmp_path / "pid", kvm_bench.domain(1).UUIDString()) is None

    async def test_no_process_of_another_server(self, kvm_bench: KvmBench) -> None:
        from drivers.kvm.qemu_process import QemuProcess  # noqa: PLC0415

        await kvm_bench.add_server(1, running=True)
        await kvm_bench.add_server(2)
        assert QemuProcess.found(pid_file(kvm_bench, 1), kvm_bench.domain(2).UUIDString()) is None
