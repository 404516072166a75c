"""UEFI variables: a small file beside no disk, copied whole for each snapshot (540 kB)."""

import os
import shutil
from pathlib import Path


def copy_for(nvram: Path, tag: str) -> Path:
    """Where the copy that belongs to a tag lies: on the same storage, beside the original."""
    return nvram.with_name(f"{nvram.name}.{tag}")


def save(nvram: Path, tag: str) -> None:
    _replace(nvram, copy_for(nvram, tag))


def restore(nvram: Path, tag: str) -> None:
    _replace(copy_for(nvram, tag), nvram)


def delete(nvram: Path, tag: str) -> None:
    copy = copy_for(nvram, tag)
    for path in (copy, _fresh(copy)):
        path.unlink(missing_ok=True)


def tags(nvram: Path) -> frozenset[str]:
    """The tags that have a copy."""
    prefix = f"{nvram.name}."
    found = (path.name.removeprefix(prefix) for path in nvram.parent.glob(f"{_literal(prefix)}*"))
    return frozenset(tag for tag in found if not tag.endswith(".new"))


def _literal(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _fresh(target: Path) -> Path:
    """What will be the file once it is whole."""
    return target.with_name(f"{target.name}.new")


def _replace(source: Path, target: Path) -> None:
    """Whole or not at all, also in a power cut; owner and mode as the original's."""
    fresh = _fresh(target)
    shutil.copyfile(source, fresh)
    shutil.copystat(source, fresh)
    status = source.stat()
    os.chown(fresh, status.st_uid, status.st_gid)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
