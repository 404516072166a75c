"""Features that only libvirtd has: storage pools, as terraform-provider-libvirt uses them, and its own paths."""

import asyncio
import os
import re
import stat
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.lab.domain import disk
from deploy.lab.lab import Lab, make_disk
from drivers.base import DiskBusy, SnapshotSpec, UnsupportedServer
from tests.conftest import needs, needs_root
from tests.libvirtd import PROGRAMS, Daemon

SERVER = 12345
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


@pytest.fixture
async def connection(daemon: Daemon) -> AsyncIterator[Any]:
    import libvirt  # noqa: PLC0415 - only where there is one

    opened = await asyncio.to_thread(libvirt.open, daemon.uri)
    yield opened
    opened.close()


def pool(connection: Any, folder: Path, name: str, *, active: bool = True) -> Any:
    folder.mkdir(exist_ok=True)
    xml = f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>"
    found = connection.storagePoolDefineXML(xml, 0)
    if active:
        found.create(0)
    return found


def define(daemon: Daemon, connection: Any, source: str, *, efi: bool = False) -> None:
    """Define a domain whose second disk is a volume."""
    lab = Lab(daemon.folder / "l")  # only for its XML
    first, second = (make_disk(lab.disk_path(name), "16M") for name in ("a", "b"))
    xml = lab.domain_xml("s1", [disk(first), disk(second)], guest=False)
    here = (
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file=\"{second}\"/>"
    )
    assert here in xml
    xml = xml.replace(here, f"<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source {source}/>")
    if efi:
        xml = xml.replace("<os>", "<os firmware='efi'>").replace("machine='pc'", "machine='q35'")
    domain = connection.defineXML(xml)
    # libvirt 11 writes the path of the variables that it has chosen, as it is in the daemon's own mount namespace
    named = domain.XMLDesc(0).replace(">/var/lib/libvirt/", f">{daemon.folder}/lib/")
    connection.defineXML(named)


async def test_a_disk_that_is_a_volume_of_a_pool_is_held_like_its_file(daemon: Daemon, connection: Any) -> None:
    from drivers.kvm import KvmHypervisor, survey_libvirt  # noqa: PLC0415
    from tests.contract.kvm_bench import read_text, write_text  # noqa: PLC0415

    folder = daemon.folder / "pool"
    folder.mkdir()
    volume = make_disk(folder / "v1", "64M")
    pool(connection, folder, "images")
    await asyncio.to_thread(define, daemon, connection, "pool='images' volume='v1'")
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt("s1", server_id=SERVER, account_id=77)
    write_text(volume, "A")
    assert [found.path for found in (await hypervisor.layout(SERVER)).disks][1] == str(volume)
    await hypervisor.take_snapshot(SERVER, SPEC)
    write_text(volume, "B")
    await hypervisor.start(SERVER)
    assert [found.target for found in (await hypervisor.layout(SERVER)).disks] == ["vda", "vdb"]
    await hypervisor.cut_power(SERVER)
    await hypervisor.revert(SERVER, SPEC.tag)
    assert read_text(volume) == "A"
    await hypervisor.start(SERVER)
    await hypervisor.delete_snapshot(SERVER, SPEC.tag)
    assert await hypervisor.snapshots(SERVER) == []
    (surveyed,) = await survey_libvirt(daemon.uri)
    assert surveyed.refused == ()
    assert surveyed.server_id == SERVER
    await hypervisor.close()


