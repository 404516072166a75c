"""qemu-img: changes qcow2 images that no QEMU has open, and reads images whether one has them open or not.

The image is opened and its header checked before qemu-img sees it (see `held_image`), always as qcow2 without probing,
because a guest can write any header into a raw disk. Children run without a shell and with limits (see `child`).
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from drivers import child
from drivers.child import Limits
from drivers.held_image import HeldImage, NotHeld
from drivers.qcow2_image import Damage, Image

LOCK_SECONDS = 10.0  # limit for a QEMU that has just exited, or a killed qemu-img, to release its locks
LOCK_RETRY_SECONDS = 0.1
KILLED_TRIES = 3
CLEAN, CORRUPT, LEAKY = 0, 2, 3  # exit codes of `qemu-img check` that are results, not failures
READ_CPU_SECONDS, CHANGE_CPU_SECONDS = 60, 600  # a fully mapped image of 500 GB takes 0.4 and 0.8
MEMORY_BYTES = (
    2 << 30
)  # address space: QEMU starts up to 64 threads of 8 MiB. It uses 90 MB for a fully mapped image of 500 GB
MAX_MEMORY_BYTES = 4 << 30
# growth of a file by one change, or a share of the file: a file written by qemu-img itself grows by 1/64
GROWTH_BYTES = 1 << 30
GROWTH_PART = 32
READ_FILE_BYTES = 64 << 10  # reads write nothing; not 0, because a wrapper script around qemu-img may write a log


class QemuImgFailed(Exception):
    """qemu-img failed. The text is its error output, for the log only: it contains host paths."""

    def __init__(self, arguments: tuple[str, ...], code: int, stderr: str) -> None:
        super().__init__(f"qemu-img {' '.join(arguments)}: exit code {code}: {stderr.strip()}")
        self.code = code
        self.stderr = stderr

    @property
    def killed(self) -> bool:
        """Whether it was killed from outside, by a person or because the host is out of memory, so that a retry may
        succeed. False if it exceeded a limit or crashed."""
        return self.code in child.FROM_OUTSIDE

    @property
    def locked(self) -> bool:
        return "Failed to get" in self.stderr and "lock" in self.stderr

    @property
    def not_found(self) -> bool:
        return "snapshot not found" in self.stderr.lower() or "could not find snapshot" in self.stderr.lower()


class ImageRefused(QemuImgFailed):
    """The image was not given to qemu-img. The reason follows the name of the disk and may be shown to the customer."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__((path,), 1, reason)
        self.reason = reason


async def image(path: str) -> Image:
    """Read the image's header. Works while a VM uses the image. Raises QemuImgFailed, as do all functions here."""
    async with _held(path, reads_snapshots=True) as found:
        return Image.read(await _json("info", "-U", "--output=json", found.name, of=found), path=path)


async def can_be_opened_with_backing(path: str) -> bool:
    """Whether QEMU can open the image together with its backing files, as for a change of its snapshots. True without
    a look if it has none: `image` has QEMU open the image itself.

    Read-only; works while a VM uses the image. Raises QemuImgFailed if qemu-img was killed.
    """
    async with _held(path, with_backing=True) as found:
        if len(found.descriptors) == 1:
            return True
        arguments = ("snapshot", "-U", "-l", found.name)
        code, _out, err = await _run_for_code(*arguments, of=found)
        failed = QemuImgFailed(arguments, code, err)
    if failed.killed:
        raise failed
    return code == 0


async def create_snapshot(path: str, tag: str) -> None:
    """Create a snapshot. qcow2 allows duplicate names: check first that the tag is free."""
    await _snapshot("-c", tag, path)


async def apply_snapshot(path: str, snapshot_id: str) -> None:
    """Revert to a snapshot by its ID. QEMU searches IDs before names, and another snapshot may have our tag as its
    ID."""
    await _snapshot("-a", snapshot_id, path)


async def delete_snapshot(path: str, tag: str) -> None:
    """Delete all snapshots of this name. Idempotent."""
    for _ in range((await image(path)).tags.count(tag)):
        try:
            await _snapshot("-d", tag, path)  # -d searches names only, and deletes the first match
        except QemuImgFailed as error:
            if not error.not_found:
                raise


async def remove_bitmaps(path: str) -> None:
    """Remove all dirty bitmaps. Idempotent."""
    for bitmap in (await image(path)).bitmaps:
        async with _held(path) as found:
            await _run("bitmap", "--remove", "--", found.name, bitmap.name, of=found, changes=True)


async def enlarge(path: str, virtual_bytes: int) -> None:
    """Enlarge the image to this size; never shrinks it."""
    if (await image(path)).virtual_bytes < virtual_bytes:
        async with _held(path, with_backing=True) as found:
            await _run("resize", "-q", found.name, str(virtual_bytes), of=found, changes=True)


async def damage(path: str) -> Damage:
    """Check the image. Read-only.

    QEMU loads neither snapshots nor bitmaps for a check; our own reader looks at the snapshots.
    """
    async with _held(path, reads_snapshots=True) as found:
        code = await _check(found)
    leaks = code == LEAKY
    bitmaps = (await image(path)).bitmaps if leaks else ()
    return Damage(corruptions=found.corrupt or code == CORRUPT, leaks=leaks, dirty=found.dirty, bitmaps=bitmaps)


