"""The folder that a service on one machine keeps between its runs, and the short-lived one for its sockets."""

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TextIO

_MARK = ".vps-snapshots"  # what a folder must hold before we remove it; it says whose driver's state it is


class StateRefused(Exception):
    """The folder can't be used; the text says why. Nothing was changed."""


class State:
    """An opened state folder; one process at a time has it."""

    def __init__(self, folder: Path, lock: TextIO) -> None:
        self.folder = folder
        self._lock = lock
        self.runtime = self._make_runtime()

    @classmethod
    def open(cls, folder: Path, *, driver: str | None = None) -> "State":
        """Raises StateRefused where the folder is someone else's, in use, or was made with another driver: its
        snapshots would all be lost ones."""
        folder = folder.resolve()
        try:
            if folder.is_dir() and not (folder / _MARK).exists() and any(folder.iterdir()):
                raise StateRefused(f"{folder} has other things in it: set STATE_DIR to a new or an empty folder")
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (folder / _MARK).open("a+")
        except OSError as error:
            raise StateRefused(f"{folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise StateRefused(f"{folder} is in use by another run: stop that one, or set STATE_DIR") from None
        lock.seek(0)
        made_with = lock.read().strip()
        if driver and made_with and made_with != driver:
            lock.close()
            raise StateRefused(f"{folder} was made with DRIVER={made_with}: set STATE_DIR to another folder")
        if driver and not made_with:
            lock.write(driver)
            lock.flush()
        return cls(folder, lock)

    def subfolder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True, mode=0o700)
        return path

    def log(self, name: str) -> Path:
        return self.subfolder("logs") / f"{name}.log"

    @property
    def libvirt_root(self) -> Path:
        """The root of the embedded libvirt, by a name that stays the same and is short enough for its sockets."""
        link = self.runtime / "libvirt"
        if not link.is_symlink():
            link.symlink_to(self.subfolder("libvirt"))
        return link

    def close(self) -> None:
        """Remove the sockets' folder. The state stays."""
        shutil.rmtree(self.runtime, ignore_errors=True)
        self._lock.close()

    def remove(self) -> None:
        """Forget everything."""
        self.close()
        shutil.rmtree(self.folder)

    def _make_runtime(self) -> Path:
        """A socket's path has 107 characters at most: its folder is elsewhere, of the same name in each run.

        Domains name it, and a guest that outlived a killed run has its sockets there.
        """
        remembered = self.folder / "runtime"
        if remembered.exists():
            folder = Path(remembered.read_text())
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise StateRefused(f"{folder} is someone else's, and {self.folder} has its sockets there")
            return folder
        folder = Path(tempfile.mkdtemp(prefix="vps-snapshots-", dir="/tmp"))  # TMPDIR may be too long a name
        remembered.write_text(str(folder))
        return folder
