"""`make chaos N=200 SEED=7`: a campaign of so many kills; exit code 1 where anything was not as it must be.

N=steps: not by chance, but every step of every operation with each death in its midst.

SABOTAGE=repair, safety or journal takes that part out of the worker: then it must fail, or it proves nothing.
"""

import asyncio
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.lab.domain import disk
from deploy.lab.lab import Lab, make_disk
from tests.acceptance.cell import PROGRAMS, AcceptanceCell
from tests.chaos import model
from tests.chaos.campaign import Campaign, Summary
from tests.chaos.model import Expected
from tests.conftest import RedisServer

# A qemu-img in front of the real one. Every other change begins late, so that a death can come right before it; and
# while the file exists that is named here, it refuses, once, what the file says.
SHIM = """#!/bin/sh
case "$1.$$" in snapshot.*[02468]) sleep 0.15 ;; esac
if [ -s "{refusal}" ]; then
    read -r action disk <"{refusal}"
    case " $* " in *" $action "*"$disk"*) rm -f "{refusal}"; echo "refused by the campaign" >&2; exit 1 ;; esac
fi
exec {real} "$@"
"""
# server id -> number of disks, whether it runs
SERVERS = {1: (2, False), 2: (3, False), 3: (2, True), 4: (2, False), 5: (2, True)}
SLOW = 4  # its disks have so many clusters mapped that a change of one takes a quarter of a second: time to die in


async def campaign(folder: Path, *, kills: int | None, seed: int, sabotage: str, quiet: bool = False) -> Summary:
    """`folder`: short, for the sockets' sake. `kills` None: every step in turn."""
    refusal, programs = folder / "refusal", folder / "bin"
    programs.mkdir()
    shim = programs / "qemu-img"
    shim.write_text(SHIM.format(refusal=refusal, real=shutil.which("qemu-img")))
    shim.chmod(0o755)
    (folder / "r").mkdir()
    redis = RedisServer(folder / "r")
    redis.start()
    worker: tuple[str | Path, ...] = (PROGRAMS / "vps-snapshots-worker", "run")
    if sabotage:
        worker = (sys.executable, "-m", "tests.chaos.sabotage", sabotage, "run")
    cell = AcceptanceCell(
        folder=folder,
        redis=redis,
        lab=Lab(folder / "l"),
        overrides={"VPS_SNAPSHOTS_GRACE_SECONDS": "0.3", "PATH": f"{programs}:{os.environ['PATH']}"},
        worker_command=worker,
    )
    try:
        servers = await _furnish(cell)
        await cell.start()
        say = (lambda _: None) if quiet else print
        played = Campaign(cell, servers, chance=random.Random(seed), refusal=refusal, say=say)
        return await (played.run_steps() if kills is None else played.run(kills))
    finally:
        await cell.stop()


async def _furnish(cell: AcceptanceCell) -> list[Expected]:
    servers = []
    for server_id, (disks, runs) in SERVERS.items():
        paths = [cell.lab.disk_path(f"s{server_id}-{n}.qcow2") for n in range(disks)]
        devices = [disk(_make_slow_disk(path) if server_id == SLOW else make_disk(path, "16M")) for path in paths]
        server = await cell.add(server_id, devices, running=False, guest=False)
        model.write(server, server_id)
        if runs:
            await cell.lab.start(server.name)
        servers.append(Expected(server=server, running=runs, runs_by_nature=runs, content=server_id))
    return servers


def _make_slow_disk(path: Path) -> Path:
    options = "cluster_size=64k,preallocation=metadata"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), "24G"], check=True)
    return path


def main() -> int:
    wanted, seed = os.environ.get("N") or "50", int(os.environ.get("SEED") or secrets.randbelow(10_000))
    kills = None if wanted == "steps" else int(wanted)
    sabotage = os.environ.get("SABOTAGE") or ""
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))
    print(f"{wanted} kills, SEED={seed}, in {folder}{', sabotaged: ' + sabotage if sabotage else ''}")
    summary = asyncio.run(campaign(folder, kills=kills, seed=seed, sabotage=sabotage))
    print(summary.text())
    if summary.violations:
        print(f"left for a look: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
