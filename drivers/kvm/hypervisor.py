"""The hypervisor port for libvirt and qemu-img.

If a domain is off, qemu-img changes its disks, and the snapshot is recorded in the domain's metadata (ADR 15). If it
runs, only its QEMU may change the disks, and libvirt forwards our commands to it.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Self

from drivers import qcow2
from drivers.base import (
    About,
    AgentFailed,
    Contents,
    Disk,
    DiskBusy,
    DiskFailed,
    Domain,
    FoundSnapshot,
    InvalidState,
    Layout,
    Power,
    RestorePlan,
    ServerInUse,
    SkippedDisk,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotSpec,
    StartFailed,
    UnsupportedServer,
    is_ours,
    refuse_missing,
)
from drivers.kvm import deleting, disks, domain, guest_agent, in_use, listing, live_snapshot, plan, readiness, sharing
from drivers.kvm.adopted import Adopted
from drivers.kvm.connection import Connection
from drivers.kvm.domain_xml import Hardware, Kind
from drivers.kvm.judgment import judge
from drivers.kvm.neighbors import Neighbors
from drivers.kvm.places import pid_files_of, places_of
from drivers.kvm.qemu_process import QemuProcess
from drivers.kvm.snapshots import View, copies_of, left_behind, look, read_disks

QEMU_DEATH_SECONDS = 10.0  # limit for libvirt to notice that a QEMU has died; observed: 1.6 s
POLL_SECONDS = 0.3  # while waiting for a stop: libvirt's event was observed up to 1.6 s late


class KvmHypervisor:
    """libvirt at one URI: `qemu:///system`, or `qemu:///embed?root=DIR` within this process."""

    def __init__(self, connection: Connection) -> None:
        self._libvirt = connection
        self._places = places_of(connection.uri)
        self._pid_files = pid_files_of(connection.uri)
        self._waiting_for_off: list[asyncio.Event] = []
        self._neighbors = Neighbors(connection, self._places)
        connection.listen(self._wake_waiting)

    @classmethod
    async def open(cls, uri: str) -> Self:
        """Raises HypervisorUnavailable."""
        connection = Connection(uri)
        await connection.open()
        return cls(connection)

    async def close(self) -> None:
        await self._libvirt.close()

    def watch(self, changed: Callable[[], None]) -> None:
        self._libvirt.listen(changed)

    async def domains(self, *, marks_seconds: float = 0) -> list[Domain]:
        def read(found: Adopted) -> Domain:
            mark, name = found.mark, found.domain.name()
            return Domain(server_id=mark.server_id, account_id=mark.account_id, name=name, power=found.power)

        return await self._libvirt.adopted(read, marks_seconds=marks_seconds)

    async def about(self) -> About:
        found = await self._libvirt.adopted(lambda one: domain.configured_hardware(one.domain, self._places).disks)
        hypervisor, emulator = await self._libvirt.call(lambda handle: (handle.getLibVersion(), handle.getVersion()))
        pools = await asyncio.to_thread(disks.pools, {disk.path for held in found for disk in held})
        return About(hypervisor=f"libvirt {_version(hypervisor)}", emulator=f"QEMU {_version(emulator)}", pools=pools)

    async def adopt(self, name: str, *, server_id: int, account_id: int) -> None:
        await self._libvirt.adopt(name, server_id=server_id, account_id=account_id)

    async def identity(self, server_id: int) -> str:
        return await self._libvirt.on(server_id, lambda found: str(found.UUIDString()))

    def recall(self, server_id: int, identity: str) -> None:
        self._libvirt.recall(server_id, identity)

    # --- power ---

    async def power(self, server_id: int) -> Power:
        return await self._libvirt.on(server_id, readiness.power)

    async def press_power_button(self, server_id: int) -> None:
        text = "the server could not be asked to shut down"
        await self._libvirt.on(server_id, domain.press_power_button, otherwise=InvalidState, text=text)

    async def wait_for_off(self, server_id: int, *, timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        changed = asyncio.Event()
        self._waiting_for_off.append(changed)
        try:
            async with self._unheard_until_gone(server_id):
                while await self.power(server_id) is not Power.OFF:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(left, POLL_SECONDS)):
                            await changed.wait()
                    changed.clear()
                return True
        finally:
            self._waiting_for_off.remove(changed)

    @asynccontextmanager
    async def _unheard_until_gone(self, server_id: int) -> AsyncIterator[None]:
        """Within the block, libvirt is told that the server's QEMU has ended when its process is gone."""
        found = list[QemuProcess]()  # whoever takes one out of the list closes it
        is_over = threading.Event()

        def find(one: Any) -> None:
            if (qemu := domain.qemu_of(one, pid_files=self._pid_files)) is None:
                return
            found.append(qemu)
            if is_over.is_set() and found:  # the call took so long that nobody waits for it any more
                found.pop().close()

        try:
            await self._libvirt.on(server_id, find)
            with found[0].told_when_gone() if found else nullcontext():
                yield
        finally:
            is_over.set()
            while found:
                found.pop().close()

    async def was_shut_down(self, server_id: int) -> bool | None:
        return await self._libvirt.on(
            server_id,
            lambda found: readiness.was_shut_down(found) and not self._libvirt.was_ended_by_host(found.UUIDString()),
        )

    async def cut_power(self, server_id: int, *, in_a_hurry: bool = False) -> None:
        text = "the server could not be powered off"
        hurried = partial(domain.cut_power_in_a_hurry, pid_files=self._pid_files)
        cut = hurried if in_a_hurry else domain.cut_power
        await self._libvirt.on(server_id, cut, otherwise=InvalidState, text=text)

    async def start(self, server_id: int) -> None:
        try:
            await self._libvirt.on(server_id, domain.start, otherwise=StartFailed, text="the server did not start")
        except StartFailed:
            with suppress(UnsupportedServer):  # a disk cannot be accessed; StartFailed is raised, which is retried
                await self._refuse_busy_disks(server_id)
            raise

    async def _refuse_busy_disks(self, server_id: int) -> None:
        """Raises DiskBusy if another program holds a disk of a server that is off."""
        try:
            await disks.refuse_held((await self._hardware(server_id)).disks, patience_seconds=0)
        except ServerInUse as error:  # a backup, for example
            raise DiskBusy(f"the server did not start: {error}") from error

    # --- reading ---

    async def layout(self, server_id: int) -> Layout:
        await self.refuse_if_in_use(server_id)
        found = await self._libvirt.on(server_id, lambda found: domain.ready_hardware(found, self._places))
        judged = await judge(found)
        judged.refuse()
        await self._libvirt.on(server_id, lambda one: readiness.refuse_unstoppable(one, found.disks))
        if await self.power(server_id) is Power.OFF:
            await disks.refuse_held(found.disks)
        await self._neighbors.refuse_shared(server_id, found.disks)
        written = await self._libvirt.on(server_id, lambda found: listing.written_down(found, self._places))
        await asyncio.to_thread(sharing.refuse_overlays, found.disks, written.ours)
        return Layout(
            disks=tuple(
                Disk(
                    target=disk.target,
                    path=disk.path,
                    virtual_bytes=image.virtual_bytes,
                    bitmaps=tuple(bitmap.name for bitmap in image.bitmaps),
                )
                for disk, image in judged.images.items()
            ),
            skipped=judged.skipped,
            nvram=judged.holds(Kind.NVRAM, Kind.PFLASH),
            tpm=judged.holds(Kind.TPM),
            firmware=found.firmware,
            free_bytes=await self.free_space(server_id),
            checkpoints=await self._libvirt.on(server_id, domain.checkpoints),
            reduced=await self._libvirt.on(server_id, readiness.reduced),
        )

    async def restore_plan(self, server_id: int, tag: str, *, present_only: bool = False) -> RestorePlan:
        layout = await self.layout(server_id)
        view = await self._view(server_id)
        comparison = view.compare(tag)
        state = (*view.differing_state(tag), *await self._other_tpm(view, tag))
        plan.refuse(comparison, state, present_only=present_only)
        going_back = comparison.going_back(present_only=present_only)
        with disks.refused_as(UnsupportedServer, "the UEFI variables or the TPM could not be restored"):
            await asyncio.to_thread(copies_of(view.hardware, view.contents(tag)).refuse_unrestorable, tag)
        return RestorePlan(
            targets=tuple(match.target for match in going_back),
            not_restored=(*comparison.left_alone(), *state),
            grown=tuple(match.grown for match in going_back if match.grown is not None),
            bitmaps=tuple(disk.target for disk in layout.disks if disk.bitmaps),
            checkpoints=layout.checkpoints,
            generation_id=view.hardware.generation_id,
            reduced=layout.reduced,
        )

    async def _other_tpm(self, view: View, tag: str) -> tuple[SkippedDisk, ...]:
        with disks.refused_as(UnsupportedServer, "the copies of the UEFI variables or the TPM cannot be read"):
            unfit = await asyncio.to_thread(copies_of(view.hardware, view.contents(tag)).unfit, tag)
        reason = "the server's TPM has another version than when the snapshot was taken"
        return tuple(SkippedDisk(target=kind, reason=reason) for kind in unfit)

    async def shared_disks(self) -> Mapping[int, tuple[SkippedDisk, ...]]:
        return await self._neighbors.shared_disks()

    async def refuse_if_in_use(self, server_id: int) -> None:
        await self._libvirt.on(server_id, in_use.refuse)

    async def refuse_live(self, server_id: int) -> bool:
        found = (await self._hardware(server_id)).disks
        await self._libvirt.on(server_id, partial(live_snapshot.refuse_unfit, disks=found))
        return await self._libvirt.on(server_id, guest_agent.refuse_frozen)

    async def hold(self, server_id: int) -> None:
        await self.refuse_if_in_use(server_id)  # otherwise libvirt waits for half a minute before it refuses
        await self._libvirt.on(server_id, listing.hold)

    async def let_go(self, server_id: int) -> None:
        await self._libvirt.on(server_id, listing.let_go)

    async def renew_generation_id(self, server_id: int) -> None:
        await self._must_be_off(server_id)
        text = "the server's VM generation ID could not be changed"
        await self._libvirt.on(server_id, domain.renew_generation_id, otherwise=DiskFailed, text=text)

    async def free_space(self, server_id: int) -> int:
        found = await self._hardware(server_id)
        with disks.refused_as(UnsupportedServer, "the free space of the server's storage cannot be read"):
            return await asyncio.to_thread(disks.free_bytes, found.disks)

    async def snapshots(self, server_id: int) -> list[FoundSnapshot]:
        return (await self._view(server_id)).found()

    async def size_mb(self, server_id: int, tag: str) -> int:
        size_bytes = 0
        found = (await self._hardware(server_id)).disks
        await disks.ids_of(found, tag)
        for disk in found:
            image = await disks.readable(disk)
            with disks.refused_as(DiskFailed, f"the snapshot's size on disk {disk.target} cannot be measured"):
                size_bytes += await qcow2.snapshot_bytes(disk.path, tag, image)
        return -(-size_bytes // (1 << 20))

    async def is_at(self, server_id: int, tag: str) -> bool:
        await self._must_be_off(server_id)
        view = await self._view(server_id)
        return await self._state_is_at(view, tag) and await disks.are_at(view.hardware.disks, tag)

    async def state_is_at(self, server_id: int, tag: str) -> bool:
        return await self._state_is_at(await self._view(server_id), tag)

    # --- changing ---

    async def freeze(self, server_id: int, *, timeout_seconds: float) -> bool:
        return await self._libvirt.on(
            server_id,
            partial(guest_agent.freeze, timeout_seconds=timeout_seconds),
            otherwise=InvalidState,  # before the freeze was sent
            text="the guest's agent could not be asked to freeze the file systems",
        )

    async def thaw(self, server_id: int) -> bool:
        text = "the guest's agent could not be asked to thaw the file systems"
        try:
            # even if another call hangs: libvirt sends commands to the agent while one to QEMU is running
            return await self._libvirt.on(server_id, guest_agent.thaw, otherwise=AgentFailed, text=text, if_hung=True)
        except ServerInUse as error:  # another tool is talking to the agent
            raise AgentFailed(text) from error

    async def save_state(self, server_id: int, tag: str) -> None:
        with disks.refused_as(DiskFailed, "the UEFI variables or the TPM cannot be copied"):
            await asyncio.to_thread(copies_of(await self._hardware(server_id)).save, tag)

    async def take_live_snapshot(self, server_id: int, spec: SnapshotSpec) -> None:
        found = (await self._hardware(server_id)).disks
        take = partial(live_snapshot.take, disks=found, tag=spec.tag)
        try:
            await self._libvirt.on(
                server_id, take, otherwise=DiskFailed, text="the snapshot of the running server could not be taken"
            )
        except DiskFailed:
            if not await self._libvirt.on(server_id, live_snapshot.qemu_answers):
                # It has died, which libvirt notices late; its disks must not be treated as those of a running server.
                await self.wait_for_off(server_id, timeout_seconds=QEMU_DEATH_SECONDS)
            raise

    async def take_snapshot(self, server_id: int, spec: SnapshotSpec, *, consistency: str | None = None) -> None:
        found = await self._ready_and_off(server_id)
        if any(snapshot.tag == spec.tag for snapshot in await self.snapshots(server_id)):
            raise SnapshotExists(f"the server already has the tag {spec.tag}")
        with disks.refused_as(DiskFailed, "the UEFI variables or the TPM cannot be copied"):
            await asyncio.to_thread(copies_of(found).save, spec.tag)
        await disks.on_every(
            found.disks, lambda disk: qcow2.create_snapshot(disk.path, spec.tag), text="the snapshot could not be taken"
        )
        await self._write_down(server_id, spec, consistency=consistency)

    async def list_snapshot(
        self,
        server_id: int,
        spec: SnapshotSpec,
        contents: Contents | None = None,
        *,
        consistency: str | None = None,
    ) -> None:
        await self._write_down(server_id, spec, contents, consistency=consistency)

    async def list_for_people(self, server_id: int) -> tuple[str, ...]:
        await self.refuse_if_in_use(server_id)
        whole = [found.spec for found in await self.snapshots(server_id) if found.complete and found.spec]
        ours = [spec for spec in whole if is_ours(spec.tag)]
        for spec in ours:
            await self._libvirt.on(
                server_id,
                partial(listing.list_for_people, spec=spec, places=self._places),
                otherwise=InvalidState,
                text="libvirt could not list the snapshot",
            )
        return tuple(spec.tag for spec in ours)

    async def clear_bitmaps(self, server_id: int) -> tuple[str, ...]:
        await self._must_be_off(server_id)
        cleared = await disks.without_bitmaps((await self._hardware(server_id)).disks)
        text = "the server's checkpoints could not be removed"
        await self._libvirt.on(server_id, domain.forget_checkpoints, otherwise=DiskFailed, text=text)
        return cleared

    async def revert(self, server_id: int, tag: str, *, targets: frozenset[str] | None = None) -> None:
        found = await self._ready_and_off(server_id)
        if targets is None:
            await self._must_be_complete(server_id, tag)
        chosen = [disk for disk in found.disks if targets is None or disk.target in targets]
        refuse_missing(targets, {disk.target for disk in found.disks})
        ids = await disks.ids_of(chosen, tag)
        # Skip an unchanged disk: if its revert failed, the revert to the safety snapshot would fail too.
        changed = [disk for disk in chosen if not await disks.are_at([disk], tag)]
        await disks.on_every(
            changed, lambda disk: qcow2.apply_snapshot(disk.path, ids[disk]), text="it could not be reverted"
        )
        held = (await self._view(server_id)).contents(tag)
        with disks.refused_as(DiskFailed, "the UEFI variables or the TPM cannot be restored"):
            await asyncio.to_thread(copies_of(found, held).restore, tag)

    async def resize(self, server_id: int, virtual_bytes: Mapping[str, int]) -> frozenset[str]:
        await self._must_be_off(server_id)
        found = [disk for disk in (await self._hardware(server_id)).disks if disk.target in virtual_bytes]
        await disks.on_every(
            found, lambda disk: qcow2.enlarge(disk.path, virtual_bytes[disk.target]), text="it could not be enlarged"
        )
        return frozenset(disk.target for disk in found)

    async def delete_snapshot(self, server_id: int, tag: str) -> None:
        # The record is deleted last, so that a repeated call finds the remaining parts.
        view = await self._view(server_id)
        found = view.hardware
        if holders := view.holders(tag):
            held_by = [disk for disk in found.disks if disk.target in holders]
            running = await self.power(server_id) is not Power.OFF
            await deleting.from_disks(self._libvirt, server_id, tag, held_by, running=running)
            if any(disk.tables.named(tag) for disk in await read_disks(found.disks)):
                raise DiskFailed("the snapshot could not be deleted from a disk")
        held = view.contents(tag)
        for disk in await asyncio.to_thread(left_behind, tag, held, found.disks) if held else ():
            await deleting.from_former_disk(self._libvirt, tag, disk)
        former = await self._libvirt.on(
            server_id,
            lambda found: (*domain.listed_variables(found, tag), domain.assumed_variables(found, self._places)),
        )
        with disks.refused_as(DiskFailed, "the copies of the UEFI variables or the TPM cannot be deleted"):
            await asyncio.to_thread(copies_of(found, held, former=former).delete, tag)
        text = "the record of the snapshot could not be deleted"
        await self._libvirt.on(
            server_id, lambda found: listing.delete_record(found, tag), otherwise=DiskFailed, text=text
        )

    async def repair(self, server_id: int) -> tuple[str, ...]:
        await self._must_be_off(server_id)
        return await disks.repaired((await self._hardware(server_id)).disks)

    # --- helpers ---

    async def _state_is_at(self, view: View, tag: str) -> bool:
        if view.differing_state(tag):
            return False
        with disks.refused_as(DiskFailed, "the copies of the UEFI variables or the TPM cannot be read"):
            return await asyncio.to_thread(copies_of(view.hardware, view.contents(tag)).is_at, tag)

    def _wake_waiting(self) -> None:
        for changed in self._waiting_for_off:
            changed.set()

    async def _hardware(self, server_id: int) -> Hardware:
        """The domain's hardware. Raises DiskBusy if the file of a disk is currently unknown, because a snapshot needs
        all disks."""
        found = await self._libvirt.on(server_id, lambda found: domain.configured_hardware(found, self._places))
        if found.away:
            raise DiskBusy(found.away[0])
        return found

    async def _must_be_off(self, server_id: int) -> None:
        if await self.power(server_id) is not Power.OFF:
            raise InvalidState("the server is not off")

    async def _must_be_complete(self, server_id: int, tag: str) -> None:
        missing = (await self._view(server_id)).missing(tag, for_certain=True)
        if missing:
            raise SnapshotNotFound("; ".join(missing))

    async def _view(self, server_id: int) -> View:
        found = await self._hardware(server_id)
        written = await self._libvirt.on(server_id, lambda one: listing.written_down(one, self._places))
        return await look(found, written)

    async def _write_down(
        self, server_id: int, spec: SnapshotSpec, contents: Contents | None = None, *, consistency: str | None = None
    ) -> None:
        view = await self._view(server_id)
        record = view.record(spec, contents, consistency=consistency)
        if record is None:
            raise SnapshotNotFound("not every disk of the server has the snapshot")
        with disks.refused_as(DiskFailed, "the copy of the UEFI variables cannot be moved next to the disks"):
            await asyncio.to_thread(copies_of(view.hardware).move_former, spec.tag)
        text = "the snapshot could not be recorded in the domain's metadata"
        await self._libvirt.on(
            server_id, lambda found: listing.write_record(found, record), otherwise=DiskFailed, text=text
        )

    async def _ready_and_off(self, server_id: int) -> Hardware:
        await self._must_be_off(server_id)
        await self.layout(server_id)  # raises before the first effect
        return await self._hardware(server_id)


def _version(number: int) -> str:
    """libvirt encodes a version as major * 1,000,000 + minor * 1,000 + release."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
