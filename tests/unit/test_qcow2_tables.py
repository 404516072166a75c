"""The reader of qcow2 tables, with images of qemu-img and with forged ones."""

import json
import os
import resource
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers import qcow2_tables
from drivers.qcow2_header import TablesUnreadable
from drivers.qcow2_tables import Tables
from tests.conftest import needs

TAG = "vps-1"
SIZE = 64 << 20
HEADER_BYTES, ENTRY_BYTES = 104, 40


@pytest.fixture(autouse=True)
def _programs() -> None:
    needs("qemu-img")
    needs("qemu-io")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """64 MiB with the letter A in its first clusters and, as its only snapshot, TAG."""
    return make_image(tmp_path / "disk.qcow2")


def make_image(path: Path, *options: str) -> Path:
    qemu_img("create", "-q", "-f", "qcow2", *options, str(path), str(SIZE))
    write(path, 0, 1)
    qemu_img("snapshot", "-c", TAG, str(path))
    return path


def qemu_img(*arguments: str) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def write(path: Path, at_mib: int, pattern: int) -> None:
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P {pattern} {at_mib}M 64k", str(path)]
    subprocess.run(command, check=True, capture_output=True)


def is_at(path: Path, tag: str = TAG) -> bool:
    return qcow2_tables.read(str(path), l1_of=tag).is_at(tag)


class TestWhatTheTablesSay:
    @pytest.mark.parametrize(
        ("option", "version"),
        [("cluster_size=64k", 3), ("cluster_size=512", 3), ("cluster_size=2M", 3), ("compat=0.10", 2)],
    )
    def test_they_equal_qemu_imgs_own_report(self, tmp_path: Path, option: str, version: int) -> None:
        path = make_image(tmp_path / "disk.qcow2", "-o", option)
        found = qcow2_tables.read(str(path))
        assert (found.version, found.virtual_bytes) == (version, SIZE)
        (entry,) = found.snapshots
        assert (entry.id, entry.name, entry.virtual_bytes) == ("1", TAG, SIZE)

    def test_the_stamp_is_qemus_own_time_and_stays_when_the_file_is_moved(self, image: Path) -> None:
        (listed,) = _info(image)["snapshots"]
        (entry,) = qcow2_tables.read(str(image)).snapshots
        assert entry.stamp == f"{listed['date-sec']}.{listed['date-nsec']:09}"
        moved = image.rename(image.with_name("moved"))
        qemu_img("snapshot", "-c", "another", str(moved))
        qemu_img("snapshot", "-a", TAG, str(moved))
        assert qcow2_tables.read(str(moved)).named(TAG)[0].stamp == entry.stamp

    def test_names_of_all_kinds_are_read(self, image: Path) -> None:
        names = ["", "a,b=c", "ümläut-🎉", "x" * 200]
        for name in names:
            qemu_img("snapshot", "-c", name, str(image))
        found = qcow2_tables.read(str(image))
        assert [entry.name for entry in found.snapshots] == [TAG, *names]
        assert [entry.id for entry in found.snapshots] == ["1", "2", "3", "4", "5"]

    def test_a_snapshot_whose_id_is_the_tag_is_not_the_tags(self, image: Path) -> None:
        set_id(image, 0, "7")
        qemu_img("snapshot", "-c", "7", str(image))
        found = qcow2_tables.read(str(image))
        assert [(entry.id, entry.name) for entry in found.snapshots] == [("7", TAG), ("8", "7")]
        assert [entry.id for entry in found.named("7")] == ["8"]