async def test_a_disk_of_an_unavailable_pool_is_not_skipped(daemon: Daemon, connection: Any) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415
    from drivers.qcow2 import image  # noqa: PLC0415

    folder = daemon.folder / "pool"
    folder.mkdir()
    volume = make_disk(folder / "v1", "64M")
    images = pool(connection, folder, "images")
    await asyncio.to_thread(define, daemon, connection, "pool='images' volume='v1'")
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt("s1", server_id=SERVER, account_id=77)
    await hypervisor.take_snapshot(SERVER, SPEC)
    images.destroy()
    for call in (hypervisor.repair(SERVER), hypervisor.delete_snapshot(SERVER, SPEC.tag)):
        with pytest.raises(DiskBusy, match="vdb"):
            await call
    assert (await hypervisor.about()).pools
    images.create(0)
    await hypervisor.delete_snapshot(SERVER, SPEC.tag)
    assert (await image(str(volume))).tags == ()
    await hypervisor.close()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pool='none' volume='v1'", "does not know"),
        ("pool='asleep' volume='v1'", "not active"),
        ("pool='images' volume='none'", "names a volume that"),
        ("pool='images' volume='device'", "is missing"),  # libvirt's own name for it
        ("pool='images' volume='folder'", "of type dir"),
    ],
)
async def test_a_volume_that_is_no_file_is_refused_by_name(
    daemon: Daemon, connection: Any, source: str, words: str
) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415

    folder = daemon.folder / "pool"
    (folder / "folder").mkdir(parents=True)
    os.mknod(folder / "device", 0o600 | stat.S_IFBLK, os.makedev(7, 0))
    pool(connection, folder, "images")
    pool(connection, daemon.folder / "asleep", "asleep", active=False)
    await asyncio.to_thread(define, daemon, connection, source)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt("s1", server_id=SERVER, account_id=77)
    with pytest.raises(UnsupportedServer, match=f"disk vdb.* {words}"):
        await hypervisor.layout(SERVER)
    await hypervisor.close()


async def test_variables_that_this_libvirt_chose_are_found_where_it_keeps_them(daemon: Daemon, connection: Any) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415

    folder = daemon.folder / "pool"
    folder.mkdir()
    make_disk(folder / "v1", "64M")
    pool(connection, folder, "images")
    await asyncio.to_thread(define, daemon, connection, "pool='images' volume='v1'", efi=True)
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt("s1", server_id=SERVER, account_id=77)
    await hypervisor.start(SERVER)
    assert (await hypervisor.layout(SERVER)).nvram
    await hypervisor.cut_power(SERVER)
    variables = daemon.folder / "lib" / "qemu" / "nvram" / "s1_VARS.fd"
    before = variables.read_bytes()
    await hypervisor.take_snapshot(SERVER, SPEC)
    variables.write_bytes(b"changed")
    await hypervisor.revert(SERVER, SPEC.tag)
    assert variables.read_bytes() == before
    await hypervisor.close()


async def test_a_volume_that_another_server_has_too_is_found_as_shared(daemon: Daemon, connection: Any) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415

    folder = daemon.folder / "pool"
    folder.mkdir()
    make_disk(folder / "v1", "64M")
    pool(connection, folder, "images")
    await asyncio.to_thread(define, daemon, connection, "pool='images' volume='v1'")
    other = connection.lookupByName("s1").XMLDesc(0).replace("<name>s1<", "<name>s2<")
    own = make_disk(daemon.folder / "own", "64M")
    other = other.replace(str(daemon.folder / "l" / "disks" / "a"), str(own))
    await asyncio.to_thread(connection.defineXML, re.sub("<uuid>.*</uuid>", "", other))
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt("s1", server_id=SERVER, account_id=77)
    assert [disk.target for disk in (await hypervisor.shared_disks())[SERVER]] == ["vdb"]
    with pytest.raises(UnsupportedServer, match=r"disk vdb .* a disk of another server"):
        await hypervisor.layout(SERVER)
    await hypervisor.close()


async def test_a_detached_disk_loses_the_tag_also_where_another_server_runs_on_it_as_a_volume(
    daemon: Daemon, connection: Any
) -> None:
    from drivers.kvm import KvmHypervisor  # noqa: PLC0415
    from drivers.qcow2 import image  # noqa: PLC0415

    folder = daemon.folder / "pool"
    folder.mkdir()
    volume = make_disk(folder / "v1", "64M")
    pool(connection, folder, "images")
    await asyncio.to_thread(define, daemon, connection, "pool='images' volume='v1'")
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt("s1", server_id=SERVER, account_id=77)
    await hypervisor.take_snapshot(SERVER, SPEC)
    domain = connection.lookupByName("s1")
    other = domain.XMLDesc(0).replace("<name>s1<", "<name>s2<")
    domain.detachDeviceFlags("<disk type='volume' device='disk'><target dev='vdb' bus='virtio'/></disk>", 2)
    other = other.replace(str(daemon.folder / "l" / "disks" / "a"), str(make_disk(daemon.folder / "own", "64M")))
    other = re.sub("<uuid>.*</uuid>|<metadata>.*</metadata>", "", other, flags=re.DOTALL)
    await asyncio.to_thread(connection.createXML, other)
    await hypervisor.delete_snapshot(SERVER, SPEC.tag)
    assert (await image(str(volume))).tags == ()
    await hypervisor.close()
