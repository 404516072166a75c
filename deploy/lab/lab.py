"""A node in a folder: an embedded libvirt, its guests' disks and consoles."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.lab.console import Console
from deploy.lab.domain import Device, domain_xml
from deploy.lab.guest import GuestImage, guest_image

# A Unix socket's path may have at most 107 characters, and QEMU's are up to 62 characters longer than libvirt's root.
LONGEST_FOLDER = 40

# No root daemon runs that could write logs, label files or own cgroups. QEMU runs as our own user: otherwise, libvirt
# would probe the QEMU binary again at each call (4 s to 8 s).
_QEMU_CONF = """\
user = "+{user}"
group = "+{group}"
swtpm_user = "+{user}"
swtpm_group = "+{group}"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
"""
_PROJECT = Path(__file__).parents[2]
_CALL_SECONDS = 120.0
_IN_USE_SECONDS = 10.0

# exit statuses of `python -m deploy.lab`; 1: libvirt refused the call
NOT_DONE = 3  # the guest did not shut down
NOT_OPENED = 4  # libvirt could not be opened, usually because the root is in use


class LabFailed(Exception):
    """A call failed; the text is the error of libvirt or QEMU."""


class Lab:
    """A node. `folder`: the root of the embedded libvirt, whose path must be short because of the sockets in it.

    Each call on domains runs in its own process, because a process holds a root until it exits. Calls need the root to
    be free and wait 10 s for that; a process that holds it (a worker, a test with a driver) uses `deploy.lab.domains`
    with its own connection. All calls raise LabFailed.
    """

    def __init__(self, folder: Path, *, image: GuestImage | None = None) -> None:
        """`image`: None for the one in the user's cache, which is built on first use."""
        if len(str(folder)) > LONGEST_FOLDER or not folder.is_absolute():
            raise ValueError(f"{folder}: must be absolute and have at most {LONGEST_FOLDER} characters")
        self.folder = folder
        self._image = image
        (folder / "etc").mkdir(parents=True, exist_ok=True)
        (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF.format(user=os.geteuid(), group=os.getegid()))

    @property
    def uri(self) -> str:
        return f"qemu:///embed?root={self.folder}"

    @property
    def image(self) -> GuestImage:
        if self._image is None:
            self._image = guest_image()
        return self._image

    def disk_path(self, name: str) -> Path:
        """The path of a disk with that file name."""
        folder = self.folder / "disks"
        folder.mkdir(exist_ok=True)
        return folder / name

    def console(self, name: str) -> Console:
        return Console(socket=self.folder / f"{name}.sock", log=self.folder / f"{name}.log")

    def domain_xml(  # noqa: PLR0913 - keyword arguments for the parts of a server
        self,
        name: str,
        devices: Sequence[Device],
        *,
        memory_mib: int | None = None,
        metadata: str = "",
        deaf: bool = False,
        uefi: bool = False,
        tpm: bool = False,
        guest: bool = True,
        agent: bool = False,
    ) -> str:
        """See `deploy.lab.domain.domain_xml`. `uefi`: boot with UEFI and the variables in `nvram_path(name)`. `guest`:
        False boots nothing. `agent`: boot the guest that has an agent."""
        console = self.console(name)
        return domain_xml(
            name,
            devices,
            image=self._image_for(agent=agent) if guest else None,
            socket=console.socket,
            log=console.log,
            memory_mib=memory_mib,
            metadata=metadata,
            deaf=deaf,
            nvram=self.nvram_path(name) if uefi else None,
            tpm=tpm,
            agent=agent,
        )

    def _image_for(self, *, agent: bool) -> GuestImage:
        return guest_image(agent=True) if agent else self.image

    def nvram_path(self, name: str) -> Path:
        return self.disk_path(f"{name}.nvram")

    async def define(self, xml: str) -> None:
        await self._call("define", xml=xml)

    async def start(self, name: str) -> None:
        """Start the domain; returns when QEMU runs. `console(name).ready()` waits for the guest to boot."""
        await self._call("start", name)

    async def power(self, name: str) -> str:
        """Returns on, off or paused."""
        return (await self._call("power", name)).strip()

    async def shut_down(self, name: str, *, timeout_seconds: float = 30.0) -> None:
        """Press the power button until the domain is off. Raises LabFailed after the timeout."""
        await self._call("shut-down", name, "--timeout-seconds", str(timeout_seconds))

    async def cut_power(self, name: str) -> None:
        await self._call("cut-power", name)

    async def remove(self, name: str) -> None:
        """Power off and undefine the domain, with its snapshot list and its UEFI variables. Its disks are kept."""
        await self._call("remove", name)

    async def remove_all(self) -> None:
        await self._call("remove-all")

    def is_on(self, name: str) -> bool:
        """Whether QEMU runs for the domain. Does not use libvirt, so it works while another process holds the root."""
        try:
            pid = int((self.folder / "run" / "qemu" / f"{name}.pid").read_text())
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return False
        # neither another program with the same pid, nor a zombie
        return "(qemu" in stat and stat.rsplit(")", 1)[1].split()[0] != "Z"

    async def _call(self, *arguments: str, xml: str = "") -> str:
        deadline = time.monotonic() + _IN_USE_SECONDS
        while True:
            status, output, errors = await self._run(arguments, xml=xml)
            if status == NOT_OPENED and time.monotonic() < deadline:
                await asyncio.sleep(0.2)
            elif status == NOT_DONE:
                raise LabFailed(f"{' '.join(arguments)}: the guest did not shut down")
            elif status:
                raise LabFailed(f"{' '.join(arguments)}: {errors.strip()}")
            else:
                return output

    async def _run(self, arguments: tuple[str, ...], *, xml: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.lab", self.uri, *arguments),
            cwd=_PROJECT,
            env={"LIBVIRT_LOG_OUTPUTS": "4:file:/dev/null", **os.environ},  # errors are raised, not logged
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                output, errors = await process.communicate(xml.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output.decode(), errors.decode()


def make_disk(path: Path, size: str = "64M", *, backing: Path | None = None, format: str = "qcow2") -> Path:  # noqa: A002 - qemu-img's word
    """Create an empty disk. qcow2 disks get clusters of 1 MiB, which make snapshots ten times as fast as 64 KiB.

    `size`: in qemu-img's notation. `backing`: a qcow2 file to use as the backing file. Raises LabFailed.
    """
    command = ["qemu-img", "create", "-q", "-f", format]
    if format == "qcow2":
        command += ["-o", "cluster_size=1M"]
    if backing:
        command += ["-b", str(backing), "-F", "qcow2"]
    result = subprocess.run([*command, str(path), size], capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabFailed(result.stderr.strip())
    return path
