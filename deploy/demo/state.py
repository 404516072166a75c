"""The state folder of `make run`, kept between runs, and a temporary folder for its sockets."""

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TextIO

_MARK = ".vps-snapshots"  # marks the folder as one that may be deleted; contains the driver's name


class StateRefused(Exception):
    """The folder cannot be used; the text says why. Nothing was changed."""


class State:
    """An open state folder, locked for one process."""

    def __init__(self, folder: Path, lock: TextIO) -> None:
        self.folder = folder
        self._lock = lock
        self.runtime = self._make_runtime()

    @classmethod
    def open(cls, folder: Path, *, driver: str | None = None) -> "State":
        """Raises StateRefused if the folder has other files in it, is in use, or was created with another driver, which
        would not find its snapshots."""
        folder = folder.resolve()
        try:
            if folder.is_dir() and not (folder / _MARK).exists() and any(folder.iterdir()):
                raise StateRefused(f"{folder} has other files in it: set STATE_DIR to a new or empty folder")
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
        created_with = lock.read().strip()
        if driver and created_with and created_with != driver:
            lock.close()
            raise StateRefused(f"{folder} was created with DRIVER={created_with}: set STATE_DIR to another folder")
        if driver and not created_with:
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
        """The root of the embedded libvirt: a link whose path never changes and is short enough for its sockets."""
        link = self.runtime / "libvirt"
        if not link.is_symlink():
            link.symlink_to(self.subfolder("libvirt"))
        return link

    def close(self) -> None:
        """Delete the sockets' folder and release the lock. The state is kept."""
        shutil.rmtree(self.runtime, ignore_errors=True)
        self._lock.close()

    def remove(self) -> None:
        """Delete the folder and the sockets' folder."""
        self.close()
        shutil.rmtree(self.folder)

    def _make_runtime(self) -> Path:
        """The sockets' folder. It is outside the state folder, because a socket's path may have at most 107 characters.

        Its path is the same in every run: domains refer to it, and a guest that outlives a killed run uses its sockets.
        """
        saved = self.folder / "runtime"
        if saved.exists():
            folder = Path(saved.read_text())
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise StateRefused(f"{folder}, the folder for the sockets of {self.folder}, belongs to another user")
            return folder
        folder = Path(tempfile.mkdtemp(prefix="vps-snapshots-", dir="/tmp"))  # TMPDIR may be too long
        saved.write_text(str(folder))
        return folder
