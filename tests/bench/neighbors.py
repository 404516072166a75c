"""Duration of a neighbor's writes while an image on the same file system is changed: `make bench-neighbors` (N=5
rounds, SIZE=100 GB of the image, SECONDS=4 per part).

The neighbor represents a guest: it writes 4 KiB with direct I/O, waits until the disk has them, and pauses for 5 ms.
Beside it run in turn: nothing; repeated create, restore and delete of a fully mapped image, with the worker's priority
for qemu-img and with the neighbor's own; and, for comparison, a copy of a file, which no job makes. Ratios are relative
to the undisturbed part of the same round.
"""

import asyncio
import json
import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from drivers import child

ROUNDS = int(os.environ.get("N") or 5)
SIZE = int(os.environ.get("SIZE") or 100)  # GB
SECONDS = float(os.environ.get("SECONDS") or 4)
BLOCK, FILE_BLOCKS, REST_SECONDS = 4096, 4096, 0.005
COPIED_BYTES = 1 << 30
LIMITS = child.Limits(memory_bytes=2 << 30, cpu_seconds=600, file_bytes=1 << 50)
CALLS = ("-c", "-a", "-d")
UNDISTURBED = "nothing"


class Neighbor(threading.Thread):
    """Writes until it is stopped. `latencies`: in seconds."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.latencies: list[float] = []
        self._path = path
        self._stop_asked = threading.Event()

    def run(self) -> None:
        block = mmap.mmap(-1, BLOCK)  # aligned, as O_DIRECT requires
        block.write(os.urandom(BLOCK))
        file = os.open(self._path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
        try:
            number = 0
            while not self._stop_asked.is_set():
                began = time.perf_counter()
                os.pwrite(file, block, number % FILE_BLOCKS * BLOCK)
                self.latencies.append(time.perf_counter() - began)
                number += 1
                time.sleep(REST_SECONDS)
        finally:
            os.close(file)

    def end(self) -> list[float]:
        self._stop_asked.set()
        self.join()
        return self.latencies


async def at_own_priority(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL)
    assert await process.wait() == 0


async def as_the_worker(*command: str) -> None:
    ended = await child.run(*command, limits=LIMITS)
    assert ended.code == 0, ended.err


Run = Callable[..., Awaitable[None]]


async def change(run: Run, image: Path, until: float) -> int:
    """Create, revert to and delete snapshots in whole rounds. Returns the number of operations."""
    rounds = 0
    while time.monotonic() < until:
        for call in CALLS:
            await run("qemu-img", "snapshot", call, "neighbor", str(image))
        rounds += 1
    return rounds


async def copy(run: Run, source: Path, until: float) -> int:
    rounds = 0
    while time.monotonic() < until:
        await run("dd", f"if={source}", f"of={source}.copy", "bs=1M", "conv=fsync", "status=none")
        rounds += 1
    return rounds


def quantiles(latencies: Sequence[float]) -> tuple[float, float]:
    """Median and p99."""
    return statistics.median(latencies), statistics.quantiles(latencies, n=100)[98]


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir=os.environ.get("DIR")))
    image, data, written = folder / "image.qcow2", folder / "data", folder / "neighbor"
    try:
        made = ("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(image), f"{SIZE}G")
        await at_own_priority(*made)
        await at_own_priority(
            "dd", "if=/dev/urandom", f"of={data}", "bs=1M", f"count={COPIED_BYTES >> 20}", "status=none"
        )
        written.write_bytes(os.urandom(BLOCK * FILE_BLOCKS))
        parts: dict[str, Callable[[float], Awaitable[int]]] = {
            "jobs, as the worker": lambda until: change(as_the_worker, image, until),
            "jobs, own priority": lambda until: change(at_own_priority, image, until),
            "copy, as the worker": lambda until: copy(as_the_worker, data, until),
            "copy, own priority": lambda until: copy(at_own_priority, data, until),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in (UNDISTURBED, *parts)}
        rounds_of = dict.fromkeys(parts, 0)
        names = list(found)
        for number in range(ROUNDS):
            shift = number % len(names)  # rotate the parts, so that background load does not always affect the same one
            for name in names[shift:] + names[:shift]:
                os.sync()
                neighbor = Neighbor(written)
                neighbor.start()
                until = time.monotonic() + SECONDS
                if name == UNDISTURBED:
                    await asyncio.sleep(SECONDS)
                else:
                    rounds_of[name] += await parts[name](until)
                found[name].append(quantiles(neighbor.end()))
        show(found, rounds_of)
    finally:
        shutil.rmtree(folder)


def show(found: dict[str, list[tuple[float, float]]], rounds_of: dict[str, int]) -> None:
    plain = found[UNDISTURBED]
    print(
        f"{ROUNDS} rounds; image of {SIZE} GB; ms of a write, medians of the rounds; ratios to nothing, and their range"
    )
    print(f"{'beside':>22}{'times':>7}{'median':>9}{'ratio':>7}{'range':>14}{'p99':>9}{'ratio':>7}{'range':>14}")
    rows = []
    for name, rounds in found.items():
        cells, row = "", {}
        for which, title in ((0, "median"), (1, "p99")):
            values = [one[which] * 1000 for one in rounds]
            ratios = [one[which] / other[which] for one, other in zip(rounds, plain, strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            cells += f"{statistics.median(values):>9.2f}{statistics.median(ratios):>7.2f}{spread:>14}"
            row[title] = {"ms": values, "ratios": ratios}
        print(f"{name:>22}{rounds_of.get(name, 0):>7}{cells}", flush=True)
        rows.append({"beside": name, "times": rounds_of.get(name, 0), **row})
    print(json.dumps({"rounds": ROUNDS, "gb": SIZE, "rows": rows}))


if __name__ == "__main__":
    asyncio.run(main())
