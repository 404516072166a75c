"""A private libvirtd that can be killed and restarted while its guests keep running. Needs root."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from deploy.lab.lab import Lab

PROGRAMS = ("libvirtd", "qemu-system-x86_64", "qemu-img", "setpriv", "unshare")
_SCRIPT = Path(__file__).parents[1] / "deploy" / "lab" / "libvirtd.sh"
_HOOK = Path(__file__).parents[1] / "deploy" / "libvirt" / "hook.sh"
_START_SECONDS = 60  # for a busy machine


class Daemon:
    """`inside`: a command that enters the target environment and executes the program. `user`: of QEMU."""

    def __init__(self, folder: Path, *, inside: Sequence[str] = (), user: str = "root") -> None:
        self.folder = folder
        self._user = user
        self._inside = inside
        self.uri = f"qemu+unix:///system?socket={folder}/run/libvirt-sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Return when it accepts connections."""
        command = [*self._inside, str(_SCRIPT), str(self.folder), self._user]
        process = self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - it is to be killed, whatever the loop does
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not await self._listens():
                    assert process.poll() is None, f"{_SCRIPT} has exited; run it by hand to see why"
                    await asyncio.sleep(0.05)
        except BaseException:  # the caller has nothing yet with which to stop it
            process.kill()
            process.wait()
            raise

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop_for_good(self) -> None:
        """Stop it together with its guests."""
        if self._process is not None:
            self.kill()
        for pid in (self.folder / "run" / "qemu").glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGKILL)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(self.folder / "run" / "libvirt-sock")
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True


def install_hook(daemon: Daemon, state_dir: Path) -> None:
    """Install the hook as on a node; it takes effect at the daemon's next start."""
    hook = daemon.folder / "etc" / "hooks" / "qemu.d" / "vps-snapshots"
    hook.parent.mkdir(parents=True)
    settings = daemon.folder / "etc" / "worker.toml"
    settings.write_text(f'state_dir = "{state_dir}"\n')
    text = _HOOK.read_text().replace("/opt/vps-snapshots/bin/python", sys.executable)
    hook.write_text(text.replace("/etc/vps-snapshots/worker.toml", str(settings)))
    hook.chmod(0o755)


class DaemonLab(Lab):
    """The same lab with a libvirtd."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon.folder)
        self._daemon = daemon

    @property
    def uri(self) -> str:
        return self._daemon.uri
