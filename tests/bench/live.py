"""How long a guest's writes wait during a live snapshot: `make bench-live N=10`. The guest writes to a small disk every
10 ms and also has a large, fully mapped disk. The baseline is `qemu-img snapshot -c` of the same large disk.

Medians of N rounds, and the maximum; all in milliseconds. Without KVM, the guest runs slowly: the part of a gap beyond
the transaction is the agent's and mostly due to the machine.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import libvirt

from deploy.lab import domains
from deploy.lab.domain import disk
from deploy.lab.lab import Lab, make_disk
from drivers.base import SnapshotSpec
from drivers.kvm import KvmHypervisor

ROUNDS = 10
SIZES = (("10G", "64k"), ("100G", "64k"), ("100G", "1M"), ("500G", "1M"))  # sizes of the large disk and of its clusters
AGENT_SECONDS = 60.0
COLUMNS = ("disk", "clusters", "qemu-img -c", "transaction", "ratio", "freeze", "thaw", "gap", "longest gap", "delete")


@dataclass(kw_only=True)
class Times:
    """In milliseconds, one value per round."""

    offline: list[float] = field(default_factory=list)
    freeze: list[float] = field(default_factory=list)
    transaction: list[float] = field(default_factory=list)
    thaw: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)  # the longest gap, measured in the guest
    delete: list[float] = field(default_factory=list)

    def row(self, size: str, clusters: str) -> tuple[str, ...]:
        def median(of: list[float]) -> str:
            return f"{statistics.median(of):.0f}"

        ratio = statistics.median(self.transaction) / statistics.median(self.offline)
        return (
            *(size, clusters, median(self.offline), median(self.transaction), f"{ratio:.2f}"),
            *(median(self.freeze), median(self.thaw), median(self.gap), f"{max(self.gap):.0f}", median(self.delete)),
        )


async def measure(lab: Lab, size: str, clusters: str, *, rounds: int) -> Times:
    hypervisor, connection = await KvmHypervisor.open(lab.uri), libvirt.open(lab.uri)
    times, large = Times(), lab.disk_path("large")
    options = f"cluster_size={clusters},preallocation=metadata"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(large), size], check=True)  # noqa: ASYNC221
    for number in range(rounds):
        times.offline.append(await took(qemu_img("-c", f"o{number}", large)))
        await qemu_img("-d", f"o{number}", large)
    xml = lab.domain_xml("server-1", [disk(make_disk(lab.disk_path("small"))), disk(large)], agent=True)
    # on a bus for which the guest has no driver, so that it does not format it
    domains.define(connection, xml.replace("<target dev='vdb' bus='virtio'/>", "<target dev='sda' bus='sata'/>"))
    await hypervisor.adopt("server-1", server_id=1, account_id=1)
    await hypervisor.start(1)
    console = lab.console("server-1")
    await console.ready(after=0)
    async with asyncio.timeout(AGENT_SECONDS):
        while not await hypervisor.refuse_live(1):  # noqa: ASYNC110 - the agent comes up a moment later
            await asyncio.sleep(0.1)
    for number in range(rounds):
        tag = f"vps-{number + 1}"
        spec = SnapshotSpec(tag=tag, name="x", description="", created_at=datetime.now(UTC))
        await console.tick()
        await asyncio.sleep(0.5)
        times.freeze.append(await took(hypervisor.freeze(1, timeout_seconds=30)))
        times.transaction.append(await took(hypervisor.take_live_snapshot(1, spec)))
        times.thaw.append(await took(hypervisor.thaw(1)))
        await asyncio.sleep(0.5)
        times.gap.append((await console.gaps()).longest_ms)
        times.delete.append(await took(hypervisor.delete_snapshot(1, tag)))
    domains.remove_all(connection)
    connection.close()
    await hypervisor.close()
    return times


async def took(call: Awaitable[object]) -> float:
    began = time.perf_counter()
    await call
    return 1000 * (time.perf_counter() - began)


async def qemu_img(action: str, tag: str, path: Path) -> None:
    process = await asyncio.create_subprocess_exec("qemu-img", "snapshot", action, tag, str(path))
    assert await process.wait() == 0


def main() -> None:
    rounds, folder = int(os.environ.get("N") or ROUNDS), Path(tempfile.mkdtemp(prefix="vps-"))
    print(" | ".join(COLUMNS))
    for size, clusters in SIZES:
        lab = Lab(folder)
        times = asyncio.run(measure(lab, size, clusters, rounds=rounds))
        print(" | ".join(times.row(size, clusters)), flush=True)
        shutil.rmtree(folder / "disks")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
