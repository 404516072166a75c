"""The node's only server: a real guest under the embedded libvirt.

Only one process at a time can use an embedded libvirt. Except for the console, a guest can therefore be used only while
no worker runs.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

from deploy.demo.state import State
from deploy.lab.console import Console, Ready
from deploy.lab.domain import disk
from deploy.lab.guest import GuestNotBuilt
from deploy.lab.lab import Lab, LabFailed, make_disk

DISKS = {"vda": "64M", "vdb": "64M"}  # two, to show that all disks are snapshotted together
_ADOPT = Path(sys.executable).parent / "vps-snapshots-worker"
_SHUTDOWN_SECONDS = 30.0  # before its power is cut; the guest needs a tenth of that


class GuestFailed(Exception):
    """The guest did not start, stop or get adopted; the text says what failed."""


class Guest:
    """The domain, managed without the service, as its owner would."""

    def __init__(self, state: State, *, server_id: int, name: str, account_id: int) -> None:
        self.name = name
        self._state = state
        self._server_id = server_id
        self._account_id = account_id
        self._stopping: asyncio.Task[None] | None = None

    @property
    def disks(self) -> list[Path]:
        folder = self._state.subfolder("disks")
        return [folder / f"{target}.qcow2" for target in DISKS]

    @property
    def console(self) -> Console:
        return self._lab.console(self.name)

    @property
    def _lab(self) -> Lab:
        return Lab(self._state.libvirt_root)

    @property
    def uri(self) -> str:
        return self._lab.uri

    async def start(self) -> int:
        """Start the guest; create its disks, define and adopt it if necessary. Returns before it has booted.

        Returns the offset in the console's log after which `console.ready` finds this boot. Raises GuestFailed.
        """
        lab, after = self._lab, self.console.end()
        try:
            await asyncio.to_thread(lambda: lab.image)
            for path, size in zip(self.disks, DISKS.values(), strict=True):
                if not path.exists():
                    make_disk(path, size)
            await self._ensure_defined(lab)
            if lab.is_on(self.name):
                return 0  # still running after an earlier run was killed: its last boot counts
            await lab.start(self.name)
        except (LabFailed, GuestNotBuilt) as error:
            raise GuestFailed(f"the guest {self.name}: {error}") from error
        return after

    async def stop(self) -> None:
        """Shut the guest down; cut its power if it does not react. No effect if it is off. Raises GuestFailed."""
        lab = self._lab
        if not lab.is_on(self.name):
            return
        self._stopping = asyncio.ensure_future(lab.shut_down(self.name, timeout_seconds=_SHUTDOWN_SECONDS))
        await asyncio.wait({self._stopping})
        if lab.is_on(self.name):
            try:
                await lab.cut_power(self.name)
            except LabFailed as error:
                raise GuestFailed(f"the guest {self.name} is still running: {error}") from error

    def stop_waiting(self) -> None:
        """Stop waiting in `stop`, and cut the power at once."""
        if self._stopping is not None:
            self._stopping.cancel()

    async def ready(self, *, after: int) -> Ready:
        """Wait for the boot after that offset in the console's log. Raises GuestFailed."""
        try:
            return await self.console.ready(after=after)
        except TimeoutError:
            raise GuestFailed(f"the guest {self.name} did not boot; see its console, {self.console.log}") from None

    async def _ensure_defined(self, lab: Lab) -> None:
        xml = lab.domain_xml(self.name, [disk(path) for path in self.disks])
        saved = self._state.folder / f"{self.name}.xml"
        if saved.exists() and saved.read_text() == xml:
            return
        await lab.define(xml)
        await self._adopt(lab.uri)
        saved.write_text(xml)

    async def _adopt(self, uri: str) -> None:
        """Adopt the domain, as an operator does on a real node."""
        options = ("--server-id", str(self._server_id), "--account", str(self._account_id))
        process = await asyncio.create_subprocess_exec(
            *(_ADOPT, "adopt", self.name, *options),
            env={"VPS_SNAPSHOTS_LIBVIRT_URI": uri},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise GuestFailed(f"the guest {self.name} was not adopted: {output.decode().strip()}")
