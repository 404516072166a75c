"""Runs qemu-img and qemu-io as child processes with limits.

Images come from customers, and a damaged or forged one can make QEMU's tools use any amount of memory and time. So a
child has limits on memory, CPU time, file size and output, writes no core dump, gains no privileges and keeps only the
capability to open files of any owner. It dies with this process (`setpriv --pdeathsig`), and is
killed and awaited if its call is cancelled, because no child may write to a customer's disk after its job has ended.
"""

import asyncio
import os
import resource
import selectors
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHILDREN = 64  # at the same time
# Lower priority than the worker and than guests without their own control group, for the CPU and, with the scheduler
# bfq, for the disk: the kernel derives the I/O priority (best-effort 6). The unit's weights cover the other guests. Not
# 19, and not the idle class: while other guests keep the CPU or the disk busy, a guest that is stopped for the child
# would wait without limit.
NICE = 10
MAX_OUTPUT_BYTES = 32 << 20  # on stdout: 4096 snapshots with long names, as JSON
KEPT_ERROR_BYTES = 64 << 10  # limit for stderr, because a repair writes one line for each cluster: 80 MB for 100 GB
_WAITING = ThreadPoolExecutor(CHILDREN, thread_name_prefix="qemu-img")  # one thread waits for each child
_CHUNK_BYTES = 1 << 16
_KILL_AFTER_SECONDS = 5  # further CPU time of a child that ignores SIGXCPU
_CAPABILITIES = "-all,+dac_override"  # libvirt gives disks to QEMU's user while their servers run
_SETPCAP = 1 << 8
_KINDS = {
    "as": resource.RLIMIT_AS,
    "cpu": resource.RLIMIT_CPU,
    "fsize": resource.RLIMIT_FSIZE,
    "core": resource.RLIMIT_CORE,
}
FROM_OUTSIDE = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT})  # exit codes


@dataclass(frozen=True, kw_only=True)
class Limits:
    memory_bytes: int  # limit of the address space; one arena for all threads, because each further one reserves 64 MiB
    cpu_seconds: int
    file_bytes: int  # the largest offset that may be written


@dataclass(frozen=True, kw_only=True)
class Ended:
    code: int  # negative: the signal that ended it
    out: str
    err: str  # the start of stderr


async def run(*command: str, limits: Limits, files: Sequence[int] = ()) -> Ended:
    """Run a command to its end. `files`: descriptors that it inherits."""
    # Not through the event loop, whose fork may find a lock of libvirt's threads held: subprocess uses vfork, which
    # runs none of our code in the child. And from the main thread, because pdeathsig kills the child when the thread
    # that started it ends.
    process = subprocess.Popen(  # noqa: ASYNC220 - vfork and exec take no time
        (*_limited(limits), *_unprivileged(), *command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(*files, *_locks()),
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
    )
    with suppress(ProcessLookupError):  # it may have ended already
        os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
    ended = asyncio.get_running_loop().run_in_executor(_WAITING, _read_all, process)
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        process.kill()
        while not ended.done():  # it must not write to the disk after the cancellation
            with suppress(asyncio.CancelledError):
                await asyncio.wait({ended})
        raise


def _limited(limits: Limits) -> list[str]:
    wanted = {
        "as": (limits.memory_bytes, limits.memory_bytes),
        "cpu": (limits.cpu_seconds, limits.cpu_seconds + _KILL_AFTER_SECONDS),
        "fsize": (limits.file_bytes, limits.file_bytes),
        "core": (0, 0),
    }
    options = [
        f"--{name}={_at_most(soft, _KINDS[name])}:{_at_most(hard, _KINDS[name])}"
        for name, (soft, hard) in wanted.items()
    ]
    return ["prlimit", *options, "--"]


def _at_most(limit: int, kind: int) -> int:
    """The limit, but at most this process's own limit, which only root may exceed."""
    own = resource.getrlimit(kind)[1]
    return limit if own == resource.RLIM_INFINITY else min(limit, own)


@cache
def _unprivileged() -> tuple[str, ...]:
    """The start of a command that keeps only _CAPABILITIES, gains none, and dies with the calling thread."""
    # an ordinary user has none to drop
    dropped = (f"--bounding-set={_CAPABILITIES}", "--inh-caps=-all") if _may_drop() else ()
    return ("setpriv", "--pdeathsig", "KILL", "--no-new-privs", *dropped, "--")


def _may_drop() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) & _SETPCAP)
    return False


def _locks() -> list[int]:
    """Descriptors of the node's locks, so that the next worker waits until a child that outlives this process has
    exited.

    Not all inheritable descriptors: libvirt opens some briefly, and one that is closed before the child starts would
    make the start fail.
    """
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # already closed, such as the one that listed them
            if int(name) not in {0, 1, 2} and os.get_inheritable(int(name)) and _is_locked(name):
                found.append(int(name))
    return found


def _is_locked(descriptor: str) -> bool:
    return " FLOCK " in Path(f"/proc/self/fdinfo/{descriptor}").read_text()


def _read_all(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for the end of the child. Kills it if it writes too much on stdout; only the start of stderr is kept."""
    assert process.stdout is not None and process.stderr is not None, "both are pipes"  # noqa: S101, PT018 - for mypy
    out, err = process.stdout.fileno(), process.stderr.fileno()
    said = {out: bytearray(), err: bytearray()}
    says_too_much = False
    with selectors.DefaultSelector() as selector, process:
        for pipe in said:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, _CHUNK_BYTES)
                if not data:
                    selector.unregister(key.fd)
                said[key.fd] += data
                del said[err][KEPT_ERROR_BYTES:]
                if len(said[out]) > MAX_OUTPUT_BYTES:
                    says_too_much = True
                    process.kill()
                    said[out].clear()
        process.wait()
    code = -signal.SIGXFSZ if says_too_much else process.returncode
    return Ended(code=code, out=said[out].decode(errors="replace"), err=said[err].decode(errors="replace"))
