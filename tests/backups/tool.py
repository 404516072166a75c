"""virtnbdbackup as a provider's timer runs it, with its exit code and its messages."""

import asyncio
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.backups.disks import digest

PROGRAMS = ("virtnbdbackup", "virtnbdrestore")
FIRST = "virtnbdbackup.0"  # the checkpoint of each chain's full backup
_RUN_SECONDS = 120.0
_RESTORES = 5  # attempts of one restore
_OF_ONE_RUN = re.compile(r"/tmp/\S+?(?=[\s',\]]|$)|…/n\d+\S*?(?=[\s',\]]|$)")
_ERROR = re.compile(r"(?:ERROR|CRITICAL) .*?\]: (.*)")


@dataclass(frozen=True, kw_only=True)
class Run:
    ok: bool
    offline: bool  # the domain was off: the tool read the files directly
    words: str  # its error messages


class Tool:
    def __init__(self, folder: Path, libvirt_uri: str) -> None:
        self.folder = folder
        # the tool asks for a password for any URI that begins with "qemu+"
        self._uri = libvirt_uri.replace("qemu+unix:", "qemu:")
        self._runs = 0
        (folder / "scratch").mkdir(parents=True)

    async def backup(self, domain: str, level: str, chain: Path) -> Run:
        """`level`: full, inc or copy. For a domain that is off, a full backup silently becomes a copy."""
        scratch = ("--scratchdir", str(self.folder / "scratch"))
        code, output = await self._call("virtnbdbackup", "-d", domain, "-l", level, "-o", str(chain), *scratch)
        words = "; ".join(_ERROR.findall(output)) or output.strip().rpartition("\n")[2]
        words = _OF_ONE_RUN.sub("…", words.replace(str(self.folder), "…"))
        return Run(ok=code == 0, offline=bool(re.search(r"Offline backup|Domain is offline", output)), words=words)

    async def restored(self, chain: Path) -> dict[str, str]:
        """The content of each disk, by file name, after a restore of everything in the folder.

        It does not restore to a checkpoint, because 1.9 goes past a checkpoint whose backup had nothing to save. Raises
        AssertionError if the tool fails repeatedly: it starts an NBD server for each disk on one socket, and on a busy
        machine it gives up if the previous disk's server ends slowly.
        """
        place = self.folder / "restored"
        log = ("-L", str(self.folder / "restore.log"))
        for _ in range(_RESTORES):
            shutil.rmtree(place, ignore_errors=True)
            code, output = await self._call("virtnbdrestore", "-i", str(chain), "-o", str(place), *log)
            if code == 0:
                return {path.name: await asyncio.to_thread(digest, path) for path in place.glob("*.qcow2")}
        raise AssertionError(f"{chain}: not restored: {output}")

    async def _call(self, program: str, *arguments: str) -> tuple[int, str]:
        self._runs += 1
        own = ("-U", self._uri, "-n", "-f", str(self.folder / f"n{self._runs}"))
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            *own,
            env={**os.environ, "TMPDIR": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_RUN_SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output.decode(errors="replace")
