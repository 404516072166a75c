"""Opens a libvirt connection, and prepares for the embedded driver."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import libvirt

from drivers.cut_off_starts import forget_cut_off_starts


def opened(uri: str) -> Any:
    """A new connection. Raises libvirt.libvirtError, also if another process uses the embedded root."""
    address = urlsplit(uri)
    root = parse_qs(address.query).get("root")
    if address.path != "/embed" or root is None:
        return libvirt.open(uri)
    # If another process is starting a domain there, it soon rewrites the removed status file.
    forget_cut_off_starts(Path(root[0], "run", "qemu"))
    with _one_cpu():
        return libvirt.open(uri)


@contextmanager
def _one_cpu() -> Iterator[None]:
    """Pin this thread to one CPU, the same in every process.

    The embedded libvirt caches QEMU's capabilities by the CPU's identity, which includes the CPU's number if there is a
    /dev/kvm. On 2 CPUs half of all connections took 4 s to probe QEMU again; pinned ones take 0.1 s. Guests can use all
    CPUs regardless.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
