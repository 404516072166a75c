"""Reads the pins of a lock file for a Python version and a machine."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

_ENTRY = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==(\S+)(?: ; (.*))?$")


@dataclass(frozen=True, kw_only=True)
class Entry:
    name: str
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]  # sha256:HEX

    @property
    def as_line(self) -> str:
        """The line for pip, without the marker, which pip would compare with the Python that runs pip."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash={digest}" for digest in self.hashes)])


def pinned(lock: Path) -> Iterator[Entry]:
    for line in lock.read_text().replace("\\\n", "").splitlines():
        words, *hashes = re.split(r"\s+--hash=", line.strip())
        if (match := _ENTRY.match(words)) is None:
            raise ValueError(f"{lock}: {words!r} pins no version")
        name, version, marker = match.groups()
        yield Entry(name=name, version=version, marker=Marker(marker) if marker else None, hashes=tuple(hashes))


def pinned_for(lock: Path, *, python: str, machine: str) -> list[Entry]:
    """The pins for CPython `python` (3.11.2) on Linux on `machine` (x86_64)."""
    environment = {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
    }
    return [entry for entry in pinned(lock) if entry.marker is None or entry.marker.evaluate(environment)]
