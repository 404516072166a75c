"""How long a guest's writes wait during a live snapshot: `make bench-live N=100` (SIZES="10G:64k 100G:1M", of the large
disk and of its clusters).

The guest writes to a small disk every 10 ms and also has a large, fully mapped disk. A round is a live create through
the whole service, as a customer requests it: the worker records each step in its journal, the agent freezes the file
systems, QEMU takes the snapshot, the agent thaws them. The pause is the longest gap between two writes of the round,
measured inside the guest. Its baselines are the longest gap of a round without a job, and `qemu-img snapshot -c` of
the same large disk while the guest is off.

All in milliseconds. The steps are medians. Without KVM, the guest runs slowly: the part of a pause beyond the
transaction is the agent's and mostly due to the machine.
"""

import asyncio
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lab.console import Console
from deploy.lab.domain import Device, disk
from deploy.lab.lab import Lab, make_disk
from tests.acceptance.cell import AcceptanceCell, eventually
from tests.bench.figures import percentile, took
from tests.conftest import RedisServer
from tests.queueing import client
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import JobId, Step
from worker.store.operators.operator_store import OperatorStore

ROUNDS = int(os.environ.get("N") or 100)  # with fewer, p99 is the maximum
SIZES = (os.environ.get("SIZES") or "10G:64k 100G:64k 100G:1M 500G:1M").split()
BASELINE_ROUNDS = min(ROUNDS, 10)
STEPS = (Step.FREEZING, Step.SNAPSHOTTING, Step.THAWING)
MARGIN_SECONDS = 0.2  # before and after the create, so that the gap that it causes is complete
WITHOUT_SECONDS = 1.0  # about as long as a create
COLUMNS = ("qemu-img -c", "no job", "p50", "p99", "longest", *STEPS)


@dataclass(kw_only=True)
class Times:
    """In milliseconds, one value for each round."""

    offline: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)  # the longest gap without a job
    pauses: list[float] = field(default_factory=list)
    steps: dict[Step, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})

    def figures(self) -> dict[str, float]:
        pauses = {"p50": percentile(self.pauses, 0.5), "p99": percentile(self.pauses, 0.99)}
        steps = {step.value: statistics.median(values) for step, values in self.steps.items()}
        baselines = {"qemu-img -c": statistics.median(self.offline), "no job": max(self.without)}
        return {**baselines, **pauses, "longest": max(self.pauses), **steps}


@asynccontextmanager
async def cell_with(folder: Path, large: Path) -> AsyncIterator[AcceptanceCell]:
    (folder / "r").mkdir()
    redis = RedisServer(folder / "r")
    redis.start()
    lab = Lab(folder / "l")
    cell = AcceptanceCell(folder=folder, redis=redis, lab=lab, overrides={"VPS_SNAPSHOTS_LIVE": "allowed"})
    try:
        await cell.add(1, [disk(make_disk(lab.disk_path("small"))), Device(path=large, sata=True)], agent=True)
        await cell.start()
        yield cell
    finally:
        await cell.stop()


async def measure(folder: Path, size: str, clusters: str) -> Times:
    times, large = Times(), folder / "large"
    options = f"cluster_size={clusters},preallocation=metadata"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(large), size], check=True)  # noqa: ASYNC221
    for _ in range(BASELINE_ROUNDS):
        times.offline.append(await took(qemu_img("-c", "plain", large)))
        await qemu_img("-d", "plain", large)
    async with cell_with(folder, large) as cell, client(cell.redis.socket) as redis:
        server, operators = cell.servers[1], OperatorStore(redis, CustomerStore(redis))
        await server.ready()
        await eventually(lambda: cell.freezes(server))
        for _ in range(BASELINE_ROUNDS):
            async with gap_noted(server.console, times.without):
                await asyncio.sleep(WITHOUT_SECONDS)
        for number in range(ROUNDS):
            async with gap_noted(server.console, times.pauses):
                await asyncio.sleep(MARGIN_SECONDS)
                snapshot_id, job = await cell.create(server, f"live-{number}", consistency="live")
                await asyncio.sleep(MARGIN_SECONDS)
            assert (job["state"], job["consistency"]) == ("completed", "agent_frozen"), job
            taken = (await operators.job(JobId(str(job["id"])))).steps
            for step, values in times.steps.items():
                values.append(sum(1000 * (one.seconds or 0) for one in taken if one.step == step))
            await cell.delete(server, snapshot_id)
    return times


@asynccontextmanager
async def gap_noted(console: Console, gaps: list[float]) -> AsyncIterator[None]:
    """Add the longest gap between two writes of the guest within the block."""
    await console.tick()
    yield
    gaps.append((await console.gaps()).longest_ms)


async def qemu_img(action: str, tag: str, path: Path) -> None:
    process = await asyncio.create_subprocess_exec("qemu-img", "snapshot", action, tag, str(path))
    assert await process.wait() == 0


def main() -> None:
    print(f"{ROUNDS} creates, {BASELINE_ROUNDS} rounds of each baseline, ms; p50, p99 and longest: the guest's pause")
    print(f"{'disk':>8}{'clusters':>10}" + "".join(f"{name:>14}" for name in COLUMNS))
    rows = []
    for shape in SIZES:
        size, clusters = shape.split(":")
        with tempfile.TemporaryDirectory(prefix="vps-", dir="/tmp") as folder:  # a short path: sockets are below it
            figures = asyncio.run(measure(Path(folder), size, clusters)).figures()
        print(f"{size:>8}{clusters:>10}" + "".join(f"{figures[name]:>14.0f}" for name in COLUMNS), flush=True)
        rows.append({"disk": size, "clusters": clusters, "ms": figures})
    print(json.dumps({"rounds": ROUNDS, "rows": rows}))


if __name__ == "__main__":
    main()
