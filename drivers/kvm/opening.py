"""Opening a libvirt; what one that is embedded in this process needs before."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import libvirt

from drivers.cut_off_starts import forget_cut_off_starts


def opened(uri: str) -> Any:
    """A connection. Raises libvirt.libvirtError, also where another process has the embedded root."""
    address = urlsplit(uri)
    root = parse_qs(address.query).get("root")
    if address.path != "/embed" or root is None:
        return libvirt.open(uri)
    # Should a process have it that is in the midst of a start: it writes what we remove anew a moment later.
    forget_cut_off_starts(Path(root[0], "run", "qemu"))
    with _one_cpu():
        return libvirt.open(uri)


@contextmanager
def _one_cpu() -> Iterator[None]:
    """Keep this thread on one CPU, the same in each process.

    An embedded libvirt keeps what it learnt of QEMU for as long as the CPU's identity is the same, and where there is
    a /dev/kvm that identity has the CPU's number in it: on 2 CPUs half of all openings took 4 s to ask QEMU anew,
    pinned ones 0.1 s. The guests get all CPUs, whatever ours are.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
