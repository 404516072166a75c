"""Opens an image, so that qemu-img uses this file and opens no other.

A guest that has broken out of QEMU can write any header into its image. QEMU opens whatever a header names: a file of
the host, a device, a network address. So the header is checked here, and qemu-img gets the open files as
`/proc/self/fd/N`, and the backing files, where it needs them, by option instead of by name.
"""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from drivers import qcow2_tables, safe_files
from drivers.image_chain import DEPTH
from drivers.qcow2_header import Header, TablesUnreadable, backing_in, header_in
from drivers.qcow2_image import Backing, UnknownBacking, backing_named

# formats of backing files: those that refer to no other file, and qcow2, whose references are checked here
FORMATS = frozenset({"raw", "qcow2", "qcow", "qed", "vdi", "vpc", "vhdx"})

# Limits of QEMU's caches for an image's L2 tables and refcount blocks: in bytes, all of 2 TB and of 8 TB with clusters
# of 64 KiB; in tables, because QEMU searches all of them for one that is not there. It uses only what the image needs.
# Its own defaults are 32 MiB and four blocks: it then writes each one many times and waits for the disk in between.
CACHE_BYTES = 256 << 20
CACHE_TABLES = 8192


class NotHeld(Exception):
    """The image, or a backing file, cannot be used; the text says why and follows the name of the disk."""


@dataclass(frozen=True, kw_only=True)
class HeldImage:
    """An open image. Its files stay open until `close`."""

    path: str
    name: str  # for the command line of qemu-img, in a process that inherits `descriptors`
    descriptors: tuple[int, ...]
    file_bytes: int
    cluster_bytes: int
    refcount_bits: int
    dirty: bool  # see `qcow2_image.Damage`
    corrupt: bool  # marked as such by a QEMU
    _files: ExitStack

    @classmethod
    def open(cls, path: str, *, with_backing: bool = False, reads_snapshots: bool = False) -> Self:
        """Open the image, read-only. Blocks.

        `with_backing`: include the data of backing files. `reads_snapshots`: refuse a snapshot table that `qemu-img
        info` would take very long to print. Raises NotHeld.
        """
        with ExitStack() as files:
            try:
                options, header = _opened(files, path, with_backing=with_backing, depth=DEPTH)
                found = _descriptors(options)
                if reads_snapshots:
                    qcow2_tables.read_open(found[0])
                size = os.fstat(found[0]).st_size
            except (OSError, ValueError, TablesUnreadable, UnknownBacking) as error:
                raise NotHeld(str(getattr(error, "strerror", None) or error)) from error
            return cls(
                path=path,
                name=f"json:{json.dumps(options | _caches(header))}",
                descriptors=found,
                file_bytes=size,
                cluster_bytes=1 << header.cluster_bits,
                refcount_bits=1 << header.refcount_order,
                dirty=header.dirty,
                corrupt=header.corrupt,
                _files=files.pop_all(),
            )

    def close(self) -> None:
        self._files.close()


def _caches(header: Header) -> dict[str, int]:
    """QEMU's options for the caches of an image's tables."""
    size = min(CACHE_BYTES, CACHE_TABLES << header.cluster_bits)
    return {"l2-cache-size": size, "refcount-cache-size": size}


def _opened(files: ExitStack, path: str, *, with_backing: bool, depth: int) -> tuple[dict[str, Any], Header]:
    """QEMU's options for a qcow2 image, and its header. The files are opened on the stack."""
    file = files.enter_context(safe_files.regular(path, or_block=True))
    header = header_in(file)
    if header.needs_data_file:
        raise NotHeld("it stores its data in an external data file")
    found = backing_in(file, header) if with_backing else None
    backing = None
    if found is not None:
        if not depth:
            raise NotHeld("its chain of backing files is a loop or too long")
        backing = _of_backing(files, backing_named(*found, folder=os.path.dirname(path)), depth - 1)
    return {"driver": "qcow2", "file": _file(file), "backing": backing}, header


def _of_backing(files: ExitStack, backing: Backing, depth: int) -> dict[str, Any]:
    if backing.format not in FORMATS:
        raise NotHeld(f"a backing file has the format {backing.format or 'that is not stated'}, which is not supported")
    if backing.format == "qcow2":
        return _opened(files, backing.path, with_backing=True, depth=depth)[0]
    return {
        "driver": backing.format,
        "file": _file(files.enter_context(safe_files.regular(backing.path, or_block=True))),
    }


def _file(file: int) -> dict[str, str]:
    is_block = stat.S_ISBLK(os.fstat(file).st_mode)
    return {"driver": "host_device" if is_block else "file", "filename": f"/proc/self/fd/{file}"}


def _descriptors(options: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The open files of an image and its backing files, top down."""
    if options is None:
        return ()
    return int(options["file"]["filename"].rpartition("/")[2]), *_descriptors(options.get("backing"))
