"""qemu-img: what is done to qcow2 images that no QEMU holds open, and what can be read of those that one does.

Always `-f qcow2`, never a probe: a guest can write any header into a raw disk. Never a shell. A child dies with this
process (`setpriv --pdeathsig`), and is killed and waited for when its call is cancelled: nobody writes to a customer's
disk on behalf of a job that is not there any more.
"""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class Image:
    """A qcow2 image as its header tells."""

    virtual_bytes: int
    cluster_bytes: int
    tags: tuple[str, ...]
    backing_file: str | None
    backing_format: str | None
    encrypted: bool
    data_file: str | None
    corrupt: bool  # QEMU has marked it so; it refuses to write to it


async def image(path: str) -> Image:
    """What the image's header says; works while a VM runs on it."""
    found = await _json("info", "-U", "-f", "qcow2", "--output=json", path)
    special: Mapping[str, Any] = found.get("format-specific", {}).get("data", {})
    return Image(
        virtual_bytes=found["virtual-size"],
        cluster_bytes=found["cluster-size"],
        tags=tuple(snapshot["name"] for snapshot in found.get("snapshots", [])),
        backing_file=found.get("full-backing-filename") or found.get("backing-filename"),
        backing_format=found.get("backing-filename-format"),
        encrypted=bool(found.get("encrypted")),
        data_file=special.get("data-file"),
        corrupt=bool(special.get("corrupt")),
    )


async def create_snapshot(path: str, tag: str) -> None:
    """qcow2 accepts one tag twice: see first that it is free."""
    await _snapshot("-c", tag, path)


async def apply_snapshot(path: str, tag: str) -> None:
    await _snapshot("-a", tag, path)


async def delete_snapshot(path: str, tag: str) -> None:
    """A tag that is not there is fine: killed after its work was done, the call is made again."""
    try:
        await _snapshot("-d", tag, path)
    except QemuImgFailed as error:
        if not error.not_found:
            raise


async def is_sound(path: str) -> bool:
    """Neither leaks nor corruptions, nor QEMU's mark of one: `check` alone calls a marked image clean."""
    return await _check(path) == CLEAN and not (await image(path)).corrupt


async def repair(path: str) -> None:
    """Mend leaks and corruptions, and take QEMU's mark away. What can't be mended stays: look with `is_sound`."""
    await _check(path, "-r", "all")


async def snapshot_bytes(path: str, tag: str, like: Image) -> int:
    """Bytes of guest data that the snapshot holds; works while a VM runs on the image (40 ms at 100 GB).

    What a copy of it would need, less what an empty image of that size needs.
    """
    options = ("-O", "qcow2", "-o", f"cluster_size={like.cluster_bytes}", "--output=json")
    held = await _json("measure", "-U", "-f", "qcow2", "-l", f"snapshot.name={tag}", *options, path)
    empty = await _json("measure", "--size", str(like.virtual_bytes), *options)
    return max(0, int(held["required"]) - int(empty["required"]))


async def _snapshot(action: str, tag: str, path: str) -> None:
    # `qemu-img snapshot` has no -f: the image's format is named by options
    await _run("snapshot", "--image-opts", action, tag, _options(path))


def _options(path: str) -> str:
    return f"driver=qcow2,file.driver=file,file.filename={path.replace(',', ',,')}"


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


async def _run_for_code(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and error output; waits for a lock that is about to be given back.

    A child that someone killed is started again, unless it was changing snapshots: what it has done of that is the
    caller's to find out.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    tries_left = KILLED_TRIES
    while True:
        code, out, err = await _child(*arguments)
        if code < 0 and arguments[0] != "snapshot" and (tries_left := tries_left - 1):
            continue
        if code == 0 or not QemuImgFailed(arguments, code, err).locked or time.monotonic() > deadline:
            return code, out, err
        await asyncio.sleep(LOCK_RETRY_SECONDS)


async def _child(*arguments: str) -> tuple[int, str, str]:
    # Not by the event loop: uvloop forks, and a fork of a process whose libvirt threads hold locks was seen to hang
    # for ever before it became qemu-img. subprocess starts a child by vfork, which runs nothing of ours in it. And from
    # this thread, which lives as long as the process: the kernel takes its end for our death.
    process = subprocess.Popen(  # noqa: ASYNC220 - no longer than the kernel needs
        ("setpriv", "--pdeathsig", "KILL", "--", "qemu-img", *arguments),
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
