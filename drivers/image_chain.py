"""What lies below an image, read from the headers of qcow2 images without a process and without locks."""

import json
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress

from drivers.qcow2_tables import MAGIC

DEPTH = 200  # images in one chain, as many as libvirt itself follows; more is a loop
MAX_NAME_BYTES = 1023  # of a backing file, as QEMU has it
_KEPT = (10**9, 10**6, 10**3, 10**2, 1)  # nanoseconds of the times that tools and file systems keep
_HEAD = struct.Struct(">4sIQI")


def files(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """The image itself and all that lies below it, as far as that can be read, with what the file system says."""
    current: str | None = path
    for _ in range(DEPTH):
        if current is None:
            return
        try:
            status = os.stat(current)
        except (OSError, ValueError):
            return
        below = None
        with suppress(OSError, ValueError):
            below = _backing_file(current)
        yield current, status
        current = below


def base(path: str) -> str:
    """What `is_same` goes by: "" where nothing lies below the image, else size and time of the last write of each.

    Both stay the same where the files are moved to other storage by a tool that keeps times. Of a block device neither
    is known.
    """
    below = [status for _, status in files(path)][1:]
    return ";".join(
        "device" if stat.S_ISBLK(status.st_mode) else f"{status.st_size}:{status.st_mtime_ns}" for status in below
    )


def is_same(one: str, other: str) -> bool:
    """Of two answers of `base`: whether they are of the same files, unchanged. Tools and file systems keep times to the
    nanosecond, or to the second."""
    return is_same_but_for_times(one, other) and all(
        _is_same_time(_time(this), _time(that)) for this, that in zip(one.split(";"), other.split(";"), strict=True)
    )


def is_same_but_for_times(one: str, other: str) -> bool:
    """Nova sets the times of a base with each server that it makes of it, and changes nothing in it."""
    return _sizes(one) == _sizes(other)


def _sizes(of: str) -> list[str]:
    return [each.partition(":")[0] for each in of.split(";")]


def _time(of: str) -> int:
    """0: of a device."""
    nanoseconds = of.partition(":")[2]
    return int(nanoseconds) if nanoseconds.isdecimal() else 0


def _is_same_time(one: int, other: int) -> bool:
    kept = next(unit for unit in _KEPT if one % unit == 0 or other % unit == 0)
    return one // kept == other // kept


def _backing_file(path: str) -> str | None:
    """What the image's header names below it; None for one that is no qcow2 image. Raises OSError or ValueError."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hold us up
    try:
        head = os.pread(file, _HEAD.size, 0)
        if len(head) < _HEAD.size:
            return None
        magic, _, name_at, name_bytes = _HEAD.unpack(head)
        if magic != MAGIC or not name_at or not 0 < name_bytes <= MAX_NAME_BYTES or name_at >> 63:
            return None
        name = os.fsdecode(os.pread(file, name_bytes, name_at))
    finally:
        os.close(file)
    if name.startswith("json:"):
        try:
            name = _file_name(json.loads(name.removeprefix("json:")))
        except RecursionError as error:  # a thousand brackets
            raise ValueError("its name is nested too deeply") from error
    return os.path.join(os.path.dirname(path), name.removeprefix("file:"))


def _file_name(options: object) -> str:
    """Raises ValueError."""
    if isinstance(options, dict):
        for key in ("filename", "file.filename"):
            if isinstance(options.get(key), str):
                return str(options[key])
        if "file" in options:
            return _file_name(options["file"])
    raise ValueError("no file is named")
