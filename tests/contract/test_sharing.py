"""Files that two domains of a node have in common: what could be overwritten, or would be read changed, is refused."""

import pytest

from deploy.lab.domain import Device, disk
from deploy.lab.lab import make_disk
from drivers.base import UnsupportedServer
from tests.contract.kvm_bench import KvmBench, qemu_img

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def clones(bench: KvmBench, template: Device, *, servers: int = 2) -> None:
    """Servers on one base, which a domain of its own has as its disk."""
    base = make_disk(bench.lab.disk_path("base.qcow2"))
    for server_id in range(1, servers + 1):
        image = bench.path(server_id, "vda")
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(image))
        await bench.add_domain(server_id, [disk(image)])
    await bench.add_domain(9, [template], adopted=False)


async def test_clones_of_a_template_that_can_only_read_its_disk_are_servers_like_others(kvm_bench: KvmBench) -> None:
    await clones(kvm_bench, Device(path=kvm_bench.lab.disk_path("base.qcow2"), readonly=True))
    for server_id in (1, 2):
        await kvm_bench.hypervisor.layout(server_id)
    assert await kvm_bench.hypervisor.shared_disks() == {}


async def test_clones_of_a_template_that_may_write_are_refused(kvm_bench: KvmBench) -> None:
    await clones(kvm_bench, disk(kvm_bench.lab.disk_path("base.qcow2")))
    with pytest.raises(UnsupportedServer, match=r"disk vda .* based on a disk of another server"):
        await kvm_bench.hypervisor.layout(1)
    assert sorted(await kvm_bench.hypervisor.shared_disks()) == [1, 2]


@pytest.mark.parametrize("name", ["vda", "a hard link", "a symbolic link"])
@pytest.mark.parametrize("readonly", [False, True])
async def test_a_disk_that_another_server_has_too_is_refused(kvm_bench: KvmBench, name: str, readonly: bool) -> None:
    await kvm_bench.add_server(1, disks=1)
    path = kvm_bench.path(1, "vda")
    other = path if name == "vda" else path.with_name("other.qcow2")
    if name == "a hard link":
        other.hardlink_to(path)
    elif name == "a symbolic link":
        other.symlink_to(path)
    await kvm_bench.add_domain(9, [Device(path=other, readonly=readonly)], adopted=False)
    with pytest.raises(UnsupportedServer, match=r"disk vda .* another server"):
        await kvm_bench.hypervisor.layout(1)
