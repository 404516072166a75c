"""qemu-img: changes qcow2 images that no QEMU has open, and reads images whether one has them open or not.

Always with `-f qcow2`, never probing: a guest can write any header into a raw disk. Never through a shell. A child dies
with this process (`setpriv --pdeathsig`), and is killed and waited for if its call is cancelled: no child may write to
a customer's disk after its job has ended.
"""

import asyncio
import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from drivers.qcow2_image import Damage, Image

LOCK_SECONDS = 10.0  # limit for a QEMU that has just exited, or a killed qemu-img, to release its locks
LOCK_RETRY_SECONDS = 0.1
KILLED_TRIES = 3
CHILDREN = 64  # at the same time
_WAITING = ThreadPoolExecutor(CHILDREN, thread_name_prefix="qemu-img")  # one thread waits for each child
CLEAN, CORRUPT, LEAKY = 0, 2, 3  # exit codes of `qemu-img check` that are results, not failures


class QemuImgFailed(Exception):
    """qemu-img failed. The text is its error output, for the log only: it contains host paths."""

    def __init__(self, arguments: tuple[str, ...], code: int, stderr: str) -> None:
        super().__init__(f"qemu-img {' '.join(arguments)}: exit code {code}: {stderr.strip()}")
        self.code = code
        self.stderr = stderr

    @property
    def killed(self) -> bool:
        return self.code < 0

    @property
    def locked(self) -> bool:
        return "Failed to get" in self.stderr and "lock" in self.stderr

    @property
    def not_found(self) -> bool:
        return "snapshot not found" in self.stderr.lower() or "could not find snapshot" in self.stderr.lower()


async def image(path: str) -> Image:
    """Read the image's header. Works while a VM uses the image. Raises QemuImgFailed, as do all functions here."""
    return Image.read(await _json("info", "-U", "-f", "qcow2", "--output=json", path))


async def can_be_opened(path: str) -> bool:
    """Whether QEMU can open the image and its backing files, as for a change of its snapshots.

    Read-only; works while a VM uses the image. Raises QemuImgFailed if qemu-img was killed.
    """
    arguments = ("snapshot", "-U", "--image-opts", "-l", _options(path))
    code, _out, err = await _run_for_code(*arguments)
    if code < 0:
        raise QemuImgFailed(arguments, code, err)
    return code == 0


async def create_snapshot(path: str, tag: str) -> None:
    """Create a snapshot. qcow2 allows duplicate names: check first that the tag is free."""
    await _snapshot("-c", tag, path)


async def apply_snapshot(path: str, snapshot_id: str) -> None:
    """Revert to a snapshot by its id. QEMU searches ids before names, and another snapshot may have our tag as its
    id."""
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
        await _run("bitmap", "--remove", "-f", "qcow2", "--", path, bitmap.name)


async def enlarge(path: str, virtual_bytes: int) -> None:
    """Enlarge the image to this size; never shrinks it."""
    if (await image(path)).virtual_bytes < virtual_bytes:
        await _run("resize", "-q", "-f", "qcow2", path, str(virtual_bytes))


async def damage(path: str) -> Damage:
    """Check the image. Read-only."""
    code, found = await asyncio.gather(_check(path), image(path))
    return Damage(
        corruptions=found.corrupt or code == CORRUPT,
        leaks=code == LEAKY,
        dirty=found.dirty,
        snapshots=found.snapshots,
        bitmaps=found.bitmaps,
    )


async def repair(path: str) -> None:
    """Repair leaks and corruptions, and clear QEMU's corrupt bit. Check the result with `damage`.

    Dirty bitmaps are marked as in use, which invalidates them.
    """
    await _settle_header(path)
    if valid := [bitmap.name for bitmap in (await image(path)).bitmaps if not bitmap.in_use]:
        raise QemuImgFailed(("check", "-r", "all", path), 1, f"bitmap {valid[0]} is not marked as in use")
    await _check(path, "-r", "all")


