"""The hypervisor port on libvirt and qemu-img.

On a domain that is off, qemu-img changes the disks and libvirt is told afterwards (REDEFINE), so that its list, `virsh`
and its own delete know the snapshot. On a running domain only libvirt may touch the disks.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Self

from drivers import qcow2
from drivers.base import (
    About,
    Contents,
    Disk,
    DiskCorrupt,
    DiskFailed,
    Domain,
    Firmware,
    FoundSnapshot,
    InvalidState,
    Layout,
    Power,
    RestorePlan,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotSpec,
    StartFailed,
    UnsupportedServer,
)
from drivers.kvm import disks, domain, in_use, listing, nvram, plan
from drivers.kvm.connection import Connection
from drivers.kvm.domain_xml import FileDisk, Hardware, refuse_unsupported
from drivers.kvm.plan import StateBeside
from drivers.kvm.snapshots import View, left_behind, read_disks

LOOK_AGAIN_SECONDS = 0.3  # libvirt's event of a stop was seen up to 1.6 s late


class KvmHypervisor:
    """libvirt at one URI: `qemu:///system`, or `qemu:///embed?root=DIR` within this process."""

    def __init__(self, connection: Connection) -> None:
        self._libvirt = connection
        self._waiting_for_off: list[asyncio.Event] = []
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

    async def domains(self) -> list[Domain]:
        return [
            Domain(server_id=mark.server_id, account_id=mark.account_id, name=name, power=power)
            for mark, name, power in await self._libvirt.adopted(lambda found: (found.name(), domain.power(found)))
        ]

    async def about(self) -> About:
        paths = await self._libvirt.adopted(lambda found: (domain.configured_paths(found), None))
        hypervisor, emulator = await self._libvirt.call(lambda handle: (handle.getLibVersion(), handle.getVersion()))
        pools = await asyncio.to_thread(disks.pools, {path for _, found, _ in paths for path in found})
        return About(hypervisor=f"libvirt {_version(hypervisor)}", emulator=f"QEMU {_version(emulator)}", pools=pools)

    async def adopt(self, name: str, *, server_id: int, account_id: int) -> None:
        await self._libvirt.adopt(name, server_id=server_id, account_id=account_id)

    # --- power ---

    async def power(self, server_id: int) -> Power:
        return await self._libvirt.on(server_id, domain.power)

    async def press_power_button(self, server_id: int) -> None:
        text = "the power button can't be pressed"
        await self._libvirt.on(server_id, domain.press_power_button, otherwise=InvalidState, text=text)

    async def wait_for_off(self, server_id: int, *, timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        changed = asyncio.Event()
        self._waiting_for_off.append(changed)
        try:
            while await self.power(server_id) is not Power.OFF:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LOOK_AGAIN_SECONDS)):
                        await changed.wait()
                changed.clear()
            return True
        finally:
            self._waiting_for_off.remove(changed)

    async def cut_power(self, server_id: int) -> None:
        text = "the server can't be turned off"
        await self._libvirt.on(server_id, domain.cut_power, otherwise=InvalidState, text=text)

    async def start(self, server_id: int) -> None:
        await self._libvirt.on(server_id, domain.start, otherwise=StartFailed, text="the server does not start")

    # --- looking ---

    async def layout(self, server_id: int) -> Layout:
        await self.refuse_if_in_use(server_id)
        found = await self._libvirt.on(server_id, domain.ready_hardware)
        refuse_unsupported(found)
        if found.uefi and (found.nvram is None or not found.nvram.is_file()):
            raise UnsupportedServer("the server's UEFI variables have no file yet: start the server once")
        images = {disk: await disks.readable(disk) for disk in found.disks}
        for disk, image in images.items():
            await disks.refuse_unfit(disk, image)
        return Layout(
            disks=tuple(
                Disk(target=disk.target, path=disk.path, virtual_bytes=image.virtual_bytes)
                for disk, image in images.items()
            ),
            skipped=found.skipped,
            nvram=found.nvram is not None,
            free_bytes=await self.free_space(server_id),
        )

    async def restore_plan(self, server_id: int, tag: str, *, present_only: bool = False) -> RestorePlan:
        layout = await self.layout(server_id)
        view = await self._view(server_id, await self._hardware(server_id))
        comparison, state = view.compare(tag), view.differing_state(tag)
        plan.refuse(comparison, state, present_only=present_only)
        return RestorePlan(
            targets=comparison.targets,
            not_restored=(*comparison.differing, *state),
            grown=tuple(match.grown for match in comparison.matches if match.grown is not None),
            bitmaps=tuple(disk.target for disk in layout.disks if disk.bitmaps and disk.target in comparison.targets),
            checkpoints=layout.checkpoints,
            generation_id=await self._libvirt.on(server_id, domain.has_generation_id),
        )

    async def refuse_if_in_use(self, server_id: int) -> None:
        await self._libvirt.on(server_id, in_use.refuse)

    async def hold(self, server_id: int) -> None:
        await self.refuse_if_in_use(server_id)  # libvirt would have us wait for half a minute, and then refuse
        await self._libvirt.on(server_id, listing.hold)

    async def let_go(self, server_id: int) -> None:
        await self._libvirt.on(server_id, listing.let_go)

    async def is_at(self, server_id: int, tag: str) -> bool:
        raise NotImplementedError

    async def clear_bitmaps(self, server_id: int) -> tuple[str, ...]:
        raise NotImplementedError

    async def resize(self, server_id: int, virtual_bytes: Mapping[str, int]) -> None:
        raise NotImplementedError

    async def renew_generation_id(self, server_id: int) -> None:
        raise NotImplementedError

    async def free_space(self, server_id: int) -> int:
        found = await self._hardware(server_id)
        with disks.refused_as(UnsupportedServer, "the storage of the server does not say what is free"):
            return await asyncio.to_thread(disks.free_bytes, found.disks)

    async def snapshots(self, server_id: int) -> list[FoundSnapshot]:
        return (await self._view(server_id, await self._hardware(server_id))).found()

    async def size_mb(self, server_id: int, tag: str) -> int:
        size_bytes = 0
        for disk in (await self._hardware(server_id)).disks:
            image = await disks.readable(disk)
            if tag not in image.tags:
                raise SnapshotNotFound(f"disk {disk.target} does not have the tag {tag}")
            with disks.refused_as(DiskFailed, f"disk {disk.target} can't be measured"):
                size_bytes += await qcow2.snapshot_bytes(disk.path, tag, image)
        return -(-size_bytes // (1 << 20))

    # --- changing ---

    async def take_snapshot(self, server_id: int, spec: SnapshotSpec) -> None:
        found = await self._ready_and_off(server_id)
        if any(snapshot.tag == spec.tag for snapshot in await self.snapshots(server_id)):
            raise SnapshotExists(f"the tag {spec.tag} exists already")
        if found.nvram is not None:
            with disks.refused_as(DiskFailed, "the UEFI variables can't be copied"):
                await asyncio.to_thread(nvram.save, found.nvram, spec.tag)
        await disks.on_every(
            found.disks, lambda disk: qcow2.create_snapshot(disk.path, spec.tag), text="took no snapshot"
        )
        await self._write_down(server_id, spec)

    async def list_snapshot(self, server_id: int, spec: SnapshotSpec, contents: Contents | None = None) -> None:
        await self._write_down(server_id, spec, contents)

    async def list_for_people(self, server_id: int) -> tuple[str, ...]:
        await self.refuse_if_in_use(server_id)
        whole = [found.spec for found in await self.snapshots(server_id) if found.complete and found.spec]
        ours = [spec for spec in whole if spec.tag.startswith(listing.OURS)]
        text = "libvirt did not list the snapshot"
        for spec in ours:
            await self._libvirt.on(
                server_id, partial(listing.list_for_people, spec=spec), otherwise=InvalidState, text=text
            )
        return tuple(spec.tag for spec in ours)

    async def revert(self, server_id: int, tag: str, *, targets: frozenset[str] | None = None) -> None:
        found = await self._ready_and_off(server_id)
        await self._must_be_complete(server_id, tag)
        await disks.on_every(
            found.disks, lambda disk: qcow2.apply_snapshot(disk.path, tag), text="did not go back to the snapshot"
        )
        if found.nvram is not None:
            with disks.refused_as(DiskFailed, "the UEFI variables can't be restored"):
                await asyncio.to_thread(nvram.restore, found.nvram, tag)

    async def delete_snapshot(self, server_id: int, tag: str) -> None:
        # What is written down goes last: a call that died anywhere is made again and finds what is left.
        found = await self._hardware(server_id)
        view = await self._view(server_id, found)
        if holders := view.holders(tag):
            await self._delete_from_disks(server_id, tag, found, holders)
            if tag in await disks.held_tags(found.disks):
                raise DiskFailed("a disk kept the snapshot")
        if (contents := view.contents(tag)) is not None:
            for disk in await asyncio.to_thread(left_behind, tag, contents, found.disks):
                await self._delete_left_behind(tag, disk)
        if found.nvram is not None:
            with disks.refused_as(DiskFailed, "the copy of the UEFI variables can't be deleted"):
                await asyncio.to_thread(nvram.delete, found.nvram, tag)
        text = "libvirt kept the snapshot in its list"
        await self._libvirt.on(server_id, lambda found: listing.strike_out(found, tag), otherwise=DiskFailed, text=text)

    async def repair(self, server_id: int) -> tuple[str, ...]:
        await self._must_be_off(server_id)
        mended = []
        for disk in (await self._hardware(server_id)).disks:
            with disks.unchecked(disk):
                if not await qcow2.is_sound(disk.path):
                    mended.append(disk.target)
                    await qcow2.repair(disk.path)
                    if not await qcow2.is_sound(disk.path):
                        raise DiskCorrupt(f"disk {disk.target} is damaged and can't be mended")
        return tuple(mended)

    # --- how ---

    def _wake_waiting(self) -> None:
        for changed in self._waiting_for_off:
            changed.set()

    async def _hardware(self, server_id: int) -> Hardware:
        return await self._libvirt.on(server_id, domain.configured_hardware)

    async def _must_be_off(self, server_id: int) -> None:
        if await self.power(server_id) is not Power.OFF:
            raise InvalidState("the server is not off")

    async def _must_be_complete(self, server_id: int, tag: str) -> None:
        if not any(snapshot.tag == tag and snapshot.complete for snapshot in await self.snapshots(server_id)):
            raise SnapshotNotFound("not every disk that the server has today holds the snapshot")

    async def _view(self, server_id: int, found: Hardware) -> View:
        written = await self._libvirt.on(server_id, listing.written_down)
        now, copies = _beside(found)
        return View(hardware=found, disks=await read_disks(found.disks), written=written, beside=now, copies=copies)

    async def _write_down(self, server_id: int, spec: SnapshotSpec, contents: Contents | None = None) -> None:
        view = await self._view(server_id, await self._hardware(server_id))
        record = view.record(spec, contents)
        if record is None:
            raise SnapshotNotFound("not every disk that the server has today holds the snapshot")
        text = "libvirt did not write down the snapshot"
        await self._libvirt.on(
            server_id, lambda found: listing.write_down(found, record), otherwise=DiskFailed, text=text
        )

    async def _ready_and_off(self, server_id: int) -> Hardware:
        await self._must_be_off(server_id)
        await self.layout(server_id)  # refuses what it must before the first effect
        return await self._hardware(server_id)

    async def _delete_from_disks(self, server_id: int, tag: str, found: Hardware, holders: frozenset[str]) -> None:
        held = [disk for disk in found.disks if disk.target in holders]
        if await self.power(server_id) is Power.OFF:
            await disks.on_every(held, lambda disk: qcow2.delete_snapshot(disk.path, tag), text="kept the snapshot")
        else:
            text = "a disk of the running server kept the snapshot"
            await self._libvirt.on(
                server_id,
                lambda found: domain.delete_under_guest(found, held, tag),
                otherwise=DiskFailed,
                text=text,
            )

    async def _delete_left_behind(self, tag: str, disk: FileDisk) -> None:
        """From a file that is no disk of the server any more: by the QEMU that runs on it now, if one does."""
        in_qemu = await self._libvirt.call(
            lambda handle: domain.delete_where_it_runs(handle, disk.path, tag),
            otherwise=DiskFailed,
            text=f"disk {disk.target}, which is not the server's any more, kept the snapshot",
        )
        if not in_qemu:
            await disks.on_every([disk], lambda disk: qcow2.delete_snapshot(disk.path, tag), text="kept the snapshot")


def _beside(found: Hardware) -> tuple[StateBeside, dict[str, StateBeside]]:
    """UEFI variables and TPM: what the server has, and the copies by tag."""
    firmware = Firmware.UEFI if found.uefi else Firmware.BIOS
    now = StateBeside(nvram=found.nvram is not None, tpm=False, firmware=firmware)
    in_nvram = nvram.tags(found.nvram) if found.nvram else frozenset()
    return now, {tag: replace(now, nvram=True) for tag in in_nvram}


def _version(number: int) -> str:
    """As libvirt packs versions: a million for each major, a thousand for each minor."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
