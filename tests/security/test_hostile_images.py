"""A guest that has escaped from QEMU writes anything into its image: headers, tables, names of other files.

The service's own reader and its calls of qemu-img finish soon, stay within limits, and open no other file and no
address. The disk is refused with a reason before its server is stopped.
"""

import asyncio
import ctypes
import fcntl
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from drivers import child, image_chain, image_locks, qcow2, qcow2_tables
from drivers.child import Limits
from drivers.kvm.disks_xml import FileDisk
from drivers.kvm.judgment import judge_disks
from drivers.qcow2 import QemuImgFailed
from drivers.qcow2_header import MAX_SNAPSHOTS, TablesUnreadable
from drivers.qcow2_image import NoSuchSnapshot
from tests.conftest import needs, needs_root

TAG = "vps-1"
SIZE = 64 << 20
CLUSTER = 1 << 16
STEP_SECONDS = 5.0  # for one operation on an image; a job's steps have 360
SOON_SECONDS = 60.0  # of CPU time, for all of them: how long they take depends on the machine's other work
HANGS_SECONDS = 600.0
BOUND_BYTES = 512 << 20  # of memory and of disk space
# offsets in the header
BACKING_AT, BACKING_BYTES, CLUSTER_BITS, VIRTUAL, CRYPT, L1_ENTRIES, L1_AT = 8, 16, 20, 24, 32, 36, 40
REFCOUNTS_AT, REFCOUNT_CLUSTERS, SNAPSHOTS, SNAPSHOTS_AT, INCOMPATIBLE = 48, 56, 60, 64, 72
REFCOUNT_ORDER, HEADER_BYTES = 96, 100
SAYS_FORMAT, SAYS_DATA_FILE = 0xE2792ACA, 0x44415441
IN_OPEN = 0x20

Forge = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _programs() -> None:
    for program in ("qemu-img", "qemu-io", "setpriv", "prlimit"):
        needs(program)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with data in its first clusters, and a snapshot."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(path), str(SIZE))
    command = ["qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 256k", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    qemu_img("snapshot", "-c", TAG, str(path))
    return path


def qemu_img(*arguments: str) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def patch(path: Path, at: int, form: str, *values: int | bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, *values))


def number(path: Path, at: int, form: str = ">Q") -> int:
    with path.open("rb") as file:
        file.seek(at)
        return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])


def name_backing(path: Path, name: str, form: str = "raw") -> None:
    """Write what `qemu-img rebase -u` writes, which would refuse some of these names."""
    text = name.encode()
    extension = struct.pack(">II", SAYS_FORMAT, len(form)) + form.encode().ljust(8, b"\0") + bytes(8)
    patch(path, number(path, HEADER_BYTES, ">I"), f"{len(extension)}s", extension)
    patch(path, BACKING_AT, ">QI", 1024, len(text))
    patch(path, 1024, f"{len(text)}s", text)


