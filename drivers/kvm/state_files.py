"""Small files that are read whole and written whole or not at all.

They lie in folders that others can write to (QEMU's or swtpm's user): no link is followed, only a regular file of a
bounded size is read, and a write goes to a new file that then takes the name.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 64 << 20  # the largest firmware that QEMU takes is far smaller; a TPM has some kB


class NotPlain(OSError):
    """A link, a device, a folder, or more than MAX_BYTES, where a small regular file should be."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    uid: int
    gid: int
    mode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Owner":
        return cls(uid=status.st_uid, gid=status.st_gid, mode=stat.S_IMODE(status.st_mode))


@contextmanager
def folder(path: Path, *, follow: bool = True) -> Iterator[int]:
    """A descriptor of the folder. `follow`: it may be a link, as storage is often mounted."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read(within: int, name: str, *, at_most: int = MAX_BYTES) -> tuple[bytes, Owner]:
    """Raises FileNotFoundError, NotPlain, or another OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=within)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotPlain(error.errno, "can't be opened") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotPlain("is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(at_most + 1)
        if len(content) > at_most:
            raise NotPlain("is too large")
        return content, Owner.of(status)
    finally:
        os.close(descriptor)


def owner(within: int, name: str) -> Owner | None:
    """None where there is no file of that name. Raises NotPlain."""
    try:
        status = os.stat(name, dir_fd=within, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        raise NotPlain("is no small regular file")
    return Owner.of(status)


def read_owner(within: int, name: str) -> Owner:
    """Of a file of any size, or of what a link leads to."""
    return Owner.of(os.stat(name, dir_fd=within))


def write(within: int, name: str, content: bytes, owned: Owner) -> None:
    """Whole or not at all, also in a power cut."""
    fresh = f"{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=within)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(fresh, flags, 0o600, dir_fd=within), "wb") as file:
        file.write(content)
        file.flush()
        os.fchown(file.fileno(), owned.uid, owned.gid)
        os.fchmod(file.fileno(), owned.mode)
        os.fsync(file.fileno())
    os.rename(fresh, name, src_dir_fd=within, dst_dir_fd=within)
    os.fsync(within)


def remove(within: int, name: str) -> None:
    """With what a write that was cut off has left. None is fine."""
    for each in (name, f"{name}.new"):
        with suppress(FileNotFoundError):
            os.unlink(each, dir_fd=within)