async def _settle_header(path: str) -> None:
    """Make QEMU open the image for writing once, with its snapshots, and kill it before it closes the image.

    `qemu-img check -r` opens an image without loading its snapshots. If opening it then updates the header (it marks a
    valid bitmap as in use, or drops bitmaps or a feature of another program), the header is written without snapshots,
    and their clusters are freed: all snapshots are lost (QEMU 7.2, every time). A normal open makes the same update
    with the snapshots. It allocates no cluster, so it is safe on a damaged image, unlike removing a bitmap. If the
    image cannot be opened, nothing is written.
    """
    await _run_for_code("-f", "qcow2", "-c", f"sigraise {signal.SIGKILL:d}", path, program="qemu-io")


async def snapshot_bytes(path: str, tag: str, like: Image) -> int:
    """Bytes of guest data in the snapshot. Works while a VM uses the image; takes 40 ms for 100 GB.

    From `qemu-img measure`: the size of a copy of the snapshot, minus that of an empty image. `like`: the image's
    header. Raises NoSuchSnapshot.
    """
    options = ("-O", "qcow2", "-o", f"cluster_size={like.cluster_bytes}", "--output=json")
    snapshot = f"snapshot.id={_escaped(like.only(tag).id)},snapshot.name={_escaped(tag)}"
    held = await _json("measure", "-U", "-f", "qcow2", "-l", snapshot, *options, path)
    empty = await _json("measure", "--size", str(like.virtual_bytes), *options)
    return max(0, int(held["required"]) - int(empty["required"]))


async def _snapshot(action: str, tag: str, path: str) -> None:
    # `qemu-img snapshot` has no -f, so the format is in the image options
    await _run("snapshot", "--image-opts", action, tag, _options(path))


def _options(path: str) -> str:
    return f"driver=qcow2,file.driver=file,file.filename={_escaped(path)}"


def _escaped(value: str) -> str:
    """Escape a value for QEMU's option syntax."""
    return value.replace(",", ",,")


async def _check(path: str, *options: str) -> int:
    code, _out, err = await _run_for_code("check", "-q", "-f", "qcow2", *options, path)
    if code not in {CLEAN, CORRUPT, LEAKY}:
        raise QemuImgFailed(("check", path), code, err)
    return code


async def _json(*arguments: str) -> Any:
    return json.loads(await _run(*arguments))


async def _run(*arguments: str) -> str:
    code, out, err = await _run_for_code(*arguments)
    if code != 0:
        raise QemuImgFailed(arguments, code, err)
    return out


def _may_be_run_again(arguments: tuple[str, ...]) -> bool:
    return arguments[0] in {"info", "measure", "check"} or (arguments[0] == "snapshot" and "-l" in arguments)


async def _run_for_code(*arguments: str, program: str = "qemu-img") -> tuple[int, str, str]:
    """Run a command; returns exit code, stdout and stderr. Retries while the image is locked, up to LOCK_SECONDS.

    If the child is killed, it is run again, but only if it does not change the image: after an interrupted change the
    caller must repair the image first.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    tries_left = KILLED_TRIES
    while True:
        code, out, err = await _child(program, *arguments)
        if code < 0 and _may_be_run_again(arguments) and (tries_left := tries_left - 1):
            continue
        if code == 0 or not QemuImgFailed(arguments, code, err).locked or time.monotonic() > deadline:
            return code, out, err
        await asyncio.sleep(LOCK_RETRY_SECONDS)


async def _child(program: str, *arguments: str) -> tuple[int, str, str]:
    # Not through the event loop: uvloop forks, and a forked child was seen to hang before exec, because libvirt's
    # threads held locks. subprocess uses vfork, which runs none of our code in the child. And from the main thread:
    # pdeathsig kills the child when the thread that started it ends.
    process = subprocess.Popen(  # noqa: ASYNC220 - vfork and exec take no time
        ("setpriv", "--pdeathsig", "KILL", "--", program, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        close_fds=False,  # it inherits the node's lock, so the next worker waits until it has exited
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
    )
    ended = asyncio.get_running_loop().run_in_executor(_WAITING, process.communicate)
    try:
        out, err = await asyncio.shield(ended)
    except asyncio.CancelledError:
        process.kill()
        while not ended.done():  # it must not write to the disk after the cancellation
            with suppress(asyncio.CancelledError):
                await asyncio.wait({ended})
        raise
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
