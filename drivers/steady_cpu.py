"""For an embedded libvirt: one CPU for the moment in which it is opened."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def steady_cpu() -> Iterator[None]:
    """Keep this thread on one CPU, the same in each process: wrap the opening of an embedded libvirt in it.

    It keeps what it learnt of QEMU for as long as the CPU's identity is the same, and where there is a /dev/kvm that
    identity has the CPU's number in it: on 2 CPUs half of all openings took 4 s to ask QEMU anew, pinned ones 0.1 s.
    The guests get all CPUs, whatever ours are.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
