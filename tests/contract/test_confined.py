"""Jobs on real QEMU by a driver that has only what the worker's unit allows. Libvirt and QEMU run outside, as on a
node."""

import asyncio
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deploy.lab.domain import UEFI_VARIABLES, disk
from deploy.lab.lab import Lab, make_disk
from drivers.base import Power
from tests.conftest import needs, needs_root
from tests.libvirtd import PROGRAMS, Daemon
from tests.walking import NEW_TAG, SERVER, SPEC, walk
from tests.worker_unit import confined
from worker.store.model import JobKind

NAME, QEMU_USER = "s1", "libvirt-qemu"


@pytest.fixture
def folder() -> Iterator[Path]:
    needs_root()
    for program in PROGRAMS:
        needs(program)
    # QEMU's user must be able to enter it; not below /dev, of which the unit has its own
    with tempfile.TemporaryDirectory(prefix="vps-", dir="/run") as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def test_all_jobs_work_within_the_limits_of_the_unit(folder: Path) -> None:
    daemon = Daemon(folder, user=QEMU_USER)
    await daemon.start()
    try:
        variables = await asyncio.to_thread(define, daemon)
        process = await asyncio.create_subprocess_exec(
            *confined(),
            *(sys.executable, "-m", "tests.contract.test_confined", daemon.uri, variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await process.communicate()
    finally:
        daemon.stop_for_good()
    assert process.returncode == 0, said.decode()


def define(daemon: Daemon) -> Path:
    """Returns the file with its UEFI variables."""
    import libvirt  # noqa: PLC0415 - only where there is one

    lab = Lab(daemon.folder / "l")  # only for its XML
    disks = [make_disk(lab.disk_path(f"d{number}"), "16M") for number in range(2)]
    lab.nvram_path(NAME).write_bytes(Path(UEFI_VARIABLES).read_bytes())
    owner = pwd.getpwnam(QEMU_USER)
    for path in (*disks, lab.nvram_path(NAME)):
        os.chown(path, owner.pw_uid, owner.pw_gid)
        path.chmod(0o600)
    connection = libvirt.open(daemon.uri)
    connection.defineXML(lab.domain_xml(NAME, [disk(path) for path in disks], guest=False, uefi=True))
    connection.close()
    return lab.nvram_path(NAME)


async def jobs(uri: str, variables: Path) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415 - only where there is a libvirt

    hypervisor = await KvmHypervisor.open(uri)
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=77)
    await hypervisor.start(SERVER)
    await hypervisor.cut_power(SERVER)
    await hypervisor.take_snapshot(SERVER, SPEC)
    before = variables.read_bytes()
    variables.write_bytes(before[:-1] + b"\0")  # the guest has changed one; the restore must write it
    await hypervisor.start(SERVER)
    for kind in (JobKind.CREATE, JobKind.RESTORE, JobKind.DELETE):
        end = await walk(kind, hypervisor)
        if end.failed_in:
            sys.exit(f"{kind}: {end.failed_in}: {end.detail}")
    await hypervisor.cut_power(SERVER)
    await hypervisor.delete_snapshot(SERVER, NEW_TAG)
    await hypervisor.start(SERVER)
    end = await walk(JobKind.CREATE, hypervisor, live=True)
    if end.failed_in:
        sys.exit(f"live: {end.failed_in}: {end.detail}")
    assert await hypervisor.power(SERVER) is Power.ON
    await asyncio.to_thread(end_quickly, uri, await hypervisor.identity(SERVER))
    assert await hypervisor.wait_for_off(SERVER, timeout_seconds=60)
    assert await hypervisor.repair(SERVER) == ()
    assert variables.stat().st_uid == pwd.getpwnam(QEMU_USER).pw_uid
    await hypervisor.close()


def end_quickly(uri: str, uuid: str) -> None:
    """Fails if the worker may not do what makes its stops short."""
    from drivers.kvm.places import pid_files_of  # noqa: PLC0415 - only where there is a libvirt
    from drivers.kvm.qemu_process import QemuProcess  # noqa: PLC0415

    folder = pid_files_of(uri)
    assert folder is not None
    qemu = QemuProcess.found(folder / f"{NAME}.pid", uuid)
    assert qemu is not None, "its connection may not be copied"
    with closing(qemu):
        assert qemu.end(), "it may not be ended"


if __name__ == "__main__":
    asyncio.run(jobs(sys.argv[1], Path(sys.argv[2])))
