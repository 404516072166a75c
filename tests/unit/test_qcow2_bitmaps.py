"""Repairs of real images that have bitmaps and snapshots: QEMU 7.2's own loses the snapshots."""

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from drivers import qcow2, qcow2_bitmaps
from drivers.qcow2_bitmaps import BitmapsUnreadable
from tests.conftest import needs

AUTOCLEAR_AT = 88


def qemu_img(*arguments: str) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def info(path: Path) -> Any:
    return json.loads(qemu_img("info", "-f", "qcow2", "--output=json", str(path)))


def bitmaps(path: Path) -> list[tuple[str, list[str]]]:
    found = info(path)["format-specific"]["data"].get("bitmaps", [])
    return [(bitmap["name"], bitmap["flags"]) for bitmap in found]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """With two snapshots, three bitmaps, and clusters that the snapshots share with the disk."""
    needs("qemu-img")
    needs("qemu-io")
    path = tmp_path / "d.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(path), "64M")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 8M 1M", str(path)], check=True, capture_output=True)
    for tag in ("vps-1", "vps-2"):
        qemu_img("snapshot", "-c", tag, str(path))
    qemu_img("bitmap", "--add", "-f", "qcow2", str(path), "a name of an odd length")
    qemu_img("bitmap", "--add", "--disable", "-f", "qcow2", str(path), "b1")
    qemu_img("bitmap", "--add", "-f", "qcow2", str(path), "b2")
    return path


def leak(path: Path) -> None:
    """A cluster that nobody uses, counted as used: what a killed QEMU leaves."""
    with path.open("r+b") as file:
        file.seek(48)
        (table_at,) = struct.unpack(">Q", file.read(8))
        file.seek(table_at)
        (block_at,) = struct.unpack(">Q", file.read(8))
        file.seek(block_at)
        counts = struct.unpack(">32768H", file.read(1 << 16))
        free = counts.index(0)
        file.seek(block_at + 2 * free)
        file.write(struct.pack(">H", 1))
        file.truncate(max(path.stat().st_size, (free + 1) << 16))


@pytest.mark.parametrize("damaged", [True, False])
async def test_a_repair_keeps_snapshots_and_bitmaps(image: Path, damaged: bool) -> None:
    before = bitmaps(image)
    if damaged:
        leak(image)
    assert (await qcow2.damage(str(image))).leaks is damaged
    await qcow2.repair(str(image))
    after = await qcow2.damage(str(image))
    assert not after.any
    assert [snapshot["name"] for snapshot in info(image)["snapshots"]] == ["vps-1", "vps-2"]
    assert bitmaps(image) == before
    qemu_img("bitmap", "--remove", "-f", "qcow2", str(image), "b1")  # they can be worked with
    assert not (await qcow2.damage(str(image))).any


async def test_a_repair_that_dies_leaves_bitmaps_that_nobody_believes(image: Path) -> None:
    qcow2_bitmaps.set_aside(str(image))
    assert all("in-use" in flags for _, flags in bitmaps(image))
    await qcow2.repair(str(image))
    assert len(info(image)["snapshots"]) == 2


@pytest.mark.parametrize("autoclear", [0, 1 << 40 | 1])
async def test_a_header_that_qemu_would_write_anew_costs_no_snapshot_either(image: Path, autoclear: int) -> None:
    """A program that knows no bitmaps has changed the image; or one of years to come has."""
    with image.open("r+b") as file:
        file.seek(AUTOCLEAR_AT)
        file.write(struct.pack(">Q", autoclear))
    leak(image)
    await qcow2.repair(str(image))
    assert [snapshot["name"] for snapshot in info(image)["snapshots"]] == ["vps-1", "vps-2"]
    assert not (await qcow2.damage(str(image))).any


def test_any_numbers_in_an_image_are_borne(image: Path) -> None:
    content = image.read_bytes()
    at = content.index(struct.pack(">I", qcow2_bitmaps.EXTENSION))
    for place, number in ((4, 1 << 31), (16, 1 << 62), (16, 1), (24, 1 << 63), (24, 1 << 40)):
        spoilt = bytearray(content)
        spoilt[at + place : at + place + 8] = struct.pack(">Q", number)[: 4 if place == 4 else 8].ljust(8, b"\0")
        image.write_bytes(spoilt)
        try:
            aside = qcow2_bitmaps.set_aside(str(image))
        except BitmapsUnreadable:
            assert image.read_bytes() == spoilt
        else:
            aside.put_back()