async def repair(path: str) -> None:
    """Repair leaks and corruptions, and clear QEMU's corrupt bit. Check the result with `damage`.

    Dirty bitmaps are marked as in use, which invalidates them.
    """
    await _settle_header(path)
    if valid := [bitmap.name for bitmap in (await image(path)).bitmaps if not bitmap.in_use]:
        raise QemuImgFailed(("check", "-r", "all", path), 1, f"bitmap {valid[0]} is not marked as in use")
    async with _held(path) as found:
        await _check(found, "-r", "all")


async def _settle_header(path: str) -> None:
    """Make QEMU open the image for writing once, with its snapshots, and kill it before it closes the image.

    `qemu-img check -r` opens an image without loading its snapshots. If opening it then updates the header (it marks a
    valid bitmap as in use, or drops bitmaps or a feature of another program), the header is written without snapshots,
    and their clusters are freed: all snapshots are lost (QEMU 7.2, every time). A normal open makes the same update
    with the snapshots. It allocates no cluster, so it is safe on a damaged image, unlike removing a bitmap. If the
    image cannot be opened, nothing is written.
    """
    async with _held(path) as found:
        command = ("-c", f"sigraise {signal.SIGKILL:d}", found.name)
        await _run_for_code(*command, of=found, changes=True, program="qemu-io")


async def snapshot_bytes(path: str, tag: str, like: Image) -> int:
    """Bytes of guest data in the snapshot. Works while a VM uses the image; takes 40 ms for 100 GB.

    From `qemu-img measure`: the size of a copy of the snapshot, minus that of an empty image. `like`: the image's
    header. Raises NoSuchSnapshot.
    """
    options = ("-O", "qcow2", "-o", f"cluster_size={like.cluster_bytes}", "--output=json")
    snapshot = f"snapshot.id={_escaped(like.only(tag).id)},snapshot.name={_escaped(tag)}"
    async with _held(path, with_backing=True) as found:
        held = await _json("measure", "-U", "-l", snapshot, *options, found.name, of=found)
    empty = await _json("measure", "--size", str(like.virtual_bytes), *options)
    return max(0, int(held["required"]) - int(empty["required"]))


async def _snapshot(action: str, tag: str, path: str) -> None:
    async with _held(path, reads_snapshots=True) as found:
        await _run("snapshot", action, tag, found.name, of=found, changes=True)


def _escaped(value: str) -> str:
    """Escape a value for QEMU's option syntax."""
    return value.replace(",", ",,")


async def _check(found: HeldImage, *options: str) -> int:
    arguments = ("check", "-q", *options, found.name)
    code, _out, err = await _run_for_code(*arguments, of=found, changes=bool(options))
    if code not in {CLEAN, CORRUPT, LEAKY}:
        raise QemuImgFailed(("check", found.path), code, err)
    return code


@asynccontextmanager
async def _held(path: str, *, with_backing: bool = False, reads_snapshots: bool = False) -> AsyncIterator[HeldImage]:
    """The image, open for the duration of the block. Raises ImageRefused."""
    opening = asyncio.ensure_future(
        asyncio.to_thread(HeldImage.open, path, with_backing=with_backing, reads_snapshots=reads_snapshots)
    )
    try:
        found = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise
    except NotHeld as error:
        raise ImageRefused(path, str(error)) from error
    try:
        yield found
    finally:
        found.close()


def _close(opened: asyncio.Future[HeldImage]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()


async def _json(*arguments: str, of: HeldImage | None = None) -> Any:
    return json.loads(await _run(*arguments, of=of))


async def _run(*arguments: str, of: HeldImage | None = None, changes: bool = False) -> str:
    code, out, err = await _run_for_code(*arguments, of=of, changes=changes)
    if code != 0:
        raise QemuImgFailed(tuple(of.path if of and word == of.name else word for word in arguments), code, err)
    return out


def _may_be_run_again(arguments: tuple[str, ...]) -> bool:
    return arguments[0] in {"info", "measure", "check"} or (arguments[0] == "snapshot" and "-l" in arguments)


async def _run_for_code(
    *arguments: str, of: HeldImage | None = None, changes: bool = False, program: str = "qemu-img"
) -> tuple[int, str, str]:
    """Run a command; returns exit code, stdout and stderr. Retries while the image is locked, up to LOCK_SECONDS.

    If the child is killed, it is run again, but only if it does not change the image: after an interrupted change the
    caller must repair the image first.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    tries_left = KILLED_TRIES
    limits = _limits(of, changes=changes or arguments[0] == "check")
    while True:
        ended = await child.run(program, *arguments, limits=limits, files=of.descriptors if of else ())
        failed = QemuImgFailed(arguments, ended.code, ended.err)
        if failed.killed and _may_be_run_again(arguments) and (tries_left := tries_left - 1):
            continue
        if ended.code == 0 or not failed.locked or time.monotonic() > deadline:
            return ended.code, ended.out, ended.err
        await asyncio.sleep(LOCK_RETRY_SECONDS)


def _limits(of: HeldImage | None, *, changes: bool) -> Limits:
    """The limits of a command. `changes`: it changes the image or checks all of it."""
    if of is None or not changes:
        return Limits(memory_bytes=MEMORY_BYTES, cpu_seconds=READ_CPU_SECONDS, file_bytes=READ_FILE_BYTES)
    # a check counts the references to every cluster of the file in an array, which it copies to enlarge it
    counted = 2 * of.file_bytes // of.cluster_bytes * of.refcount_bits // 8
    return Limits(
        memory_bytes=min(MEMORY_BYTES + counted, MAX_MEMORY_BYTES),
        cpu_seconds=CHANGE_CPU_SECONDS,
        file_bytes=of.file_bytes + max(GROWTH_BYTES, of.file_bytes // GROWTH_PART),
    )
