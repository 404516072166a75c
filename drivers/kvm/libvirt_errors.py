"""Tells libvirt's errors apart by their code."""

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

# The daemon is gone or hangs: the call may or may not have been executed. VIR_ERR_OPERATION_TIMEOUT may also mean that
# another tool is working on the domain; then the call was not executed.
UNKNOWN_OUTCOME = frozenset(
    {libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_OPERATION_TIMEOUT}
)


@contextmanager
def ignoring(*codes: int) -> Iterator[None]:
    """End the block at a libvirt error with one of these codes (VIR_ERR_*); any other error is raised."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise
