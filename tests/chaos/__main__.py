"""`make chaos N=200 SEED=7`: a campaign of N kills; exit code 1 if any check failed.

N=frozen:500: a guest with an agent, killed around its freeze. N=steps: not at random, but at every moment of every step
of every operation; N=steps:20, only 20 of them. LIBVIRT=daemon: with a libvirtd, which is killed too, instead of the
embedded libvirt. A hostile node is in the cell and makes random claims. SABOTAGE=repair, safety or journal removes that
part of the worker: the campaign must then fail; otherwise it proves nothing.
"""

import asyncio
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.lab.domain import disk
from deploy.lab.lab import Lab, make_disk
from tests.acceptance.cell import AcceptanceCell
from tests.chaos import freezing, model, moments
from tests.chaos.campaign import Campaign
from tests.chaos.deaths import Deaths
from tests.chaos.freezing import Freezing
from tests.chaos.halts import Halts
from tests.chaos.hostile import HostileNode
from tests.chaos.model import Expected
from tests.chaos.others import arrive
from tests.chaos.summary import Summary
from tests.conftest import RedisServer
from tests.libvirtd import Daemon, DaemonLab, install_hook

# server ID -> number of disks, whether it is running
SERVERS = {1: (2, False), 2: (3, False), 3: (2, True), 4: (2, False), 5: (2, True), 6: (1, False), 7: (3, False)}
SLOW = (4, 5)  # so many mapped clusters that a change takes a quarter of a second: enough time for a kill
UEFI = 6
MOVED, ITS_SNAPSHOT = 7, 1007  # arrives from another node with a snapshot


async def campaign(
    folder: Path, *, wanted: str, seed: int, sabotage: str = "none", daemon: bool = False, quiet: bool = False
) -> Summary:
    """`folder`: a short path, because sockets are below it. `wanted`: as N."""
    say: Callable[[str], None] = (lambda _: None) if quiet else print
    if wanted.startswith("frozen:"):
        async with staged(folder, freezing.furnish, seed=seed, daemon=daemon, say=say) as (played, cell, servers):
            return await Freezing(played, cell, servers[0], say=say).run(int(wanted.removeprefix("frozen:")))
    async with staged(folder, _furnish, seed=seed, sabotage=sabotage, daemon=daemon, say=say) as (
        played,
        cell,
        servers,
    ):
        hostile = HostileNode(cell, random.Random(seed))
        async with hostile.at_work():
            played.after_loss = hostile.let_in
            summary = await _play(played, wanted, servers)
        summary.claims = hostile.answers
        summary.violations += hostile.violations
        return summary


@asynccontextmanager
async def staged(
    folder: Path,
    furnish: Callable[[AcceptanceCell], Awaitable[list[Expected]]],
    *,
    seed: int,
    say: Callable[[str], None],
    sabotage: str = "none",
    daemon: bool = False,
) -> AsyncIterator[tuple[Campaign, AcceptanceCell, list[Expected]]]:
    """A running cell with the servers that `furnish` adds; everything is stopped at the end of the block."""
    halts = Halts(folder)
    programs = halts.put_in_front()
    (folder / "r").mkdir()
    redis = RedisServer(folder / "r")
    redis.start()
    libvirtd = Daemon(folder / "l") if daemon else None
    cell = AcceptanceCell(
        folder=folder,
        redis=redis,
        lab=DaemonLab(libvirtd) if libvirtd else Lab(folder / "l"),
        overrides={
            "VPS_SNAPSHOTS_GRACE_SECONDS": "0.3",
            "VPS_SNAPSHOTS_LIVE": "allowed",
            "PATH": f"{programs}:{os.environ['PATH']}",
        },
        worker_command=(sys.executable, "-m", "tests.chaos.stage", folder, sabotage, "run"),
    )
    try:
        if libvirtd:
            install_hook(libvirtd, folder / "node")
            await libvirtd.start()
        servers = await furnish(cell)
        await cell.start()
        deaths = Deaths(cell=cell, servers=servers, daemon=libvirtd)
        played = Campaign(cell, servers, deaths=deaths, halts=halts, chance=random.Random(seed), say=say)
        yield played, cell, servers
    finally:
        await cell.stop()
        if libvirtd:
            libvirtd.stop_for_good()


async def _play(played: Campaign, wanted: str, servers: list[Expected]) -> Summary:
    if not wanted.startswith("steps"):
        return await played.run(int(wanted))
    plays = [*moments.plays(), *moments.live_plays()]
    if how_many := wanted.removeprefix("steps").lstrip(":"):
        plays = played.chance.sample(plays, int(how_many))
    return await moments.run(played, plays, off=servers[SLOW[0] - 1], running=servers[SLOW[1] - 1])


async def _furnish(cell: AcceptanceCell) -> list[Expected]:
    servers = []
    for server_id, (disks, runs) in SERVERS.items():
        paths = [cell.lab.disk_path(f"s{server_id}-{n}.qcow2") for n in range(disks)]
        devices = [disk(_make_slow_disk(path) if server_id in SLOW else make_disk(path, "16M")) for path in paths]
        uefi = server_id == UEFI
        server = await cell.add(server_id, devices, running=False, guest=False, uefi=uefi)
        nvram = cell.lab.nvram_path(server.name) if uefi else None
        expected = Expected(server=server, running=runs, runs_by_nature=runs, content=0, nvram=nvram)
        model.write(expected, server_id)
        if server_id == MOVED:
            await arrive(cell, expected, ITS_SNAPSHOT)
            model.write(expected, server_id + 100)
        if runs:
            await cell.lab.start(server.name)
        servers.append(expected)
    return servers


def _make_slow_disk(path: Path) -> Path:
    options = "cluster_size=64k,preallocation=metadata"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), "24G"], check=True)
    return path


def main() -> int:
    wanted, of_seed = os.environ.get("N") or "50", os.environ.get("SEED") or str(secrets.randbelow(10_000))
    if not re.fullmatch(r"(steps:|frozen:)?\d+|steps", wanted) or not of_seed.isdecimal():
        print(f"N={wanted} SEED={of_seed}: N must be a number, steps, steps:NUMBER or frozen:NUMBER, and SEED a number")
        return 2
    seed = int(of_seed)
    sabotage, libvirt = os.environ.get("SABOTAGE") or "none", os.environ.get("LIBVIRT") or "embedded"
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))
    print(f"{wanted} kills, SEED={seed}, libvirt: {libvirt}, sabotage: {sabotage}, in {folder}")
    daemon = libvirt == "daemon"
    summary = asyncio.run(campaign(folder, wanted=wanted, seed=seed, sabotage=sabotage, daemon=daemon))
    print(summary.text())
    if summary.violations:
        print(f"kept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
