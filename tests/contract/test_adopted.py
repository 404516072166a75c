"""Whom libvirt's domains belong to: marks are remembered, and read again when one may have changed."""

import asyncio
from collections.abc import Awaitable, Callable
from operator import attrgetter
from typing import Any

import libvirt
import pytest

from deploy.lab.domain import disk
from deploy.lab.lab import make_disk
from drivers.base import MARK_NAMESPACE, Domain, Power
from drivers.kvm import records
from drivers.kvm.adopted import AdoptedDomains
from tests.contract.harness import ACCOUNT_ID
from tests.contract.kvm_bench import KvmBench

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOUR = 3600.0
FIRST = Domain(server_id=1, account_id=ACCOUNT_ID, name="server-1", power=Power.OFF)
MARK_2 = f'<server id="2" account="{ACCOUNT_ID}"/>'


def set_metadata(domain: Any, xml: str | None, *, prefix: str = "vps", namespace: str = MARK_NAMESPACE) -> None:
    where = libvirt.VIR_DOMAIN_AFFECT_CURRENT
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, xml and prefix, namespace, where)


def redefine(bench: KvmBench, metadata: str) -> None:
    devices = [disk(bench.path(1, target)) for target in ("vda", "vdb")]
    bench.connection.defineXML(bench.lab.domain_xml("server-1", devices, metadata=metadata))


def copy(bench: KvmBench, name: str, server_id: int) -> None:
    mark = f"<vps:server xmlns:vps='{MARK_NAMESPACE}' id='{server_id}' account='{ACCOUNT_ID}'/>"
    devices = [disk(make_disk(bench.lab.disk_path(f"{name}.qcow2")))]
    bench.connection.defineXML(bench.lab.domain_xml(name, devices, metadata=mark))


async def rename(bench: KvmBench) -> None:
    bench.domain(1).rename("server-9")


async def change_mark(bench: KvmBench) -> None:
    set_metadata(bench.domain(1), MARK_2)


async def remove_mark(bench: KvmBench) -> None:
    set_metadata(bench.domain(1), None)


async def redefine_as_another(bench: KvmBench) -> None:
    redefine(bench, f"<vps:server xmlns:vps='{MARK_NAMESPACE}' id='3' account='4'/>")


async def redefine_without_mark(bench: KvmBench) -> None:
    redefine(bench, "")


async def undefine(bench: KvmBench) -> None:
    bench.domain(1).undefine()


async def define_a_copy(bench: KvmBench) -> None:
    copy(bench, "server-8", 1)


async def start(bench: KvmBench) -> None:
    bench.domain(1).create()


async def start_and_suspend(bench: KvmBench) -> None:
    bench.domain(1).create()
    bench.domain(1).suspend()


async def start_with_a_mark_of_its_own(bench: KvmBench) -> None:
    """The mark of the running definition, which the persistent one does not have, ends with the guest."""
    bench.domain(1).create()
    set_metadata(bench.domain(1), MARK_2)
    assert [found.server_id for found in await bench.hypervisor.domains()] == [2]
    bench.domain(1).destroy()


CHANGES: list[tuple[Callable[[KvmBench], Awaitable[None]], list[Domain]]] = [
    (rename, [Domain(server_id=1, account_id=ACCOUNT_ID, name="server-9", power=Power.OFF)]),
    (change_mark, [Domain(server_id=2, account_id=ACCOUNT_ID, name="server-1", power=Power.OFF)]),
    (remove_mark, []),
    (redefine_as_another, [Domain(server_id=3, account_id=4, name="server-1", power=Power.OFF)]),
    (redefine_without_mark, []),
    (undefine, []),
    (define_a_copy, [FIRST, Domain(server_id=1, account_id=ACCOUNT_ID, name="server-8", power=Power.OFF)]),
    (start, [Domain(server_id=1, account_id=ACCOUNT_ID, name="server-1", power=Power.ON)]),
    (start_and_suspend, [Domain(server_id=1, account_id=ACCOUNT_ID, name="server-1", power=Power.PAUSED)]),
    (start_with_a_mark_of_its_own, [FIRST]),
]


