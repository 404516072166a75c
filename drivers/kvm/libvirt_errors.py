"""Ignores libvirt errors by their code."""

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt


@contextmanager
def ignoring(*codes: int) -> Iterator[None]:
    """End the block at a libvirt error with one of these codes (VIR_ERR_*); any other error is raised."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise
