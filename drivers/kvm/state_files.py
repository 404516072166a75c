"""Reads and atomically writes small files.

The files are in folders that others can write to (the users of QEMU and swtpm). So links are not followed, only
regular files of expected owners, up to a maximum size and with one name, are read, and a write goes to a new file that
is then renamed.
"""

import os
import stat
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass

MAX_BYTES = 64 << 20  # far more than the largest firmware that QEMU accepts; a TPM has some kB
_MODES = 0o666  # mode bits that a write may set, so that a restored file is never executable or set-user-ID


class NotPlain(OSError):
    """Not a small regular file of an expected owner: a link, a device, a folder, or larger than MAX_BYTES."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    uid: int
    gid: int
    mode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Owner":
        return cls(uid=status.st_uid, gid=status.st_gid, mode=stat.S_IMODE(status.st_mode))


def read(within: int, name: str, *, owners: Set[int], at_most: int = MAX_BYTES) -> tuple[bytes, Owner]:
    """The content and owner of a file in the folder. Raises FileNotFoundError, NotPlain, or another OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=within)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotPlain(error.errno, "cannot open it as a regular file") from error
    try:
        status = os.fstat(descriptor)
        _refuse_odd(status, owners)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(at_most + 1)
        if len(content) > at_most:
            raise NotPlain("too large")
        return content, Owner.of(status)
    finally:
        os.close(descriptor)


def owner(within: int, name: str, *, owners: Set[int]) -> Owner | None:
    """The file's owner; None if it does not exist. Raises NotPlain."""
    try:
        status = os.stat(name, dir_fd=within, follow_symlinks=False)
    except FileNotFoundError:
        return None
    _refuse_odd(status, owners)
    if status.st_size > MAX_BYTES:
        raise NotPlain("too large")
    return Owner.of(status)


def _refuse_odd(status: os.stat_result, owners: Set[int]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotPlain("not a regular file")
    if status.st_nlink > 1:  # with a hard link, a folder's owner can add a name for a file that belongs to someone else
        raise NotPlain("it has several names")
    if status.st_uid not in owners:
        raise NotPlain(f"it belongs to another user: {status.st_uid}")


def write(within: int, name: str, content: bytes, owned: Owner) -> None:
    """Write the file atomically, even if the power fails."""
    fresh = f"{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=within)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(fresh, flags, 0o600, dir_fd=within), "wb") as file:
        file.write(content)
        file.flush()
        os.fchown(file.fileno(), owned.uid, owned.gid)
        os.fchmod(file.fileno(), owned.mode & _MODES)
        os.fsync(file.fileno())
    os.rename(fresh, name, src_dir_fd=within, dst_dir_fd=within)
    os.fsync(within)


def remove(within: int, name: str) -> None:
    """Delete the file, if it exists, and the remains of an interrupted write."""
    for each in (name, f"{name}.new"):
        with suppress(FileNotFoundError):
            os.unlink(each, dir_fd=within)
