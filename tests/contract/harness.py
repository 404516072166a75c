"""What the contract suite needs besides a driver: servers, and access to their disks as a guest has it."""

from pathlib import Path
from typing import Protocol

from drivers.base import Hypervisor, Power
from drivers.fake import FakeHypervisor
from drivers.fake_state import FakeDisk, FakeServer

ACCOUNT_ID = 77
TARGETS = ("vda", "vdb", "vdc")


class Bench(Protocol):
    """Servers are named `server-ID`; their disks, each of 64 MiB, are `TARGETS` in this order."""

    @property
    def hypervisor(self) -> Hypervisor: ...

    async def reopen(self) -> None:
        """Close the driver and open it again, as a restarted worker does."""
        ...

    async def add_server(
        self,
        server_id: int,
        *,
        disks: int = 2,
        running: bool = False,
        deaf: bool = False,
        uefi: bool = False,
        adopted: bool = True,
    ) -> None: ...

    def write(self, server_id: int, text: str) -> None:
        """Write this text to every disk, as the guest would, while it is off."""
        ...

    def read(self, server_id: int) -> dict[str, str]:
        """The text on each disk of a server that is off."""
        ...

    def write_nvram(self, server_id: int, text: str) -> None: ...

    def read_nvram(self, server_id: int) -> str: ...

    def plant_tag(self, server_id: int, target: str, tag: str) -> None:
        """Add a tag to one disk without recording it."""
        ...

    def drop_tag(self, server_id: int, target: str, tag: str) -> None:
        """Remove a tag from one disk without the driver."""
        ...

    def unlist(self, server_id: int, tag: str) -> None:
        """Remove a snapshot from the hypervisor's own list without the driver; the disks keep it."""
        ...

    def revert_outside(self, server_id: int, tag: str) -> None:
        """Revert as `virsh snapshot-revert` does."""
        ...

    def tear(self, server_id: int, target: str) -> None:
        """Leave one disk that holds a snapshot as an interrupted change would."""
        ...

    def ruin(self, server_id: int, target: str) -> None:
        """Damage one disk beyond repair."""
        ...

    def suspend(self, server_id: int) -> None:
        """Pause a running guest, as an operator would."""
        ...

    async def events_have_passed(self) -> None:
        """Wait until all watchers have been notified of the changes so far."""
        ...

    async def close(self) -> None:
        """Remove all servers."""
        ...


class FakeBench:
    def __init__(self, folder: Path) -> None:
        self._state_file = folder / "fake.json"
        self.hypervisor = FakeHypervisor(state_file=self._state_file)

    async def reopen(self) -> None:
        await self.hypervisor.close()
        self.hypervisor = FakeHypervisor(state_file=self._state_file)

    async def add_server(
        self,
        server_id: int,
        *,
        disks: int = 2,
        running: bool = False,
        deaf: bool = False,
        uefi: bool = False,
        adopted: bool = True,
    ) -> None:
        self.hypervisor.add(
            FakeServer(
                name=f"server-{server_id}",
                server_id=server_id if adopted else None,
                account_id=ACCOUNT_ID if adopted else 0,
                power=Power.ON if running else Power.OFF,
                deaf=deaf,
                disks={target: FakeDisk(virtual_bytes=64 << 20) for target in TARGETS[:disks]},
                nvram="as installed" if uefi else None,
            )
        )

    def write(self, server_id: int, text: str) -> None:
        self.hypervisor.write(server_id, text)

    def read(self, server_id: int) -> dict[str, str]:
        return self.hypervisor.read(server_id)

    def write_nvram(self, server_id: int, text: str) -> None:
        self.hypervisor.server(server_id).nvram = text

    def read_nvram(self, server_id: int) -> str:
        return self.hypervisor.server(server_id).nvram or ""

    def plant_tag(self, server_id: int, target: str, tag: str) -> None:
        disk = self._disk(server_id, target)
        disk.tags[tag] = disk.content

    def drop_tag(self, server_id: int, target: str, tag: str) -> None:
        del self._disk(server_id, target).tags[tag]

    def unlist(self, server_id: int, tag: str) -> None:
        server = self.hypervisor.server(server_id)
        del server.listed[tag]
        server.current = "" if server.current == tag else server.current

    def revert_outside(self, server_id: int, tag: str) -> None:
        server = self.hypervisor.server(server_id)
        for disk in server.disks.values():
            disk.content = disk.tags[tag]
        server.current = tag

    def tear(self, server_id: int, target: str) -> None:
        self._disk(server_id, target).dirty = True

    def ruin(self, server_id: int, target: str) -> None:
        self._disk(server_id, target).ruined = True

    def suspend(self, server_id: int) -> None:
        self.hypervisor.server(server_id).power = Power.PAUSED

    async def events_have_passed(self) -> None:
        """It notifies during the change."""

    async def close(self) -> None:
        await self.hypervisor.close()
        assert not self.hypervisor.misuse

    def _disk(self, server_id: int, target: str) -> FakeDisk:
        return self.hypervisor.server(server_id).disks[target]
