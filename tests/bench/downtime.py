"""Downtime of a guest during a create and a restore: `make bench-downtime` (N=3 rounds).

The baseline is the shortest possible script of virsh's calls and qemu-img: ask the guest to shut down, again every
second as ours, and look every 5 ms whether it is off (for a restore: cut its power), one qemu-img call for each disk,
start the domain. `virsh` does the same with libvirt's own snapshots: `snapshot-create-as` and `snapshot-revert`, as
calls of the library, without a process for each. Ours is the job's whole procedure, with the journal on the disk as in
the worker; only the reports to the store are left out, for which a step does not wait. A restore also takes its safety
snapshot. The downtime is measured from the first shutdown request, or from the power cut, until the call that starts
the domain has returned: it includes the guest's own shutdown and libvirt's start. They take turns; medians. All disks
but the first are fully mapped.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt

from deploy.lab import domains
from deploy.lab.domain import Device, disk
from deploy.lab.lab import Lab, make_disk
from drivers.kvm import KvmHypervisor
from tests.bench.live import qemu_img
from tests.walking import SERVER, SPEC, walk
from worker.journal import Journal
from worker.procedures.work import Policy
from worker.store.model import JobKind, Step

ROUNDS = int(os.environ.get("N") or 3)
SHAPES = {"one disk of 64 MB": (), "and 3 of 100 GB": ("100G",) * 3}
CALLS, CONTESTANTS = ("create", "restore"), ("script", "virsh", "ours")
NAME, PLAIN, VIRSHS = "server-1", "plain", "virshs"  # PLAIN and VIRSHS: the snapshots of the script and of virsh
PRESS_AGAIN_SECONDS, POLL_SECONDS = 1.0, 0.005
POLICY = Policy(grace_seconds=60, press_again_seconds=PRESS_AGAIN_SECONDS)


class Timed(KvmHypervisor):
    started_at = 0.0  # when the latest call that started a server returned

    async def start(self, server_id: int) -> None:
        await super().start(server_id)
        self.started_at = time.perf_counter()


@dataclass(kw_only=True)
class Bench:
    lab: Lab
    hypervisor: Timed
    journal: Journal
    connection: Any
    disks: list[Path]
    log_end: int = 0  # of the guest's console, up to the last boot
    off: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # by call and contestant, in ms

    @property
    def _domain(self) -> Any:
        return self.connection.lookupByName(NAME)

    async def booted(self) -> None:
        """Wait for the next boot."""
        self.log_end = (await self.lab.console(NAME).ready(after=self.log_end)).end

    async def by_hand(self, call: str, whom: str) -> None:
        began = time.perf_counter()
        if call == "create":
            await asyncio.to_thread(
                domains.shut_down,
                self.connection,
                NAME,
                timeout_seconds=60,
                press_again_seconds=PRESS_AGAIN_SECONDS,
                poll_seconds=POLL_SECONDS,
            )
        else:
            await asyncio.to_thread(self._domain.destroy)
        if whom == "virsh":
            await asyncio.to_thread(self._virsh, call)
        else:
            for path in self.disks:
                await qemu_img("-c" if call == "create" else "-a", PLAIN, path)
        await asyncio.to_thread(self._domain.create)
        self._note(call, whom, time.perf_counter() - began)

    def _virsh(self, call: str) -> None:
        if call == "create":
            self._domain.snapshotCreateXML(f"<domainsnapshot><name>{VIRSHS}</name></domainsnapshot>")
        else:
            self._domain.revertToSnapshot(self._domain.snapshotLookupByName(VIRSHS))

    async def job(self, call: str) -> None:
        stopping_at = 0.0

        async def note(step: Step) -> None:
            nonlocal stopping_at
            if step is Step.STOPPING:
                stopping_at = time.perf_counter()

        end = await walk(JobKind(call), self.hypervisor, policy=POLICY, before_each=note, journal=self.journal)
        assert end.code is None, f"{call}: {end.code} {end.detail}"
        self._note(call, "ours", self.hypervisor.started_at - stopping_at)

    async def clean(self) -> None:
        """Delete the round's snapshots. The guest is off."""
        await asyncio.to_thread(self._domain.snapshotLookupByName(VIRSHS).delete)
        for found in await self.hypervisor.snapshots(SERVER):  # also the safety snapshot of the restore
            if found.tag not in {SPEC.tag, PLAIN}:
                await self.hypervisor.delete_snapshot(SERVER, found.tag)
        for path in self.disks:
            await qemu_img("-d", PLAIN, path)

    def _note(self, call: str, whom: str, seconds: float) -> None:
        self.off.setdefault((call, whom), []).append(1000 * seconds)


async def measure(lab: Lab, sizes: tuple[str, ...]) -> dict[tuple[str, str], list[float]]:
    hypervisor, connection = await Timed.open(lab.uri), libvirt.open(lab.uri)
    small, large = make_disk(lab.disk_path("small")), [lab.disk_path(f"large-{n}") for n in range(len(sizes))]
    for path, size in zip(large, sizes, strict=True):
        options = ("-o", "preallocation=metadata", str(path), size)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options], check=True)  # noqa: ASYNC221
    domains.define(connection, lab.domain_xml(NAME, [disk(small), *(Device(path=path, sata=True) for path in large)]))
    await hypervisor.adopt(NAME, server_id=SERVER, account_id=1)
    await hypervisor.take_snapshot(SERVER, SPEC)
    journal = Journal(lab.folder / f"journal-{len(sizes)}")
    bench = Bench(lab=lab, hypervisor=hypervisor, journal=journal, connection=connection, disks=[small, *large])
    await hypervisor.start(SERVER)
    try:
        for number in range(ROUNDS):
            first = number % len(CONTESTANTS)
            for call in CALLS:
                for whom in CONTESTANTS[first:] + CONTESTANTS[:first]:
                    await bench.booted()
                    await (bench.job(call) if whom == "ours" else bench.by_hand(call, whom))
            await hypervisor.cut_power(SERVER)
            await bench.clean()
            await hypervisor.start(SERVER)
    finally:
        domains.remove_all(connection)
        connection.close()
        await hypervisor.close()
        journal.close()
    shutil.rmtree(lab.folder / "disks")
    return bench.off


async def main() -> None:
    print(f"{ROUNDS} rounds, medians, downtime of the guest in ms; the ratios are ours to the script and to virsh")
    print(f"{'':<22}{'':<10}{'ours':>8}{'script':>8}{'ratio':>7}{'virsh':>8}{'ratio':>7}")
    rows = []
    folder = Path(tempfile.mkdtemp(prefix="vps-"))  # a process can open only one libvirt root
    for shape, sizes in SHAPES.items():
        off = await measure(Lab(folder), sizes)
        for call in CALLS:
            script, virsh, ours = (statistics.median(off[call, whom]) for whom in CONTESTANTS)
            ratios = f"{script:>8.0f}{ours / script:>7.2f}{virsh:>8.0f}{ours / virsh:>7.2f}"
            print(f"{shape:<22}{call:<10}{ours:>8.0f}{ratios}", flush=True)
            rows.append({"disks": shape, "call": call, "ours_ms": ours, "script_ms": script, "virsh_ms": virsh})
    shutil.rmtree(folder)
    print(json.dumps({"rounds": ROUNDS, "rows": rows}))


if __name__ == "__main__":
    asyncio.run(main())
