"""A hypervisor in memory: it passes the same contract suite as the real driver, and any operation can be made to fail.

It is as strict as qcow2. An interrupted change leaves a disk *dirty*: touching it before `repair` is misuse (recorded
in `misuse`, and raised), and starting the guest on it destroys every snapshot on the disk.
"""

import asyncio
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from drivers import fake_plan
from drivers.base import (
    About,
    AgentFailed,
    Contents,
    Disk,
    DiskCorrupt,
    DiskFailed,
    Domain,
    DomainNotFound,
    Firmware,
    FoundSnapshot,
    InvalidState,
    Layout,
    Pool,
    Power,
    RestorePlan,
    ServerInUse,
    SkippedDisk,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotSpec,
    UnsupportedServer,
    refuse_missing,
)
from drivers.fake_faults import Effect, Faults
from drivers.fake_state import FakeDisk, FakeServer, StateFile

TORN = "torn"  # what a guest reads from a disk whose revert was interrupted
TOTAL_BYTES = 400 << 30  # size of the storage
FIRST_SERVER_ID = 12345
SIMULATED_ACCOUNT_ID = 77


class Misused(AssertionError):
    """The caller broke a rule. On real disks this would have destroyed a customer's data."""


class FakeHypervisor:
    """With a `state_file`, changes survive the exit or death of the process."""

    def __init__(
        self, servers: Iterable[FakeServer] = (), *, state_file: Path | None = None, rules_file: Path | None = None
    ) -> None:
        self.faults = Faults(rules_file)
        self.free_bytes = 100 << 30
        self.misuse: list[str] = []
        self._watchers: list[Callable[[], None]] = []
        self._turned_off = asyncio.Condition()
        self._state = StateFile(state_file) if state_file else None
        self._domains = {server.name: server for server in servers}
        if self._state is not None:
            self._domains |= self._state.read()
        self._by_id = {server.server_id: server for server in self._domains.values() if server.server_id is not None}

    # --- for tests and simulations ---

    def add(self, server: FakeServer) -> FakeServer:
        self._domains[server.name] = server
        if server.server_id is not None:
            self._by_id[server.server_id] = server
        self._keep(server)
        self._notify()
        return server

    def remove(self, server_id: int) -> None:
        """Undefine the domain, as an operator would. Not recorded in the state file."""
        del self._domains[self._by_id.pop(server_id).name]
        self._notify()

    def server(self, server_id: int) -> FakeServer:
        """The domain, for a test to read and change as a guest or an operator would. Raises `DomainNotFound`."""
        if server_id not in self._by_id:
            raise DomainNotFound(f"no domain of this node is server {server_id}")
        return self._by_id[server_id]

    def write(self, server_id: int, text: str) -> None:
        """Write this text to every disk, as the guest would."""
        for disk in self.server(server_id).disks.values():
            disk.content = text
        self._keep(self.server(server_id))

    def read(self, server_id: int) -> dict[str, str]:
        """The text on each disk, by target, as the guest reads it."""
        return {target: disk.content for target, disk in self.server(server_id).disks.items()}

    # --- the port ---

    async def domains(self, *, marks_seconds: float = 0) -> list[Domain]:  # noqa: ARG002 - reads nothing
        await self._look()
        return [
            Domain(server_id=server_id, account_id=server.account_id, name=server.name, power=server.power)
            for server_id, server in self._by_id.items()
        ]

    async def about(self) -> About:
        await self._look()
        pool = Pool(path="/simulated", free_bytes=self.free_bytes, total_bytes=TOTAL_BYTES)
        return About(hypervisor="fake 1.0.0", emulator="fake 1.0.0", pools=(pool,))

    async def adopt(self, domain: str, *, server_id: int, account_id: int) -> None:
        if domain not in self._domains:
            raise DomainNotFound(f"this node has no domain {domain}")
        server = self._domains[domain]
        if self._by_id.get(server_id, server) is not server:
            raise InvalidState(f"server {server_id} is the domain {self._by_id[server_id].name}")

        def change() -> None:
            self._by_id.pop(server.server_id or -1, None)
            server.server_id, server.account_id = server_id, account_id
            self._by_id[server_id] = server

        await self._do(Effect.ADOPT, server, change=change)
        self._notify()

    async def identity(self, server_id: int) -> str:
        await self._look(server := self.server(server_id))
        return server.name

    def recall(self, server_id: int, identity: str) -> None:
        """No effect: no domain of the fake loses its mark."""

    async def power(self, server_id: int) -> Power:
        await self._look(server := self.server(server_id))
        return server.power

    async def press_power_button(self, server_id: int) -> None:
        server = self.server(server_id)

        def change() -> None:
            server.presses_needed = max(0, server.presses_needed - 1)
            if server.power is Power.ON and not (server.deaf or server.frozen or server.presses_needed):
                server.power, server.shut_down = Power.OFF, True

        await self._do(Effect.PRESS, server, change=change)
        await self._power_changed()

    async def wait_for_off(self, server_id: int, *, timeout_seconds: float) -> bool:
        await self._look(server := self.server(server_id))
        try:
            async with asyncio.timeout(timeout_seconds), self._turned_off:
                await self._turned_off.wait_for(lambda: server.power is Power.OFF)
        except TimeoutError:
            return False
        return True

    async def was_shut_down(self, server_id: int) -> bool | None:
        await self._look(server := self.server(server_id))
        return server.shut_down

    async def cut_power(self, server_id: int, *, in_a_hurry: bool = False) -> None:  # noqa: ARG002 - it never waits
        server = self.server(server_id)

        def change() -> None:
            if server.power is not Power.OFF:
                server.power, server.shut_down, server.frozen = Power.OFF, False, False

        await self._do(Effect.CUT, server, change=change)
        await self._power_changed()

    async def start(self, server_id: int) -> None:
        server = self.server(server_id)

        def change() -> None:
            if server.power is not Power.OFF:
                return
            for target, disk in server.disks.items():
                if disk.dirty:
                    self.misuse.append(f"server {server_id} was started with {target} dirty")
                    disk.tags.clear()
                    disk.content = TORN
            server.power = Power.ON

        await self._do(Effect.START, server, change=change)
        await self._power_changed()

    async def layout(self, server_id: int) -> Layout:
        await self._look(server := self.server(server_id))
        return self._layout(server)

    async def restore_plan(self, server_id: int, tag: str, *, present_only: bool = False) -> RestorePlan:
        await self._look(server := self.server(server_id))
        self._layout(server)
        return fake_plan.restore_plan(server, tag, present_only=present_only)

    async def shared_disks(self) -> Mapping[int, tuple[SkippedDisk, ...]]:
        await self._look()
        common = {server_id: self._shared(server) for server_id, server in self._by_id.items()}
        return {server_id: shared for server_id, shared in common.items() if shared}

    def _shared(self, server: FakeServer) -> tuple[SkippedDisk, ...]:
        others = {
            disk.image for other in self._domains.values() if other is not server for disk in other.disks.values()
        }
        reason = "it is also a disk of another server"
        return tuple(SkippedDisk(target=t, reason=reason) for t, disk in server.disks.items() if disk.image in others)

    async def refuse_if_in_use(self, server_id: int) -> None:
        await self._look(server := self.server(server_id))
        _refuse_if_in_use(server)

    async def hold(self, server_id: int) -> None:
        server = self.server(server_id)
        _refuse_if_in_use(server)
        await self._do(Effect.HOLD, server, change=lambda: setattr(server, "held", True))

    async def let_go(self, server_id: int) -> None:
        server = self.server(server_id)
        if server.held:
            await self._do(Effect.LET_GO, server, change=lambda: setattr(server, "held", False))

    async def free_space(self, server_id: int) -> int:
        await self._look(self.server(server_id))
        return self.free_bytes

    async def snapshots(self, server_id: int) -> list[FoundSnapshot]:
        await self._look(server := self.server(server_id))
        return [
            FoundSnapshot(
                tag=tag,
                targets=frozenset(target for target, disk in server.disks.items() if tag in disk.tags),
                complete=fake_plan.is_complete(server, tag),
                spec=server.listed.get(tag),
                current=tag == server.current,
                contents=server.contents.get(tag),
                missing=fake_plan.missing(server, tag),
            )
            for tag in sorted(_tags(server))
        ]

    async def list_for_people(self, server_id: int) -> tuple[str, ...]:
        await self._look(server := self.server(server_id))
        return tuple(server.listed)

    async def refuse_live(self, server_id: int) -> bool:
        await self._look(server := self.server(server_id))
        self._running(server_id)
        _refuse_frozen(server)
        for target in server.disks:
            if server.needs_stop:
                raise UnsupportedServer(f"disk {target} {server.needs_stop}")
        return server.agent

    async def freeze(self, server_id: int, *, timeout_seconds: float) -> bool:
        server = self._running(server_id)
        if not server.agent:
            return False
        _refuse_frozen(server)

        def change() -> None:
            _refuse_frozen(server)  # another tool may have been faster
            server.frozen = True

        try:
            async with asyncio.timeout(timeout_seconds):
                await self._do(Effect.FREEZE, server, change=change)
        except TimeoutError as error:
            raise AgentFailed("the guest's agent did not freeze the file systems in time") from error
        return True

    async def thaw(self, server_id: int) -> bool:
        server = self.server(server_id)
        if server.power is Power.OFF or not server.agent:
            return False
        was_frozen = server.frozen
        await self._do(Effect.THAW, server, change=functools.partial(setattr, server, "frozen", False))
        return was_frozen

    async def save_state(self, server_id: int, tag: str) -> None:
        await self._save_nvram(self.server(server_id), tag)

    async def take_live_snapshot(self, server_id: int, spec: SnapshotSpec) -> None:
        server = self._running(server_id)
        if any(spec.tag in disk.tags for disk in server.disks.values()):
            raise SnapshotExists(f"a disk of the server already has the tag {spec.tag}")

        def change() -> None:
            for disk in server.disks.values():
                _take(disk, spec.tag)

        await self._do(Effect.TRANSACTION, server, change=change)

    async def state_is_at(self, server_id: int, tag: str) -> bool:
        await self._look(server := self.server(server_id))
        return _nvram_is_at(server, tag)

    async def take_snapshot(self, server_id: int, spec: SnapshotSpec, *, consistency: str | None = None) -> None:
        server = self._off(server_id)
        self._layout(server)
        if spec.tag in _tags(server):
            raise SnapshotExists(f"the server's disks already have the tag {spec.tag}")
        for target, disk in server.disks.items():
            # An interrupted snapshot may leave a broken entry in the image, which must be deleted.
            half = functools.partial(_take, disk, spec.tag)
            await self._change_disk(Effect.SNAPSHOT_DISK, server, target, half=half, change=half)
        await self._save_nvram(server, spec.tag)
        await self._list(server, spec, fake_plan.contents_now(server, spec.tag, consistency))

    async def list_snapshot(
        self,
        server_id: int,
        spec: SnapshotSpec,
        contents: Contents | None = None,
        *,
        consistency: str | None = None,
    ) -> None:
        server = self.server(server_id)
        if not all(spec.tag in disk.tags for disk in server.disks.values()):
            raise SnapshotNotFound(f"not every disk of server {server.server_id} has the tag {spec.tag}")
        await self._list(server, spec, contents or fake_plan.contents_now(server, spec.tag, consistency))

    async def is_at(self, server_id: int, tag: str) -> bool:
        server = self._off(server_id)
        return _nvram_is_at(server, tag) and all(_is_at(disk, tag) for disk in server.disks.values())

    async def clear_bitmaps(self, server_id: int) -> tuple[str, ...]:
        server = self._off(server_id)
        cleared = []
        for target, disk in server.disks.items():
            if disk.bitmaps:
                await self._change_disk(Effect.CLEAR_BITMAPS, server, target, change=disk.bitmaps.clear)
                cleared.append(target)
        if server.checkpoints:
            await self._do(Effect.CLEAR_CHECKPOINTS, server, change=server.checkpoints.clear)
        return tuple(cleared)

    async def revert(self, server_id: int, tag: str, *, targets: frozenset[str] | None = None) -> None:
        server = self._off(server_id)
        self._layout(server)
        disks = {target: disk for target, disk in server.disks.items() if targets is None or target in targets}
        refuse_missing(targets, server.disks.keys())
        if not disks or any(tag not in disk.tags for disk in disks.values()):
            raise SnapshotNotFound(f"not every disk of server {server.server_id} has the tag {tag}")
        for target, disk in disks.items():
            if disk.bitmaps:
                raise DiskFailed(f"disk {target} has dirty bitmaps")
            if not _is_at(disk, tag):
                await self._change_disk(
                    Effect.REVERT_DISK,
                    server,
                    target,
                    half=functools.partial(setattr, disk, "content", TORN),
                    change=functools.partial(_go_back, disk, tag),
                )
        if server.nvram is not None and tag in server.nvram_copies:
            back = functools.partial(setattr, server, "nvram", server.nvram_copies[tag])
            await self._do(Effect.RESTORE_NVRAM, server, change=back)

    async def resize(self, server_id: int, virtual_bytes: Mapping[str, int]) -> frozenset[str]:
        server = self._off(server_id)
        found = virtual_bytes.keys() & server.disks.keys()
        for target in found:
            disk, size = server.disks[target], virtual_bytes[target]
            if disk.virtual_bytes < size:
                if not disk.can_grow:
                    raise DiskFailed(f"disk {target} cannot be enlarged")
                grow = functools.partial(setattr, disk, "virtual_bytes", size)
                await self._change_disk(Effect.RESIZE_DISK, server, target, change=grow)
        return frozenset(found)

    async def renew_generation_id(self, server_id: int) -> None:
        server = self._off(server_id)
        if server.generation is not None:
            renew = functools.partial(setattr, server, "generation", server.generation + 1)
            await self._do(Effect.RENEW_GENERATION, server, change=renew)

    async def delete_snapshot(self, server_id: int, tag: str) -> None:
        server = self.server(server_id)
        for target, disk in [*server.disks.items(), *server.detached.items()]:
            if tag in disk.tags:
                gone = functools.partial(_drop, disk, tag)
                if target in server.disks:
                    await self._change_disk(Effect.DELETE_TAG, server, target, change=gone)
                else:
                    await self._do(Effect.DELETE_TAG, server, target=target, change=gone)
        if tag in server.nvram_copies:
            await self._do(Effect.DELETE_NVRAM, server, change=lambda: server.nvram_copies.pop(tag))
        if tag in server.listed:
            await self._do(Effect.UNLIST, server, change=lambda: _unlist(server, tag))

    async def repair(self, server_id: int) -> tuple[str, ...]:
        server = self._off(server_id)
        repaired = []
        for target, disk in server.disks.items():
            if disk.ruined or disk.rotten:
                raise DiskCorrupt(f"disk {target} is damaged and cannot be repaired")
            if disk.dirty or disk.damaged:
                repair = functools.partial(_repair, disk)
                await self._do(Effect.REPAIR_DISK, server, target=target, change=repair)
                repaired.append(target)
        return tuple(repaired)

    async def size_mb(self, server_id: int, tag: str) -> int:
        server = self.server(server_id)
        await self.faults.effect(Effect.MEASURE, server_id=server_id)
        if any(tag not in disk.tags for disk in server.disks.values()):
            raise SnapshotNotFound(f"not every disk of server {server_id} has the tag {tag}")
        return sum(disk.data_mb for disk in server.disks.values())

    def watch(self, changed: Callable[[], None]) -> None:
        self._watchers.append(changed)

    async def close(self) -> None:
        self._watchers.clear()

    # --- effects ---

    async def _look(self, server: FakeServer | None = None) -> None:
        await self.faults.effect(Effect.LOOK, server_id=(server and server.server_id) or 0)

    async def _do(self, effect: Effect, server: FakeServer, *, target: str = "", change: Callable[[], object]) -> None:
        def changed() -> None:
            change()
            self._keep(server)

        await self.faults.effect(effect, server_id=server.server_id or 0, target=target, change=changed)

    async def _change_disk(
        self,
        effect: Effect,
        server: FakeServer,
        target: str,
        *,
        half: Callable[[], object] = lambda: None,
        change: Callable[[], object],
    ) -> None:
        disk = server.disks[target]
        if disk.dirty:
            self.misuse.append(f"{effect} on {target} of server {server.server_id}, which is dirty")
            raise Misused(self.misuse[-1])
        if server.power is not Power.OFF:  # the running QEMU makes the change, and finishes it even if the worker dies
            await self._do(effect, server, target=target, change=change)
            return

        def begin() -> None:
            half()
            disk.dirty = True
            self._keep(server)

        def end() -> None:
            change()
            disk.dirty = False
            self._keep(server)

        await self.faults.effect(effect, server_id=server.server_id or 0, target=target, half=begin, change=end)

    def _layout(self, server: FakeServer) -> Layout:
        if server.power is Power.PAUSED:
            raise InvalidState("the server is suspended")
        _refuse_if_in_use(server)
        for shared in self._shared(server):
            raise UnsupportedServer(f"disk {shared.target}: {shared.reason}")
        for target, disk in server.disks.items():
            if disk.unsupported:
                raise UnsupportedServer(f"disk {target} {disk.unsupported}")
            if disk.ruined:
                raise DiskCorrupt(f"disk {target} is marked corrupt")
        return Layout(
            disks=tuple(
                Disk(
                    target=target,
                    path=fake_plan.path(server, target),
                    virtual_bytes=disk.virtual_bytes,
                    bitmaps=tuple(disk.bitmaps),
                )
                for target, disk in server.disks.items()
            ),
            skipped=tuple(SkippedDisk(target=target, reason=reason) for target, reason in server.skipped.items()),
            nvram=server.nvram is not None,
            firmware=Firmware.BIOS if server.nvram is None else Firmware.UEFI,
            checkpoints=tuple(server.checkpoints),
            reduced=server.reduced_by_a_stop(),
            free_bytes=self.free_bytes,
        )

    async def _save_nvram(self, server: FakeServer, tag: str) -> None:
        if server.nvram is not None:
            saved = functools.partial(server.nvram_copies.__setitem__, tag, server.nvram)
            await self._do(Effect.SAVE_NVRAM, server, change=saved)

    def _running(self, server_id: int) -> FakeServer:
        server = self.server(server_id)
        if server.power is not Power.ON:
            raise InvalidState("the server is not running")
        return server

    def _off(self, server_id: int) -> FakeServer:
        server = self.server(server_id)
        if server.power is not Power.OFF:
            raise InvalidState(f"server {server_id} is not off")
        return server

    async def _list(self, server: FakeServer, spec: SnapshotSpec, contents: Contents) -> None:
        def change() -> None:
            server.listed[spec.tag] = spec
            server.contents[spec.tag] = contents

        await self._do(Effect.LIST, server, change=change)

    def _keep(self, server: FakeServer) -> None:
        if self._state is not None:
            self._state.write(server)

    async def _power_changed(self) -> None:
        async with self._turned_off:
            self._turned_off.notify_all()
        self._notify()

    def _notify(self) -> None:
        for changed in self._watchers:
            asyncio.get_running_loop().call_soon(changed)


