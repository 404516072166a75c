"""The backing files of an image, read from the headers of qcow2 images without a child process and without locks."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from drivers import safe_files
from drivers.qcow2_header import TablesUnreadable, backing_in, header_in

DEPTH = 200  # images in one chain, libvirt's own limit; more is a loop
_KEPT = (10**9, 10**6, 10**3, 10**2, 1)  # resolutions in which tools and file systems store times, in nanoseconds


def files(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """The paths of the image and its backing files, top down, each with its `stat` result; ends where one cannot be
    read."""
    below: tuple[str, str | None] | None = path, "qcow2"
    for _ in range(DEPTH):
        if below is None:
            return
        current, form = below
        try:
            status = safe_files.status(current)
        except (OSError, ValueError):
            return
        below = None
        if form in {None, "qcow2"}:  # files of other formats are not opened, because a guest may have named any file
            with suppress(OSError, ValueError, TablesUnreadable):
                below = _backing_file(current)
        yield current, status


def base(path: str) -> str:
    """A fingerprint of the image's backing files, for `is_same`: "SIZE:MTIME_NS" of each, joined by ";"; "" if none.

    It does not change if the files are moved by a tool that preserves times. A block device is just "device".
    """
    below = [status for _, status in files(path)][1:]
    return ";".join(
        "device" if stat.S_ISBLK(status.st_mode) else f"{status.st_size}:{status.st_mtime_ns}" for status in below
    )


def is_same(one: str, other: str) -> bool:
    """Whether two results of `base` are of the same, unchanged files. Times are compared in the coarser resolution of
    the two: some tools and file systems store only seconds."""
    return is_same_but_for_times(one, other) and all(
        _is_same_time(_time(this), _time(that)) for this, that in zip(one.split(";"), other.split(";"), strict=True)
    )


def is_same_but_for_times(one: str, other: str) -> bool:
    """Like `is_same`, but ignores times: Nova touches a base image for each server that it makes from it."""
    return _sizes(one) == _sizes(other)


def _sizes(of: str) -> list[str]:
    return [each.partition(":")[0] for each in of.split(";")]


def _time(of: str) -> int:
    """Nanoseconds; 0 for a device."""
    nanoseconds = of.partition(":")[2]
    return int(nanoseconds) if nanoseconds.isdecimal() else 0


def _is_same_time(one: int, other: int) -> bool:
    kept = next(unit for unit in _KEPT if one % unit == 0 or other % unit == 0)
    return one // kept == other // kept


def _backing_file(path: str) -> tuple[str, str | None] | None:
    """The path and format of the image's backing file; None if it has none.

    Raises OSError, ValueError or TablesUnreadable.
    """
    with safe_files.regular(path, or_block=True) as file:
        found = backing_in(file, header_in(file))
    if found is None:
        return None
    name, form = found
    if name.startswith("json:"):
        try:
            name = _file_name(json.loads(name.removeprefix("json:")))
        except RecursionError as error:
            raise ValueError("the backing file's name is nested too deeply") from error
    return os.path.join(os.path.dirname(path), name.removeprefix("file:")), form


def _file_name(options: object) -> str:
    """The file name in QEMU's options for a backing file. Raises ValueError."""
    if isinstance(options, dict):
        for key in ("filename", "file.filename"):
            if isinstance(options.get(key), str):
                return str(options[key])
        if "file" in options:
            return _file_name(options["file"])
    raise ValueError("the options name no file")
