"""The backing chain of an image, whatever its owner has written to the header."""

import struct
from pathlib import Path

import pytest

from drivers import image_chain

NAME_AT, HEADER_BYTES = 512, 104


def image(path: Path, below: bytes) -> Path:
    head = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, NAME_AT, len(below), 16, *([0] * 11), 4, HEADER_BYTES)
    path.write_bytes(head.ljust(NAME_AT, b"\0") + below)
    return path


@pytest.mark.parametrize(
    "name",
    [b"base", b"file:base", b'json:{"driver":"qcow2","file":{"filename":"base"}}', b'json:{"file.filename":"base"}'],
)
def test_the_file_below_is_followed_however_it_is_named(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "base").write_bytes(b"raw")
    top = image(tmp_path / "top", name)
    assert [path for path, _ in image_chain.files(str(top))] == [str(top), str(tmp_path / "base")]


@pytest.mark.parametrize("name", [b"json:" + b"[" * 1018, b"json:{", b"json:7", b"json:{}", b"a\0b", b"\xff", b"top"])
def test_a_name_that_leads_nowhere_ends_the_chain(tmp_path: Path, name: bytes) -> None:
    top = image(tmp_path / "top", name)
    assert {path for path, _ in image_chain.files(str(top))} == {str(top)}
    image_chain.base(str(top))