class TestWhetherTheDiskIsAtATag:
    def test_it_is_right_after_a_create_and_after_a_revert(self, image: Path) -> None:
        assert is_at(image)
        write(image, 0, 2)
        qemu_img("snapshot", "-a", TAG, str(image))
        assert is_at(image)

    @pytest.mark.parametrize("at_mib", [0, 1, 63])
    def test_it_is_not_after_one_write(self, image: Path, at_mib: int) -> None:
        write(image, at_mib, 2)
        assert not is_at(image)

    @pytest.mark.parametrize("at_mib", [0, 1, 63])
    def test_it_is_not_after_one_write_to_a_disk_that_is_mapped_whole(self, tmp_path: Path, at_mib: int) -> None:
        path = make_image(tmp_path / "full", "-o", "preallocation=metadata")
        assert is_at(path)
        write(path, at_mib, 2)
        assert not is_at(path)

    def test_it_is_not_after_a_discard(self, image: Path) -> None:
        command = ["qemu-io", "-f", "qcow2", "-d", "unmap", "-c", "discard 0 64k", str(image)]
        subprocess.run(command, check=True, capture_output=True)
        assert not is_at(image)

    def test_it_is_at_the_tag_that_it_was_brought_back_to_and_at_no_other(self, image: Path) -> None:
        write(image, 0, 2)
        qemu_img("snapshot", "-c", "vps-2", str(image))
        assert (is_at(image, TAG), is_at(image, "vps-2")) == (False, True)
        qemu_img("snapshot", "-a", TAG, str(image))
        assert (is_at(image, TAG), is_at(image, "vps-2")) == (True, False)

    def test_it_is_not_when_it_was_enlarged_and_is_again_after_a_revert(self, image: Path) -> None:
        qemu_img("resize", "-q", "-f", "qcow2", str(image), "200G")
        assert not is_at(image)
        qemu_img("snapshot", "-a", TAG, str(image))
        assert is_at(image)

    def test_checks_bitmaps_and_other_snapshots_leave_it_there(self, image: Path) -> None:
        qemu_img("check", "-q", "-r", "all", "-f", "qcow2", str(image))
        assert is_at(image)
        qemu_img("bitmap", "--add", "-f", "qcow2", str(image), "b0")
        assert is_at(image)
        qemu_img("bitmap", "--remove", "-f", "qcow2", str(image), "b0")
        qemu_img("snapshot", "-c", "vps-2", str(image))
        assert is_at(image)
        qemu_img("snapshot", "-d", "vps-2", str(image))
        qemu_img("check", "-q", "-r", "all", "-f", "qcow2", str(image))
        assert is_at(image)

    def test_an_empty_disk_and_one_without_the_tag(self, tmp_path: Path) -> None:
        path = tmp_path / "empty"
        qemu_img("create", "-q", "-f", "qcow2", str(path), "0")
        assert not is_at(path)
        qemu_img("snapshot", "-c", TAG, str(path))
        assert is_at(path)

    def test_a_duplicate_tag_does_not_count(self, image: Path) -> None:
        qemu_img("snapshot", "-c", TAG, str(image))
        assert not is_at(image)

    def test_the_tables_must_have_been_read(self, image: Path) -> None:
        with pytest.raises(ValueError, match="l1_of"):
            qcow2_tables.read(str(image)).is_at(TAG)


