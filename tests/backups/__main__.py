"""`make backups-beside N=200 SEED=7`: N rounds; exit code 1 if any check failed.

SABOTAGE=bitmaps makes a restore keep the bitmaps of incremental backups. The campaign must then fail; otherwise it
proves nothing.
"""

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from deploy.lab.domain import disk
from deploy.lab.lab import make_disk
from tests.acceptance.cell import AcceptanceCell
from tests.backups.campaign import Backups, Tally
from tests.backups.disks import DISK_MIB
from tests.backups.tool import Tool
from tests.chaos import model
from tests.chaos.__main__ import staged
from tests.chaos.model import Expected

# server ID -> number of disks, whether it is always running or only sometimes
SERVERS = {1: (2, True), 2: (1, True), 3: (2, False)}


async def campaign(folder: Path, *, rounds: int, seed: int, sabotage: str = "none", quiet: bool = False) -> Tally:
    """`folder`: a short path, because sockets are below it."""
    say: Callable[[str], None] = (lambda _: None) if quiet else print
    staging = staged(folder, _furnish, seed=seed, say=lambda _: None, sabotage=sabotage, daemon=True)
    async with staging as (played, cell, servers):
        tool = Tool(folder / "b", cell.lab.uri)
        return await Backups(played, cell, servers, tool=tool, say=say).run(rounds)


async def _furnish(cell: AcceptanceCell) -> list[Expected]:
    """Guests that write nothing by themselves, so that the campaign knows the content of their disks."""
    servers = []
    for server_id, (disks, runs) in SERVERS.items():
        paths = [make_disk(cell.lab.disk_path(f"s{server_id}-{n}.qcow2"), f"{DISK_MIB}M") for n in range(disks)]
        server = await cell.add(server_id, [disk(path) for path in paths], running=False, guest=False)
        expected = Expected(server=server, running=runs, runs_by_nature=runs, content=0)
        model.write(expected, server_id)
        if runs:
            await cell.lab.start(server.name)
        servers.append(expected)
    return servers


def main() -> int:
    rounds, seed = int(os.environ.get("N") or "50"), int(os.environ.get("SEED") or secrets.randbelow(10_000))
    sabotage = os.environ.get("SABOTAGE") or "none"
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))
    print(f"{rounds} rounds, SEED={seed}, sabotage: {sabotage}, in {folder}")
    tally = asyncio.run(campaign(folder, rounds=rounds, seed=seed, sabotage=sabotage))
    print(tally.text())
    if tally.violations:
        print(f"kept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
