"""qemu-img: what is done to qcow2 images that no QEMU holds open, and what can be read of those that one does.

Always `-f qcow2`, never a probe: a guest can write any header into a raw disk. Never a shell. A child dies with this
process (`setpriv --pdeathsig`), and is killed and waited for when its call is cancelled: nobody writes to a customer's
disk on behalf of a job that is not there any more.
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

LOCK_SECONDS = 10.0  # a QEMU that has just ended, or a killed qemu-img, gives its locks back within this
LOCK_RETRY_SECONDS = 0.1
KILLED_TRIES = 3
CHILDREN = 64  # that are waited for at a time
_WAITING = ThreadPoolExecutor(CHILDREN, thread_name_prefix="qemu-img")  # one waits for each child
CLEAN, CORRUPT, LEAKY = 0, 2, 3  # the exit codes of `qemu-img check` that are answers


class QemuImgFailed(Exception):
    """qemu-img ended with an error; the text is its own, for the log, and names host paths."""

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
    """What the image's header says; works while a VM runs on it."""
    return Image.read(await _json("info", "-U", "-f", "qcow2", "--output=json", path))


async def can_be_opened(path: str) -> bool:
    """Whether QEMU opens the image and all that lies below it, as it does to change a snapshot. Changes nothing, and
    works while a VM runs on it. Raises QemuImgFailed where qemu-img was killed: nobody knows then."""
    arguments = ("snapshot", "-U", "--image-opts", "-l", _options(path))
    code, _out, err = await _run_for_code(*arguments)
    if code < 0:
        raise QemuImgFailed(arguments, code, err)
    return code == 0


async def create_snapshot(path: str, tag: str) -> None:
    """qcow2 accepts one tag twice: see first that it is free."""
    await _snapshot("-c", tag, path)


async def apply_snapshot(path: str, snapshot_id: str) -> None:
    """By the id that the image gave it: QEMU looks for an id first and for a name only then, and another's snapshot may
    have our tag as its id."""
    await _snapshot("-a", snapshot_id, path)


async def delete_snapshot(path: str, tag: str) -> None:
    """All snapshots of this name. None is fine: killed after its work was done, the call is made again."""
    for _ in range((await image(path)).tags.count(tag)):
        try:
            await _snapshot("-d", tag, path)  # by name alone: the first that has it
        except QemuImgFailed as error:
            if not error.not_found:
                raise


async def remove_bitmaps(path: str) -> None:
    """All dirty bitmaps. None is fine."""
    for bitmap in (await image(path)).bitmaps:
        await _run("bitmap", "--remove", "-f", "qcow2", "--", path, bitmap.name)


async def enlarge(path: str, virtual_bytes: int) -> None:
    """An image that is as large or larger is left alone."""
    if (await image(path)).virtual_bytes < virtual_bytes:
        await _run("resize", "-q", "-f", "qcow2", path, str(virtual_bytes))


async def damage(path: str) -> Damage:
    code, found = await asyncio.gather(_check(path), image(path))
    return Damage(
        corruptions=found.corrupt or code == CORRUPT,
        leaks=code == LEAKY,
        dirty=found.dirty,
        snapshots=found.snapshots,
        bitmaps=found.bitmaps,
    )


async def repair(path: str) -> None:
    """Mend leaks and corruptions, and take QEMU's mark away. What can't be mended stays: look with `damage`.

    Dirty bitmaps are worthless afterwards, and marked so.
    """
    await _settle_header(path)
    if valid := await _valid_bitmaps(path):
        raise QemuImgFailed(("check", "-r", "all", path), 1, f"bitmap {valid[0]} is not marked as in use")
    await _check(path, "-r", "all")


async def _settle_header(path: str) -> None:
    """Have QEMU open the image for writing once, with its snapshots, and die before it closes it.

    `qemu-img check -r` opens an image without its snapshots. If that opening has something to write into the header
    (a valid bitmap to be marked as in use; bitmaps or a feature of another program to be dropped), the header says
    that there are no snapshots, and their clusters are freed: all are lost (QEMU 7.2, each time). Any other opening
    writes the same with the snapshots. It takes no cluster, so it is safe on a damaged image; removing a bitmap is
    not. An image that can't be opened has nothing written.
    """
    await _run_for_code("-f", "qcow2", "-c", f"sigraise {signal.SIGKILL:d}", path, program="qemu-io")


async def _valid_bitmaps(path: str) -> list[str]:
    return [bitmap.name for bitmap in (await image(path)).bitmaps if not bitmap.in_use]


async def snapshot_bytes(path: str, tag: str, like: Image) -> int:
    """Bytes of guest data that the snapshot holds; works while a VM runs on the image (40 ms at 100 GB).

    What a copy of it would need, less what an empty image of that size needs. Raises NoSuchSnapshot.
    """
    options = ("-O", "qcow2", "-o", f"cluster_size={like.cluster_bytes}", "--output=json")
    snapshot = f"snapshot.id={_escaped(like.only(tag).id)},snapshot.name={_escaped(tag)}"
    held = await _json("measure", "-U", "-f", "qcow2", "-l", snapshot, *options, path)
    empty = await _json("measure", "--size", str(like.virtual_bytes), *options)
    return max(0, int(held["required"]) - int(empty["required"]))


async def _snapshot(action: str, tag: str, path: str) -> None:
    # `qemu-img snapshot` has no -f: the image's format is named by options
    await _run("snapshot", "--image-opts", action, tag, _options(path))


def _options(path: str) -> str:
    return f"driver=qcow2,file.driver=file,file.filename={_escaped(path)}"


def _escaped(value: str) -> str:
    """As a value among QEMU's options."""
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
    """Exit code, output and error output; waits for a lock that is about to be given back.

    A child that someone killed is started again, unless it was changing the image: what it has done of that is the
    caller's to find out, and to repair first.
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
    # Not by the event loop: uvloop forks, and a fork of a process whose libvirt threads hold locks was seen to hang
    # for ever before it became qemu-img. subprocess starts a child by vfork, which runs nothing of ours in it. And from
    # this thread, which lives as long as the process: the kernel takes its end for our death.
    process = subprocess.Popen(  # noqa: ASYNC220 - no longer than the kernel needs
        ("setpriv", "--pdeathsig", "KILL", "--", program, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        close_fds=False,  # it inherits the node's lock: our successor waits for its end
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
    )
    ended = asyncio.get_running_loop().run_in_executor(_WAITING, process.communicate)
    try:
        out, err = await asyncio.shield(ended)
    except asyncio.CancelledError:
        process.kill()
        while not ended.done():  # its write to the disk is over before the cancellation goes on
            with suppress(asyncio.CancelledError):
                await asyncio.wait({ended})
        raise
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
