"""A node in a folder: an embedded libvirt, the disks and the consoles of its guests."""

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

# A unix socket's path has 107 characters at most, and QEMU's lie up to 62 below libvirt's root.
LONGEST_FOLDER = 40

# No root daemon is beside us that could keep logs, label files or own cgroups; and where QEMU runs as another user than
# we do, libvirt asks the QEMU binary anew what it can do at each call (4 to 8 s).
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

# how a call's own process ends, beside 1 for what libvirt refused
NOT_DONE = 3  # a shutdown that the guest did not follow
NOT_OPENED = 4  # the root is in use, as a rule


class LabFailed(Exception):
    """A call did not succeed; the text is what libvirt or QEMU said."""


class Lab:
    """`folder` is the embedded libvirt's root; its path must be short, for the sockets' sake.

    The calls that change or look at domains each run in a process of their own, since a process that has opened a root
    holds it until it ends: they work only where no process (a worker, a test with a driver) has it, and wait 10 s for
    that. Who has it uses `deploy.lab.domains` with its own connection. All of them raise LabFailed.
    """

    def __init__(self, folder: Path, *, image: GuestImage | None = None) -> None:
        """`image`: the one in the user's cache where none is given, built when first asked for."""
        if len(str(folder)) > LONGEST_FOLDER or not folder.is_absolute():
            raise ValueError(f"{folder}: must be absolute and have {LONGEST_FOLDER} characters at most")
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
        """Where a file of that name among the disks lies."""
        folder = self.folder / "disks"
        folder.mkdir(exist_ok=True)
        return folder / name

    def console(self, name: str) -> Console:
        return Console(socket=self.folder / f"{name}.sock", log=self.folder / f"{name}.log")

    def domain_xml(
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
    ) -> str:
        """See `deploy.lab.domain.domain_xml`; `uefi`: its variables in the file `nvram_path(name)`. Without
        a `guest` it boots nothing."""
        console = self.console(name)
        return domain_xml(
            name,
            devices,
            image=self.image if guest else None,
            socket=console.socket,
            log=console.log,
            memory_mib=memory_mib,
            metadata=metadata,
            deaf=deaf,
            nvram=self.nvram_path(name) if uefi else None,
            tpm=tpm,
        )

    def nvram_path(self, name: str) -> Path:
        return self.disk_path(f"{name}.nvram")

    async def define(self, xml: str) -> None:
        await self._call("define", xml=xml)

    async def start(self, name: str) -> None:
        """Return when QEMU runs; `console(name).ready()` tells when the guest is up."""
        await self._call("start", name)

    async def power(self, name: str) -> str:
        """on, off or paused."""
        return (await self._call("power", name)).strip()

    async def shut_down(self, name: str, *, timeout_seconds: float = 30.0) -> None:
        """Press the power button until the domain is off; LabFailed where it is not in that time."""
        await self._call("shut-down", name, "--timeout-seconds", str(timeout_seconds))

    async def cut_power(self, name: str) -> None:
        await self._call("cut-power", name)

    async def remove(self, name: str) -> None:
        """Off and forgotten, with libvirt's list of its snapshots and its UEFI variables; its disks stay."""
        await self._call("remove", name)

    async def remove_all(self) -> None:
        await self._call("remove-all")

    def is_on(self, name: str) -> bool:
        """Whether a QEMU holds the domain's disks. Asks no libvirt: works while another process has the root open."""
        try:
            pid = int((self.folder / "run" / "qemu" / f"{name}.pid").read_text())
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return False
        # not another program under the same number by now, nor one that has ended and only waits to be reaped
        return "(qemu" in stat and stat.rsplit(")", 1)[1].split()[0] != "Z"

    async def _call(self, *arguments: str, xml: str = "") -> str:
        deadline = time.monotonic() + _IN_USE_SECONDS
        while True:
            status, output, trouble = await self._run(arguments, xml=xml)
            if status == NOT_OPENED and time.monotonic() < deadline:
                await asyncio.sleep(0.2)
            elif status == NOT_DONE:
                raise LabFailed(f"{' '.join(arguments)}: the guest did not follow")
            elif status:
                raise LabFailed(f"{' '.join(arguments)}: {trouble.strip()}")
            else:
                return output

    async def _run(self, arguments: tuple[str, ...], *, xml: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.lab", self.uri, *arguments),
            cwd=_PROJECT,
            env={"LIBVIRT_LOG_OUTPUTS": "4:file:/dev/null", **os.environ},  # the error that counts is raised
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                output, trouble = await process.communicate(xml.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output.decode(), trouble.decode()


def make_disk(path: Path, size: str = "64M", *, backing: Path | None = None, format: str = "qcow2") -> Path:  # noqa: A002 - qemu-img's word
    """An empty disk; a qcow2 one with clusters of 1 MiB, whose snapshots cost a tenth of those of 64 kB ones.

    `size`: as qemu-img takes it. `backing`: a qcow2 file that the new one lies over. Raises LabFailed.
    """
    command = ["qemu-img", "create", "-q", "-f", format]
    if format == "qcow2":
        command += ["-o", "cluster_size=1M"]
    if backing:
        command += ["-b", str(backing), "-F", "qcow2"]
    made = subprocess.run([*command, str(path), size], capture_output=True, text=True, check=False)
    if made.returncode:
        raise LabFailed(made.stderr.strip())
    return path
