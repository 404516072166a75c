"""Duration of the disk's part of a create, a restore and a delete, by the size of the disk: `make bench-disk` (SIZES="1
10 100", GB).

Each disk is fully mapped: its tables are those of a disk on which every cluster of 64 KiB has been written. It has 0 or
4 older snapshots; disks larger than OLDER_UP_TO=500 GB have none. The baseline is the plain qemu-img call on the same
disk (`snapshot -c`, `-a`, `-d`); ours is the driver's calls as in the job. The one that changes the disk also makes its
checks and records the result in the domain. Before a create and a restore, the job checks the disk and would repair it;
the column `check` shows this part. The restore is one revert: a job also takes a safety snapshot before it, which is
one more create. Both take turns; medians.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import libvirt

from deploy.lab import domains
from deploy.lab.domain import disk
from deploy.lab.lab import Lab
from drivers.base import SnapshotSpec
from drivers.kvm import KvmHypervisor
from tests.bench.figures import took
from tests.bench.live import qemu_img

SIZES = [int(size) for size in (os.environ.get("SIZES") or "1 10 50 100 200 500").split()]  # GB
ROUNDS = int(os.environ.get("N") or 3)
OLDER = (0, 4)  # snapshots that the disk already has
OLDER_UP_TO = int(os.environ.get("OLDER_UP_TO") or max(SIZES))  # GB; larger disks have none, which saves time
CALLS = ("create", "restore", "delete")
CHECKED = ("create", "restore")
SERVER, PLAIN, OURS = 1, "plain", "vps-900"


def spec(tag: str) -> SnapshotSpec:
    return SnapshotSpec(tag=tag, name="x", description="", created_at=datetime.now(UTC))


async def written(path: Path) -> None:
    """Write one cluster of the disk."""
    command = ("qemu-io", "-f", "qcow2", "-c", "write 0 64k", str(path))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


async def measure(lab: Lab, size: int, older: int) -> tuple[dict[str, tuple[float, float]], float]:
    """Milliseconds of ours and of qemu-img, by call, and of the check that is included in ours."""
    path = lab.disk_path("large")
    made = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(path), f"{size}G"]
    subprocess.run(made, check=True)  # noqa: ASYNC221 - nothing else runs
    hypervisor, connection = await KvmHypervisor.open(lab.uri), libvirt.open(lab.uri)
    domains.define(connection, lab.domain_xml("server-1", [disk(path)], guest=False))
    await hypervisor.adopt("server-1", server_id=SERVER, account_id=1)
    for number in range(older):
        await hypervisor.take_snapshot(SERVER, spec(f"vps-{number + 1}"))
    ours: dict[str, Callable[[], Awaitable[object]]] = {
        "create": lambda: hypervisor.take_snapshot(SERVER, spec(OURS)),
        "restore": lambda: hypervisor.revert(SERVER, OURS),
        "delete": lambda: hypervisor.delete_snapshot(SERVER, OURS),
    }
    flags = {"create": "-c", "restore": "-a", "delete": "-d"}
    times: dict[str, tuple[list[float], list[float]]] = {call: ([], []) for call in CALLS}
    checks = []
    for number in range(ROUNDS):
        for whom in (0, 1) if number % 2 else (1, 0):
            for call in CALLS:
                if call == "restore":  # the disk must have changed: ours does not revert an unchanged disk
                    await written(path)
                check = 0.0
                if whom == 0 and call in CHECKED:
                    check = await took(hypervisor.repair(SERVER))
                    checks.append(check)
                do = ours[call]() if whom == 0 else qemu_img(flags[call], PLAIN, path)
                times[call][whom].append(check + await took(do))
    domains.remove_all(connection)
    connection.close()
    await hypervisor.close()
    path.unlink()
    medians = {call: (statistics.median(one), statistics.median(other)) for call, (one, other) in times.items()}
    return medians, statistics.median(checks)


async def main() -> None:
    print(f"{ROUNDS} rounds, medians, ms; the ratio is to qemu-img")
    print(f"{'GB':>5}{'older':>7}{'check':>8}" + "".join(f"{call:>10}{'qemu-img':>10}{'ratio':>7}" for call in CALLS))
    rows = []
    folder = Path(tempfile.mkdtemp(prefix="vps-"))
    try:
        lab = Lab(folder)
        for size in SIZES:
            for older in OLDER if size <= OLDER_UP_TO else OLDER[:1]:
                found, check = await measure(lab, size, older)
                figures = "".join(f"{one:>10.0f}{other:>10.0f}{one / other:>7.2f}" for one, other in found.values())
                print(f"{size:>5}{older:>7}{check:>8.0f}{figures}", flush=True)
                rows.append({"gb": size, "older": older, "check_ms": check, "ms": found})
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"rounds": ROUNDS, "rows": rows}))


if __name__ == "__main__":
    asyncio.run(main())
