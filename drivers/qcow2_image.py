"""A qcow2 image as `qemu-img info` and `qemu-img check` describe it."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

VERSION_OF_FIXED_SIZE = 2  # QEMU cannot resize such an image while it has snapshots
JSON_PREFIX = "json:"
# options of a backing file that do not change the data read from it
HARMLESS_OPTIONS = frozenset({"read-only", "discard", "detect-zeroes", "node-name", "auto-read-only"})
HARMLESS_OPTIONS |= {f"file.{name}" for name in HARMLESS_OPTIONS}


class UnknownBacking(Exception):
    """The name of a backing file cannot be resolved; the text follows "the backing file of disk vda"."""


class NoSuchSnapshot(Exception):
    """The image has no snapshot of this name, or more than one."""


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """A snapshot of an image. Names need not be unique; QEMU assigns each snapshot an ID."""

    id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Bitmap:
    """A persistent dirty bitmap, used for incremental backups."""

    name: str
    in_use: bool  # a QEMU has it open, or did not save it when it exited, which makes it invalid


@dataclass(frozen=True, kw_only=True)
class Backing:
    """The backing file of an image."""

    path: str
    format: str | None  # None: not stated in the image


@dataclass(frozen=True, kw_only=True)
class Image:
    """A qcow2 image's header and snapshots."""

    version: int  # 2 is "compat 0.10"
    virtual_bytes: int
    cluster_bytes: int
    refcount_bits: int
    snapshots: tuple[Tagged, ...]
    bitmaps: tuple[Bitmap, ...]
    folder: str  # the base of a relative backing file name
    backing_file: str | None  # as in the image: a path, or QEMU's options (json:{…})
    backing_format: str | None
    encrypted: bool
    data_file: str | None
    corrupt: bool  # marked corrupt by QEMU, which refuses to write to it
    dirty: bool  # its refcounts are out of date (lazy_refcounts) and are repaired when it is opened next

    @classmethod
    def read(cls, found: Mapping[str, Any], *, path: str) -> Self:
        """Parse the JSON output of `qemu-img info` for the image at this path."""
        special: Mapping[str, Any] = found.get("format-specific", {}).get("data", {})
        return cls(
            version=VERSION_OF_FIXED_SIZE if special.get("compat") == "0.10" else 3,
            virtual_bytes=found["virtual-size"],
            cluster_bytes=found["cluster-size"],
            refcount_bits=special.get("refcount-bits", 16),
            snapshots=tuple(
                Tagged(id=snapshot["id"], name=snapshot["name"]) for snapshot in found.get("snapshots", [])
            ),
            bitmaps=tuple(
                Bitmap(name=bitmap["name"], in_use="in-use" in bitmap["flags"]) for bitmap in special.get("bitmaps", [])
            ),
            folder=os.path.dirname(path),
            backing_file=found.get("backing-filename"),
            backing_format=found.get("backing-filename-format"),
            encrypted=bool(found.get("encrypted")),
            data_file=special.get("data-file"),
            corrupt=bool(special.get("corrupt")),
            dirty=bool(found.get("dirty-flag")),
        )

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(snapshot.name for snapshot in self.snapshots)

    def only(self, tag: str) -> Tagged:
        """The snapshot of this name. Raises NoSuchSnapshot if there is none, or its name or ID is not unique."""
        named = [snapshot for snapshot in self.snapshots if snapshot.name == tag]
        if len(named) != 1 or sum(snapshot.id == named[0].id for snapshot in self.snapshots) != 1:
            raise NoSuchSnapshot(f"{len(named)} snapshots are named {tag}")
        return named[0]

    @property
    def can_grow(self) -> bool:
        return self.version != VERSION_OF_FIXED_SIZE or not self.snapshots

    @property
    def backing(self) -> Backing | None:
        """Raises UnknownBacking."""
        if self.backing_file is None:
            return None
        return backing_named(self.backing_file, self.backing_format, folder=self.folder)


def backing_named(name: str, form: str | None, *, folder: str) -> Backing:
    """The backing file of an image in this folder that has this name and format in its header.

    Raises UnknownBacking.
    """
    path = name
    if name.startswith(JSON_PREFIX):
        path, driver = _of_options(name.removeprefix(JSON_PREFIX))
        if None not in {driver, form} and driver != form:
            raise UnknownBacking("has two different formats in the image")
        form = form or driver
        if not path.startswith("/"):
            raise UnknownBacking("has a relative path in its options")
    elif ":" in name.partition("/")[0]:
        raise UnknownBacking("is not a file")
    return Backing(path=os.path.join(folder, path), format=form)


def _of_options(text: str) -> tuple[str, str | None]:
    """The path and format in QEMU's options for a backing file. Raises UnknownBacking."""
    try:
        options = dict(_flat(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise UnknownBacking("has an invalid name") from error
    path = options.pop("file.filename", None) or options.pop("filename", None)
    driver = options.pop("driver", None)
    if driver == "file":
        driver = None
    if options.pop("file.driver", "file") != "file" or not isinstance(path, str) or not isinstance(driver, str | None):
        raise UnknownBacking("is not a file")
    if options.keys() - HARMLESS_OPTIONS:
        raise UnknownBacking(f"is opened with an unsupported option ({min(options.keys() - HARMLESS_OPTIONS)})")
    return path, driver


def _flat(options: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(options, dict):
        raise UnknownBacking("has an invalid name")
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True, kw_only=True)
class Damage:
    """The result of `qemu-img check`."""

    corruptions: bool  # found by the check, or the corrupt bit is set, which the check ignores
    leaks: bool  # leaked clusters: wasted space only
    dirty: bool  # the refcounts are out of date after a QEMU with lazy_refcounts was killed; any QEMU repairs that
    bitmaps: tuple[Bitmap, ...] = ()  # read only if there are leaks

    @property
    def any(self) -> bool:
        return self.corruptions or self.leaks or self.dirty

    @property
    def can_wait(self) -> bool:
        """Whether there are only leaks, and repairing them would invalidate dirty bitmaps."""
        return self.leaks and not (self.corruptions or self.dirty) and any(not each.in_use for each in self.bitmaps)