@pytest.mark.parametrize(("change", "after"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
async def test_what_another_tool_changes_is_seen_when_libvirt_says_so(
    kvm_bench: KvmBench, change: Callable[[KvmBench], Awaitable[None]], after: list[Domain]
) -> None:
    await kvm_bench.add_server(1)
    changed = asyncio.Event()
    kvm_bench.hypervisor.watch(changed.set)
    await kvm_bench.events_have_passed()  # otherwise, an earlier change would have the marks read again
    assert await kvm_bench.hypervisor.domains(marks_seconds=HOUR) == [FIRST]
    changed.clear()
    async with asyncio.timeout(60):
        await change(kvm_bench)
        while sorted(await kvm_bench.hypervisor.domains(marks_seconds=HOUR), key=attrgetter("name")) != after:
            await changed.wait()
            changed.clear()


async def test_a_job_that_writes_its_records_wakes_nobody(kvm_bench: KvmBench) -> None:
    await kvm_bench.add_server(1)
    notices, times = 0, 50
    changed = asyncio.Event()

    def told() -> None:
        nonlocal notices
        notices += 1
        changed.set()

    kvm_bench.hypervisor.watch(told)
    for number in range(times):
        written = f"<snapshots><other n='{number}'/></snapshots>"
        set_metadata(kvm_bench.domain(1), written, prefix=records.PREFIX, namespace=records.NAMESPACE)
    set_metadata(kvm_bench.domain(1), MARK_2)
    async with asyncio.timeout(60):
        while [found.server_id for found in await kvm_bench.hypervisor.domains(marks_seconds=HOUR)] != [2]:
            await changed.wait()
            changed.clear()
    assert notices < times  # not 1, because some may be of what other tests did


class TestWithoutEvents:
    """The list itself, which nobody tells of changes."""

    async def test_only_the_marks_are_remembered(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        adopted = AdoptedDomains()

        def seen() -> list[tuple[str, int, Power]]:
            found = adopted.read(kvm_bench.connection, marks_seconds=HOUR)
            return sorted((one.domain.name(), one.mark.server_id, one.power) for one in found)

        assert seen() == [("server-1", 1, Power.OFF)]
        set_metadata(kvm_bench.domain(1), MARK_2)
        assert seen() == [("server-1", 1, Power.OFF)]
        kvm_bench.domain(1).create()
        assert seen() == [("server-1", 1, Power.ON)]
        kvm_bench.domain(1).suspend()
        assert seen() == [("server-1", 1, Power.PAUSED)]
        copy(kvm_bench, "server-8", 1)
        assert seen() == [("server-1", 1, Power.PAUSED), ("server-8", 1, Power.OFF)]
        kvm_bench.domain(8).rename("server-9")
        assert seen() == [("server-1", 1, Power.PAUSED), ("server-9", 1, Power.OFF)]
        kvm_bench.domain(9).undefine()
        assert seen() == [("server-1", 1, Power.PAUSED)]

    async def test_marks_are_read_again_when_they_are_too_old(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        adopted = AdoptedDomains()
        adopted.read(kvm_bench.connection, marks_seconds=HOUR)
        set_metadata(kvm_bench.domain(1), MARK_2)
        (found,) = adopted.read(kvm_bench.connection)
        assert found.mark.server_id == 2
        (found,) = adopted.read(kvm_bench.connection, marks_seconds=HOUR)
        assert found.mark.server_id == 2

    async def test_a_mark_that_changes_while_the_list_is_read_is_read_again(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        adopted = AdoptedDomains()

        class ChangesMeanwhile:
            """libvirt says that a mark has changed after the list has begun. The list may have read it before."""

            def getAllDomainStats(self, stats: int, flags: int) -> Any:  # noqa: N802 - libvirt's name
                adopted.forget_marks()
                return kvm_bench.connection.getAllDomainStats(stats, flags)

        adopted.read(ChangesMeanwhile(), marks_seconds=HOUR)
        set_metadata(kvm_bench.domain(1), MARK_2)
        (found,) = adopted.read(kvm_bench.connection, marks_seconds=HOUR)
        assert found.mark.server_id == 2

    async def test_a_domain_that_vanishes_while_the_list_is_read_is_left_out(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1)
        await kvm_bench.add_server(2)

        class OneVanishes:
            def getAllDomainStats(self, stats: int, flags: int) -> Any:  # noqa: N802 - libvirt's name
                found = kvm_bench.connection.getAllDomainStats(stats, flags)
                kvm_bench.domain(1).undefine()
                return found

        (found,) = AdoptedDomains().read(OneVanishes())
        assert found.mark.server_id == 2
