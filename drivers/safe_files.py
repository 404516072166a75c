"""Opens files as root below folders that others may write to.

QEMU's user owns some of libvirt's folders, and a guest that has broken out of QEMU acts as that user. So a path is
walked folder by folder. A link on it is followed only if nobody but root, or this process's own user, can have made it.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MAX_LINKS = 40  # Linux's limit for the links on one path
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Planted(OSError):
    """Another user may have created the file, or could replace it."""


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A user who must not be able to replace files: the one that QEMU runs as."""

    uid: int
    gids: frozenset[int]

    def may_replace_in(self, folder: os.stat_result) -> bool:
        """Whether the user can rename files of others in the folder. Access control lists are not considered."""
        if folder.st_uid == self.uid:
            return bool(folder.st_mode & stat.S_IWUSR)
        if folder.st_mode & stat.S_ISVTX:
            return False
        by_group = folder.st_gid in self.gids and folder.st_mode & stat.S_IWGRP
        return bool(by_group or folder.st_mode & stat.S_IWOTH)


def opened(path: str | Path, flags: int, *, keep_out: Stranger | None = None) -> int:
    """A descriptor of the file at an absolute path. A special file does not block the call.

    `keep_out`: refuse a path with a folder in which this user can replace something. Raises Planted or another OSError.
    """
    names = [*reversed(os.fspath(path).split("/"))]
    if names[-1]:
        raise Planted(errno.EINVAL, "the path is not absolute")
    folder, links = os.open("/", _FOLDER), 0
    try:
        while names:
            _refuse_open_to(keep_out, folder)
            name = names.pop() or "."
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                target = _followed(folder, name, status, links)
                names += reversed(target.split("/"))
                inner = os.open("/" if target.startswith("/") else ".", _FOLDER, dir_fd=folder)
            elif any(names) or stat.S_ISDIR(status.st_mode):
                inner = os.open(name, _FOLDER, dir_fd=folder)
            else:
                return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        _refuse_open_to(keep_out, folder)
        return os.open(".", flags | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def folder(path: Path, *, keep_out: Stranger | None = None) -> Iterator[int]:
    """A descriptor of the folder at this path, as by `opened`."""
    descriptor = opened(path, os.O_RDONLY | os.O_DIRECTORY, keep_out=keep_out)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def regular(path: str | Path, *, or_block: bool = False) -> Iterator[int]:
    """A descriptor of the regular file (`or_block`: or block device) at this path, for reading.

    Raises Planted or another OSError.
    """
    descriptor = opened(path, os.O_RDONLY)
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or (or_block and stat.S_ISBLK(mode))):
            raise Planted(errno.EINVAL, "it is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def status(path: str | Path) -> os.stat_result:
    """The result of `os.stat` for the file at this path, which is not opened. Raises Planted or another OSError."""
    descriptor = opened(path, os.O_PATH)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def is_ours(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()}


def _refuse_open_to(stranger: Stranger | None, folder: int) -> None:
    if stranger is not None and stranger.may_replace_in(os.fstat(folder)):
        raise Planted(errno.EPERM, "QEMU's user can write to a folder on the path")


def _followed(folder: int, name: str, link: os.stat_result, number: int) -> str:
    """The target of a link that only root or our own user can have created. Raises OSError."""
    within = os.fstat(folder)
    by_group = within.st_mode & stat.S_IWGRP and within.st_gid not in {0, os.getegid()}
    is_shared = (by_group or within.st_mode & stat.S_IWOTH) and not within.st_mode & stat.S_ISVTX
    if not is_ours(link) or not is_ours(within) or is_shared:
        raise Planted(errno.ELOOP, "the path has a link that users other than root could have created")
    if number > MAX_LINKS:
        raise Planted(errno.ELOOP, "the path has too many links")
    return os.readlink(name, dir_fd=folder)


def user_of(folder: Path) -> Stranger | None:
    """The owner of the folder if it is neither root nor our own user; None also if the folder does not exist."""
    with suppress(OSError):
        owner = status(folder)
        if not is_ours(owner):
            return Stranger(uid=owner.st_uid, gids=frozenset({owner.st_gid, *_groups(owner.st_uid)}))
    return None


def _groups(uid: int) -> list[int]:
    import pwd  # noqa: PLC0415 - reads the user database, which only this needs

    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return []
    return os.getgrouplist(entry.pw_name, entry.pw_gid)