class TestForgedImages:
    @pytest.mark.parametrize("what", ["missing", "folder", "fifo", "empty", "raw", "NUL in its path", "loop"])
    def test_a_file_that_is_not_an_image_is_refused(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / "x"
        match what:
            case "folder":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "empty":
                path.touch()
            case "raw":
                path.write_bytes(bytes(1 << 20))
            case "loop":
                path.symlink_to(path)
            case "NUL in its path":
                path = tmp_path / "a\0b"
        with pytest.raises(TablesUnreadable):
            qcow2_tables.read(str(path), l1_of=TAG)

    @pytest.mark.parametrize(
        ("offset", "form", "value"),
        [
            (0, ">I", 0x514649FC),  # magic
            (4, ">I", 1),  # version
            (4, ">I", 4),
            (20, ">I", 8),  # cluster bits
            (20, ">I", 22),
            (20, ">I", 0xFFFFFFFF),
            (24, ">Q", (1 << 64) - 1),  # virtual size
            (36, ">I", 0xFFFFFFFF),  # L1 entries
            (36, ">I", 0),
            (40, ">Q", 1),  # L1 table
            (40, ">Q", 1 << 40),
            (40, ">Q", (1 << 64) - 65536),
            (60, ">I", 65537),  # snapshots
            (60, ">I", 65536),  # more than the table has: zeros, then the end of the file
            (64, ">Q", 1),  # snapshot table
            (64, ">Q", 1 << 62),
            (64, ">Q", (1 << 64) - 65536),
            (96, ">I", 7),  # refcount order
        ],
    )
    def test_a_number_beyond_its_bound_is_refused(self, image: Path, offset: int, form: str, value: int) -> None:
        with image.open("r+b") as file:
            file.seek(offset)
            file.write(struct.pack(form, value))
        with pytest.raises(TablesUnreadable):
            qcow2_tables.read(str(image), l1_of=TAG)

    @pytest.mark.parametrize(
        ("offset", "form", "value"),
        [(0, ">Q", 1), (0, ">Q", 1 << 50), (8, ">I", 0xFFFFFFFF), (8, ">I", 1 << 22), (36, ">I", 1025)],
    )
    def test_a_number_of_a_snapshot_beyond_its_bound_is_refused(
        self, image: Path, offset: int, form: str, value: int
    ) -> None:
        with image.open("r+b") as file:
            file.seek(snapshot_table(image) + offset)
            file.write(struct.pack(form, value))
        with pytest.raises(TablesUnreadable):
            qcow2_tables.read(str(image), l1_of=TAG)

    def test_an_old_entry_without_extra_data_does_not_say_how_large_the_disk_was(self, image: Path) -> None:
        at = snapshot_table(image)
        with image.open("r+b") as file:
            file.seek(at)
            entry = file.read(ENTRY_BYTES + 24 + len("1" + TAG))
            file.seek(at)
            file.write(entry[:36] + struct.pack(">I", 0) + entry[ENTRY_BYTES + 24 :])
        (found,) = qcow2_tables.read(str(image), l1_of=TAG).snapshots
        assert (found.id, found.name, found.virtual_bytes) == ("1", TAG, None)
        assert is_at(image)

    def test_an_image_made_to_cost_much_is_read_within_bounds(self, tmp_path: Path) -> None:
        path = tmp_path / "large"
        with path.open("wb") as file:  # sparse: one L1 table of 32 MiB, 4096 snapshots with the longest names
            file.write(header(cluster_bits=21, l1_entries=4 << 20, l1_at=1 << 21, snapshots=4096, snapshots_at=1 << 26))
            file.seek(1 << 26)
            for _ in range(1000):
                file.write(entry(1 << 21, 4 << 20, b"i" * 65535, b"n" * 65535))
            file.truncate(1 << 34)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(TablesUnreadable, match="snapshot table is too long"):
            qcow2_tables.read(str(path), l1_of="n" * 65535)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    path = make_image(tmp_path_factory.mktemp("fuzz") / "disk.qcow2")
    return path, path.read_bytes(), snapshot_table(path)


NUMBERS = st.one_of(
    st.sampled_from([0, 1, 7, 8, 511, 512, 65535, 65536, 1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)


@settings(max_examples=500, deadline=2000)
@given(
    patches=st.lists(st.tuples(st.booleans(), st.integers(0, 103), st.sampled_from([1, 2, 4, 8]), NUMBERS), max_size=6)
)
def test_any_header_and_snapshot_table_is_read_or_refused(
    template: tuple[Path, bytes, int], patches: list[tuple[bool, int, int, int]]
) -> None:
    path, content, table = template
    forged = bytearray(content)
    for in_table, at, size, number in patches:
        start = at + (table if in_table else 0)
        forged[start : start + size] = (number % (1 << 8 * size)).to_bytes(size, "big")
    path.write_bytes(forged)
    try:
        found = qcow2_tables.read(str(path), l1_of=TAG)
    except TablesUnreadable:
        return
    assert isinstance(found, Tables)
    if found.named(TAG):
        found.is_at(TAG)


@settings(max_examples=100, deadline=2000)
@given(length=st.integers(0, 1 << 19))
def test_an_image_that_was_cut_short_is_read_or_refused(template: tuple[Path, bytes, int], length: int) -> None:
    path, content, _ = template
    path.write_bytes(content[:length])
    try:
        qcow2_tables.read(str(path), l1_of=TAG)
    except TablesUnreadable:
        return


def snapshot_table(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(64)
        (at,) = struct.unpack(">Q", file.read(8))
    return int(at)


def set_id(path: Path, number: int, snapshot_id: str) -> None:
    """Change the ID of a snapshot entry in this image to one of the same length."""
    assert number == 0
    with path.open("r+b") as file:
        at = snapshot_table(path)
        file.seek(at + 36)
        (extra,) = struct.unpack(">I", file.read(4))
        file.seek(at + ENTRY_BYTES + extra)
        file.write(snapshot_id.encode())


def header(*, cluster_bits: int, l1_entries: int, l1_at: int, snapshots: int, snapshots_at: int) -> bytes:
    first = (b"QFI\xfb", 3, 0, 0, cluster_bits, SIZE, 0, l1_entries, l1_at, 0, 0, snapshots, snapshots_at)
    return struct.pack(">4sIQIIQIIQQIIQ", *first) + struct.pack(">QQQII", 0, 0, 0, 4, HEADER_BYTES)


def entry(l1_at: int, l1_entries: int, snapshot_id: bytes, name: bytes) -> bytes:
    data = struct.pack(">QIHHIIQII", l1_at, l1_entries, len(snapshot_id), len(name), 1, 2, 0, 0, 0) + snapshot_id + name
    return data.ljust(-(-len(data) // 8) * 8, b"\0")


def _info(path: Path) -> dict[str, list[dict[str, int]]]:
    found: dict[str, list[dict[str, int]]] = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", str(path)))
    return found