def entry(*, name: bytes, l1_at: int = 0, l1_entries: int = 0, extra: int = 16) -> bytes:
    head = struct.pack(">QIHHIIQII", l1_at, l1_entries, 1, len(name), 0, 0, 0, 0, extra)
    whole = head + struct.pack(">QQ", 0, SIZE) + b"1" + name
    return whole.ljust(-(-len(whole) // 8) * 8, b"\0")


def put_snapshots(path: Path, count: int, name: bytes = b"n") -> None:
    """Write that many snapshots as a table at the end of the file."""
    at = -(-path.stat().st_size // CLUSTER) * CLUSTER
    with path.open("r+b") as file:
        file.seek(at)
        for _ in range(count):
            file.write(entry(name=name, l1_at=number(path, L1_AT), l1_entries=number(path, L1_ENTRIES, ">I")))
    patch(path, SNAPSHOTS, ">IQ", count, at)


def set_number(at: int, form: str, value: int) -> Forge:
    return lambda path: patch(path, at, form, value)


def cut(size: int) -> Forge:
    return lambda path: os.truncate(path, size)


def overwritten(content: bytes) -> Forge:
    def forge(path: Path) -> None:
        path.write_bytes(content)

    return forge


def in_l1(value: Callable[[Path], int]) -> Forge:
    return lambda path: patch(path, number(path, L1_AT), ">Q", value(path))


def in_refcounts(value: Callable[[Path], int]) -> Forge:
    return lambda path: patch(path, number(path, REFCOUNTS_AT), ">Q", value(path))


def in_l2(value: int) -> Forge:
    def forge(path: Path) -> None:
        l2_at = number(path, number(path, L1_AT)) & ((1 << 62) - 1)
        for index in range(4):
            patch(path, l2_at + 8 * index, ">Q", value)

    return forge


def in_snapshot(at: int, form: str, value: int) -> Forge:
    return lambda path: patch(path, number(path, SNAPSHOTS_AT) + at, form, value)


def needs_a_data_file(name: str) -> Forge:
    def forge(path: Path) -> None:
        text = name.encode()
        extension = struct.pack(">II", SAYS_DATA_FILE, len(text)) + text.ljust(-(-len(text) // 8) * 8, b"\0")
        patch(path, number(path, HEADER_BYTES, ">I"), f"{len(extension)}s", extension)
        patch(path, INCOMPATIBLE, ">Q", 1 << 2)

    return forge


def all_l1_entries_at_one_table(path: Path) -> None:
    """Write the most L1 entries that QEMU accepts, all for one table of 8192 entries: 2^35 clusters to check."""
    l2 = number(path, number(path, L1_AT))
    at = -(-path.stat().st_size // CLUSTER) * CLUSTER
    count = 4 << 20
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(">Q", l2) * count)
    patch(path, L1_ENTRIES, ">IQ", count, at)


def immense(path: Path) -> None:
    """Sparse, with the smallest clusters, so that there are as many as possible."""
    path.unlink()
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,refcount_bits=64", str(path), "1M")
    qemu_img("snapshot", "-c", TAG, str(path))
    with path.open("r+b") as file:
        file.truncate(8 << 40)


FORGED: dict[str, Forge] = {
    "no clusters": set_number(CLUSTER_BITS, ">I", 0),
    "immense clusters": set_number(CLUSTER_BITS, ">I", 63),
    "an immense disk": set_number(VIRTUAL, ">Q", (1 << 63) - 512),
    "a negative size": set_number(VIRTUAL, ">Q", (1 << 64) - 512),
    "an immense L1 table": set_number(L1_ENTRIES, ">I", (1 << 32) - 1),
    "no L1 table": set_number(L1_ENTRIES, ">I", 0),
    "L1 table beyond the file": set_number(L1_AT, ">Q", 1 << 61),
    "L1 table not aligned": set_number(L1_AT, ">Q", 7),
    "L1 table on the header": set_number(L1_AT, ">Q", 0),
    "refcounts beyond the file": set_number(REFCOUNTS_AT, ">Q", 1 << 60),
    "immense refcounts": set_number(REFCOUNT_CLUSTERS, ">I", (1 << 32) - 1),
    "refcounts of many bits": set_number(REFCOUNT_ORDER, ">I", 255),
    "refcounts that count themselves": in_refcounts(lambda path: number(path, REFCOUNTS_AT)),
    "refcount block on the header": in_refcounts(lambda _path: CLUSTER << 40),
    "L2 table is the L1 table": in_l1(lambda path: number(path, L1_AT) | 1 << 63),
    "L2 table is the header": in_l1(lambda _path: 1 << 63),
    "L2 table beyond the file": in_l1(lambda _path: 1 << 55 | 1 << 63),
    "data beyond the file": in_l2(1 << 55 | 1 << 63),
    "data is the header": in_l2(1 << 63),
    "all data compressed": in_l2((1 << 62) | (1 << 61)),
    "a long header": set_number(HEADER_BYTES, ">I", (1 << 32) - 8),
    "an extension beyond the header": set_number(116, ">I", (1 << 32) - 1),
    "a long backing name": lambda path: patch(path, BACKING_AT, ">QI", 512, 1 << 31),
    "a backing name far away": lambda path: patch(path, BACKING_AT, ">QI", 1 << 62, 8),
    "many snapshots": set_number(SNAPSHOTS, ">I", (1 << 32) - 1),
    "snapshots beyond the file": set_number(SNAPSHOTS_AT, ">Q", 1 << 62),
    "snapshots on the header": set_number(SNAPSHOTS_AT, ">Q", 0),
    "a snapshot with an immense L1 table": in_snapshot(8, ">I", (1 << 32) - 1),
    "a snapshot with an L1 table beyond the file": in_snapshot(0, ">Q", 1 << 61),
    "a snapshot with the L1 table on the header": in_snapshot(0, ">Q", 0),
    "a snapshot with much extra data": in_snapshot(36, ">I", (1 << 32) - 1),
    "4097 snapshots": lambda path: put_snapshots(path, MAX_SNAPSHOTS + 1),
    "65536 snapshots": lambda path: put_snapshots(path, 65536),
    "long names of snapshots": lambda path: put_snapshots(path, 4096, b"\x01" * 60000),
    "4096 snapshots": lambda path: put_snapshots(path, MAX_SNAPSHOTS),
    "unknown features": set_number(INCOMPATIBLE, ">Q", 1 << 63),
    "all features": set_number(INCOMPATIBLE, ">Q", (1 << 64) - 1),
    "AES": set_number(CRYPT, ">I", 1),
    "LUKS within": set_number(CRYPT, ">I", 2),
    "a LUKS container": overwritten(b"LUKS\xba\xbe\x00\x02".ljust(1 << 20, b"\0")),
    "an empty file": overwritten(b""),
    "half a header": cut(80),
    "only a header": cut(4096),
    "immense": immense,
}


# QEMU uses or repairs them: it reads zeros there
HARMLESS = {
    "4096 snapshots",
    "data is the header",
    "all data compressed",
    "a snapshot with an L1 table beyond the file",
}


async def tried(path: Path) -> list[str]:
    """Run every operation of the service on an image. Returns the failed ones with their errors."""
    disk = FileDisk(target="vda", path=str(path))
    failed = []
    _, refusals = await judge_disks([disk])
    failed += [str(error) for error in refusals]
    for read in (
        lambda: qcow2_tables.read(str(path), l1_of=TAG),
        lambda: image_chain.base(str(path)),
        lambda: image_locks.holder(str(path)),
    ):
        with suppress(TablesUnreadable, OSError):
            await asyncio.to_thread(read)
    for change in (
        lambda: qcow2.damage(str(path)),
        lambda: qcow2.create_snapshot(str(path), "vps-2"),
        lambda: qcow2.apply_snapshot(str(path), "1"),
        lambda: measured(path),
        lambda: qcow2.enlarge(str(path), 2 * SIZE),
        lambda: qcow2.delete_snapshot(str(path), "vps-2"),
        lambda: qcow2.remove_bitmaps(str(path)),
        lambda: qcow2.repair(str(path)),
    ):
        try:
            async with asyncio.timeout(STEP_SECONDS):
                await change()
        except TimeoutError:
            failed.append("it took longer than a step may take")
        except (QemuImgFailed, NoSuchSnapshot) as error:
            failed.append(str(error))
    return failed


async def measured(path: Path) -> int:
    return await qcow2.snapshot_bytes(str(path), TAG, await qcow2.image(str(path)))


@contextmanager
def bounded(path: Path) -> Iterator[None]:
    """Check that neither this process's memory, nor that of child processes, nor the file grows much, and that they
    compute no longer than SOON_SECONDS."""
    began = cpu_seconds()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    earlier = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10  # of earlier children, such as QEMU
    space = path.stat().st_blocks * 512
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - own) << 10 < BOUND_BYTES
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10 <= max(BOUND_BYTES, earlier)
    assert path.stat().st_blocks * 512 - space < BOUND_BYTES
    assert cpu_seconds() - began < SOON_SECONDS


def cpu_seconds() -> float:
    """The CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@pytest.mark.parametrize("forged", FORGED)
async def test_a_forged_image_is_refused_soon_and_within_limits(image: Path, forged: str) -> None:
    FORGED[forged](image)
    with bounded(image):
        async with asyncio.timeout(HANGS_SECONDS):
            failed = await tried(image)
    assert all("Traceback" not in text for text in failed)
    assert failed or forged in HARMLESS, "it passes for a good image"


REFUSED_BY_NAME = [
    ("4097 snapshots", "disk vda cannot be read as qcow2: it has too many snapshots: 4097"),
    ("long names of snapshots", "disk vda cannot be read as qcow2: its snapshot table is too long"),
    ("a long header", "disk vda cannot be read as qcow2"),
    ("a LUKS container", "disk vda cannot be read as qcow2: it is not qcow2 of version 2 or 3"),
    ("LUKS within", "disk vda cannot be read as qcow2|disk vda is encrypted"),
]


@pytest.mark.parametrize(("forged", "text"), REFUSED_BY_NAME)
async def test_the_customer_reads_what_is_wrong_and_no_path(image: Path, forged: str, text: str) -> None:
    FORGED[forged](image)
    _, (refusal,) = await judge_disks([FileDisk(target="vda", path=str(image))])
    assert any(text_ in str(refusal) for text_ in text.split("|"))
    assert str(image.parent) not in str(refusal)


async def test_a_check_without_end_is_ended(image: Path) -> None:
    all_l1_entries_at_one_table(image)
    with bounded(image), pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await qcow2.damage(str(image))
    assert not [pid for pid in children() if b"qemu-img" in command_of(pid)]


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def command_of(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@pytest.mark.parametrize("size", ["1", "3"])
async def test_a_snapshot_table_that_changes_all_the_time_is_given_up(image: Path, size: str) -> None:
    over = threading.Event()

    def grow() -> None:
        count = 1
        while not over.is_set():
            count = count % 4000 + int(size)
            patch(image, SNAPSHOTS, ">I", count)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        with bounded(image):
            async with asyncio.timeout(HANGS_SECONDS):
                for _ in range(50):
                    with suppress(TablesUnreadable):
                        await asyncio.to_thread(qcow2_tables.read, str(image))
                with suppress(QemuImgFailed):
                    await qcow2.image(str(image))
    finally:
        over.set()
        thread.join()


# --- other files and addresses ---


class Opens:
    """Detects whether any process has opened a file."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._events = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._libc.inotify_add_watch(self._events, os.fsencode(path), IN_OPEN) >= 0

    def any(self) -> bool:
        try:
            return bool(os.read(self._events, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._events)


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[tuple[Path, Opens]]:
    path = tmp_path / "secret"
    path.write_bytes(b"of the host" * 1000)
    opens = Opens(path)
    yield path, opens
    opens.close()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[object]]]:
    """A network server: its port, and its connections."""
    came: list[object] = []

    def greet(_reader: object, writer: asyncio.StreamWriter) -> None:
        came.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], came


ADDRESSES = [
    "nbd://127.0.0.1:{port}/x",
    "nbd:127.0.0.1:{port}",
    "http://127.0.0.1:{port}/x",
    "https://127.0.0.1:{port}/x",
    "ssh://127.0.0.1:{port}/x",
    "iscsi://127.0.0.1:{port}/x/0",
    'json:{{"driver":"nbd","host":"127.0.0.1","port":"{port}"}}',
    'json:{{"driver":"raw","file":{{"driver":"nbd","server":{{"type":"inet","host":"127.0.0.1","port":"{port}"}}}}}}',
    'json:{{"driver":"raw","file":{{"driver":"http","url":"http://127.0.0.1:{port}/x"}}}}',
    'json:{{"driver":"qcow2","file.driver":"nbd","file.host":"127.0.0.1","file.port":"{port}"}}',
    'json:{{"driver":"raw","file.filename":"nbd://127.0.0.1:{port}/x"}}',
]


@pytest.mark.parametrize("form", ["raw", "qcow2", "nbd", "http"])
@pytest.mark.parametrize("address", ADDRESSES)
async def test_no_address_of_a_backing_file_is_visited(image: Path, address: str, form: str) -> None:
    async with listening() as (port, came), asyncio.timeout(HANGS_SECONDS):
        name_backing(image, address.format(port=port), form)
        failed = await tried(image)
        assert failed[0].startswith(("the backing file of disk vda", "disk vda"))
        needs_a_data_file(address.format(port=port))(image)
        assert await tried(image)
    assert came == []


@pytest.mark.parametrize(
    "name",
    [
        "{secret}",
        "file:{secret}",
        'json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}',
        'json:{{"file.filename":"{secret}"}}',
        "fat:{folder}",
        "json:{{}}",
        'json:{{"driver":"blkdebug","config":"{secret}","image":{{"driver":"null-co"}}}}',
        'json:{{"driver":"blklogwrites","file":{{"driver":"null-co"}},"log":{{"driver":"file","filename":"{secret}"}}}}',
    ],
)
async def test_a_change_opens_no_file_of_the_host(image: Path, secret: tuple[Path, Opens], name: str) -> None:
    path, opens = secret
    text = name.format(secret=path, folder=path.parent)
    name_backing(image, text)
    await changed(image)
    assert not opens.any()
    needs_a_data_file(text)(image)
    _, (refusal,) = await judge_disks([FileDisk(target="vda", path=str(image))])
    assert str(refusal) == "disk vda cannot be read as qcow2: it stores its data in an external data file"
    with pytest.raises(QemuImgFailed):
        await changed(image)
    assert not opens.any()


async def changed(path: Path) -> None:
    for change in (
        lambda: qcow2.create_snapshot(str(path), "vps-2"),
        lambda: qcow2.damage(str(path)),
        lambda: qcow2.apply_snapshot(str(path), "1"),
        lambda: qcow2.delete_snapshot(str(path), "vps-2"),
        lambda: qcow2.repair(str(path)),
    ):
        await change()


@pytest.mark.parametrize("what", ["fifo", "device", "folder", "socket"])
async def test_a_backing_file_that_would_block_is_refused(image: Path, tmp_path: Path, what: str) -> None:
    base = tmp_path / "base"
    match what:
        case "fifo":
            os.mkfifo(base)
        case "folder":
            base.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(base))
        case _:
            base = Path("/dev/tty")
    name_backing(image, str(base))
    async with asyncio.timeout(HANGS_SECONDS):
        failed = await tried(image)
    assert failed[0] == "the backing file of disk vda is neither a file nor a block device"


@pytest.mark.parametrize("what", ["fifo", "link", "folder"])
async def test_anything_but_a_file_at_the_images_path_is_refused(
    image: Path, tmp_path: Path, secret: tuple[Path, Opens], what: str
) -> None:
    needs_root()
    image.unlink()
    match what:
        case "fifo":
            os.mkfifo(image)
        case "folder":
            image.mkdir()
        case _:  # owned by a user who may write to the folder
            os.chown(tmp_path, 64055, 64055)
            image.symlink_to(secret[0])
            os.chown(image, 64055, 64055, follow_symlinks=False)
    async with asyncio.timeout(HANGS_SECONDS):
        assert len(await tried(image)) > 7
    assert not secret[1].any()


async def test_a_file_that_is_exchanged_meanwhile_is_not_opened(image: Path, tmp_path: Path) -> None:
    """The checked file stays open: a link that is created later is not followed."""
    needs_root()
    other = tmp_path / "other"
    other.write_bytes(image.read_bytes())
    opens = Opens(other)
    os.chown(tmp_path, 64055, 64055)
    link = tmp_path / "link"
    link.symlink_to(other)
    os.chown(link, 64055, 64055, follow_symlinks=False)
    over = threading.Event()

    def exchange() -> None:
        aside = tmp_path / "aside"
        while not over.is_set():
            image.rename(aside)
            link.rename(image)
            image.rename(link)
            aside.rename(image)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(20):
            with suppress(QemuImgFailed):
                await qcow2.create_snapshot(str(image), "vps-2")
            with suppress(QemuImgFailed):
                await qcow2.delete_snapshot(str(image), "vps-2")
    finally:
        over.set()
        thread.join()
    assert not opens.any()
    opens.close()


# --- child processes ---

FEW = Limits(memory_bytes=1 << 30, cpu_seconds=1, file_bytes=1 << 20)


async def test_a_child_that_computes_for_ever_is_ended() -> None:
    async with asyncio.timeout(HANGS_SECONDS):
        ended = await child.run(sys.executable, "-c", "while True: pass", limits=FEW)
    assert ended.code < 0
    assert not QemuImgFailed((), ended.code, "").killed  # another attempt would fail in the same way


async def test_a_child_that_takes_much_memory_is_refused_it() -> None:
    ended = await child.run(sys.executable, "-c", "bytearray(2 << 30)", limits=FEW)
    assert "MemoryError" in ended.err


async def test_a_child_that_writes_much_is_ended(tmp_path: Path) -> None:
    script = f"import os; f = open({str(tmp_path / 'file')!r}, 'wb'); f.seek(1 << 20); f.write(b'x'); f.flush()"
    ended = await child.run(sys.executable, "-c", script, limits=FEW)
    assert ended.code != 0
    assert (tmp_path / "file").stat().st_size == 0


async def test_a_child_that_complains_much_is_not_ended() -> None:
    script = "import sys\nfor _ in range(500): sys.stderr.write('x' * 100000)"
    ended = await child.run(sys.executable, "-c", script, limits=replace(FEW, cpu_seconds=60))
    assert ended.code == 0
    assert 0 < len(ended.err) < 1 << 20


async def test_a_repair_that_reports_a_million_clusters_comes_to_its_end(tmp_path: Path) -> None:
    """A killed change leaves as many leaks as the disk has clusters, and a repair prints a line for each."""
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k,preallocation=metadata", str(image), "3200M")
    qemu_img("snapshot", "-c", "gone", str(image))
    with image.open("r+b") as file:
        file.seek(SNAPSHOTS)
        file.write(bytes(4))
    assert (await qcow2.damage(str(image))).leaks
    await qcow2.repair(str(image))
    left = await qcow2.damage(str(image))
    assert not left.leaks
    assert not left.corruptions


async def test_a_child_with_too_much_output_is_killed() -> None:
    script = "import sys\nwhile True: sys.stdout.write('x' * 100000)"
    limits = Limits(memory_bytes=1 << 30, cpu_seconds=60, file_bytes=0)
    async with asyncio.timeout(HANGS_SECONDS):
        ended = await child.run(sys.executable, "-c", script, limits=limits)
    assert ended.code < 0
    assert len(ended.out) < 1 << 20


async def test_a_child_has_few_rights_and_leaves_no_core_dump() -> None:
    needs_root()
    ended = await child.run("cat", "/proc/self/status", "/proc/self/limits", limits=FEW)
    status = dict(line.split(":", 1) for line in ended.out.splitlines() if ":" in line)
    dac_override = "0000000000000002"
    assert {status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd")} == {dac_override}
    assert {status[name].strip() for name in ("CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"].strip() == "1"
    (core,) = [line for line in ended.out.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4:6] == ["0", "0"]


UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "vps-snapshots-worker.service"
CHANGES = """
import asyncio, sys
from drivers import qcow2
path = sys.argv[1]
asyncio.run(qcow2.create_snapshot(path, "vps-2"))
asyncio.run(qcow2.apply_snapshot(path, "1"))
asyncio.run(qcow2.delete_snapshot(path, "vps-2"))
assert not asyncio.run(qcow2.damage(path)).any
"""


@pytest.mark.parametrize("without", [None, "+setpcap"])  # as with the unit of an older release that was not reloaded
def test_the_rights_of_the_workers_unit_are_enough(image: Path, without: str | None) -> None:
    needs_root()
    (line,) = [line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet=")]
    rights = [word.lower().replace("cap_", "+") for word in line.partition("=")[2].split()]
    rights = [right for right in rights if right != without]
    image.chmod(0o600)
    os.chown(image, 64055, 64055)  # libvirt gives the disks of a running server to QEMU's user
    command = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{','.join(rights)}", "--inh-caps=-all", "--"]
    command += [sys.executable, "-c", CHANGES, str(image)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=UNIT.parents[2])
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_child_inherits_the_nodes_lock_and_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "other").touch()
    with (tmp_path / "lock").open() as lock, (tmp_path / "other").open() as other:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in (lock, other):  # libvirt opens some only briefly: one that is closed meanwhile would fail the child
            os.set_inheritable(file.fileno(), True)
        ended = await child.run("ls", "-l", "/proc/self/fd", limits=FEW)
    assert str(tmp_path / "lock") in ended.out
    assert str(tmp_path / "other") not in ended.out


@pytest.mark.parametrize("options", [["cluster_size=64k"], ["cluster_size=512"], ["cluster_size=2M,refcount_bits=64"]])
async def test_a_large_image_that_is_mapped_whole_stays_within_the_limits(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "large"
    size = "4G" if options == ["cluster_size=512"] else "500G"
    if options == ["cluster_size=64k"]:
        options = [f"{options[0]},preallocation=metadata"]
    qemu_img("create", "-q", "-f", "qcow2", "-o", *options, str(path), size)
    for tag in (TAG, "vps-2"):
        await qcow2.create_snapshot(str(path), tag)
    assert not (await qcow2.damage(str(path))).any
    assert await measured(path) >= 0
    await qcow2.apply_snapshot(str(path), "1")
    await qcow2.delete_snapshot(str(path), TAG)
    await qcow2.repair(str(path))
    assert (await qcow2.image(str(path))).tags == ("vps-2",)
