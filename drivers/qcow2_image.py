"""What qemu-img says of a qcow2 image."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

VERSION_OF_FIXED_SIZE = 2  # with a snapshot QEMU does not resize it
JSON_PREFIX = "json:"
# of a backing file: they change nothing of what is read from it
HARMLESS_OPTIONS = frozenset({"read-only", "discard", "detect-zeroes", "node-name", "auto-read-only"})
HARMLESS_OPTIONS |= {f"file.{name}" for name in HARMLESS_OPTIONS}


class UnknownBacking(Exception):
    """An image names what lies below it in a way that can't be followed; the text says what of it."""


class NoSuchSnapshot(Exception):
    """The image has no snapshot of this name, or has it more than once: none of them can be told from the others."""


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """A snapshot of an image. Names are the user's and may be there twice; QEMU gives each another id."""

    id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Bitmap:
    """A persistent dirty bitmap: what an incremental backup goes by."""

    name: str
    in_use: bool  # a QEMU has it open, or did not store it when it ended: then it is worthless


@dataclass(frozen=True, kw_only=True)
class Backing:
    """What lies below an image."""

    path: str
    format: str | None  # None: the image does not say


@dataclass(frozen=True, kw_only=True)
class Image:
    """A qcow2 image as its header tells."""

    version: int  # 2 is "compat 0.10"
    virtual_bytes: int
    cluster_bytes: int
    refcount_bits: int
    snapshots: tuple[Tagged, ...]
    bitmaps: tuple[Bitmap, ...]
    backing_file: str | None  # as the image names it, made absolute; a path or what QEMU reads as options (json:{…})
    backing_format: str | None
    encrypted: bool
    data_file: str | None
    corrupt: bool  # QEMU has marked it so; it refuses to write to it
    dirty: bool  # its refcounts are not up to date (lazy_refcounts): whoever opens it next puts them right

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """What `qemu-img info` says."""
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
            backing_file=found.get("full-backing-filename") or found.get("backing-filename"),
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
        """The snapshot of this name. Raises NoSuchSnapshot where its name or its id leads to another as well."""
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
        path, form = self.backing_file, self.backing_format
        if path.startswith(JSON_PREFIX):
            path, driver = _of_options(path.removeprefix(JSON_PREFIX))
            if None not in {driver, form} and driver != form:
                raise UnknownBacking("is said to be of two formats")
            form = form or driver
        elif ":" in path.partition("/")[0]:
            raise UnknownBacking("is no file")
        if not path.startswith("/"):
            raise UnknownBacking("has a name that depends on who opens it")
        return Backing(path=path, format=form)


def _of_options(text: str) -> tuple[str, str | None]:
    """The path and the format, out of QEMU's options for a backing file."""
    try:
        options = dict(_flat(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise UnknownBacking("has a name that can't be read") from error
    path = options.pop("file.filename", None) or options.pop("filename", None)
    driver = options.pop("driver", None)
    if driver == "file":
        driver = None
    if options.pop("file.driver", "file") != "file" or not isinstance(path, str) or not isinstance(driver, str | None):
        raise UnknownBacking("is no file")
    if options.keys() - HARMLESS_OPTIONS:
        raise UnknownBacking(
            f"is opened with options that are not known here ({min(options.keys() - HARMLESS_OPTIONS)})"
        )
    return path, driver


def _flat(options: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(options, dict):
        raise UnknownBacking("has a name that can't be read")
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What `qemu-img check` has found."""

    corruptions: bool  # or QEMU's mark of them: `check` alone calls a marked image clean
    leaks: bool  # lost space only
    dirty: bool  # what is wrong is what a QEMU that was killed leaves with lazy_refcounts: any QEMU puts it right
    snapshots: tuple[Tagged, ...]
    bitmaps: tuple[Bitmap, ...] = ()

    @property
    def any(self) -> bool:
        return self.corruptions or self.leaks or self.dirty

    @property
    def can_wait(self) -> bool:
        """Lost space alone, whose repair would cost the image its valid bitmaps."""
        return self.leaks and not (self.corruptions or self.dirty) and any(not each.in_use for each in self.bitmaps)