def _tags(server: FakeServer) -> set[str]:
    return {tag for disk in server.disks.values() for tag in disk.tags} | {*server.nvram_copies, *server.listed}


def _nvram_is_at(server: FakeServer, tag: str) -> bool:
    return server.nvram is None or server.nvram_copies.get(tag) == server.nvram


def _refuse_if_in_use(server: FakeServer) -> None:
    if server.in_use:
        raise ServerInUse(f"the server {server.in_use}")


def _refuse_frozen(server: FakeServer) -> None:
    if server.frozen:
        raise ServerInUse("the server's file systems are frozen by another tool")


def _take(disk: FakeDisk, tag: str) -> None:
    disk.tags[tag] = disk.content
    disk.tag_bytes[tag] = disk.virtual_bytes


def _go_back(disk: FakeDisk, tag: str) -> None:
    disk.content = disk.tags[tag]
    disk.virtual_bytes = disk.tag_bytes.get(tag, disk.virtual_bytes)


def _drop(disk: FakeDisk, tag: str) -> None:
    del disk.tags[tag]
    disk.tag_bytes.pop(tag, None)


def _is_at(disk: FakeDisk, tag: str) -> bool:
    return disk.tags.get(tag) == disk.content and disk.tag_bytes.get(tag, disk.virtual_bytes) == disk.virtual_bytes


def _repair(disk: FakeDisk) -> None:
    disk.dirty = disk.damaged = False


def simulated_node(state_file: Path, *, servers: int) -> FakeHypervisor:
    """A node with this many running servers of one account; the state file has their changes from earlier runs.

    A file `faults.json` beside it may hold rules for faults (see `drivers.fake_faults`).
    """
    return FakeHypervisor(
        (
            FakeServer(
                name=f"web-server-{number + 1:02}",
                server_id=FIRST_SERVER_ID + number,
                account_id=SIMULATED_ACCOUNT_ID,
                power=Power.ON,
                disks={"vda": FakeDisk(), "vdb": FakeDisk()},
            )
            for number in range(servers)
        ),
        state_file=state_file,
        rules_file=state_file.with_name("faults.json"),
    )


def _unlist(server: FakeServer, tag: str) -> None:
    del server.listed[tag]
    server.contents.pop(tag, None)
    server.current = "" if server.current == tag else server.current
