"""The options with which QEMU opens an image."""

import json
import struct
from pathlib import Path

import pytest

from drivers.held_image import HeldImage

MIB = 1 << 20


@pytest.mark.parametrize(
    ("cluster_bits", "cache_bytes"), [(9, 4 * MIB), (12, 32 * MIB), (16, 256 * MIB), (21, 256 * MIB)]
)
def test_the_caches_are_large_and_hold_at_most_8192_tables(tmp_path: Path, cluster_bits: int, cache_bytes: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, cluster_bits, *([0] * 11), 4, 104))
    held = HeldImage.open(str(path))
    try:
        options = json.loads(held.name.removeprefix("json:"))
    finally:
        held.close()
    assert options["driver"] == "qcow2"
    assert options["l2-cache-size"] == options["refcount-cache-size"] == cache_bytes
