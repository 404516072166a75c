"""`make migrations N=40 SEED=7`: a server with snapshots moves between two nodes during jobs and kills.

Separate from the campaign of one node, which normally has an embedded libvirt, which cannot migrate, and checks one
libvirt and one journal. Here there are two of each, and each check first finds the server's node.
"""

import asyncio
import os
import random
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.acceptance.cell import AcceptanceCell, Server
from tests.chaos.model import Expected
from tests.chaos.moving import Migrations
from tests.chaos.summary import Summary
from tests.conftest import RedisServer
from tests.libvirtd import DaemonLab
from tests.migrating import NAME, SERVER, Two, two_nodes


async def campaign(folder: Path, *, kills: int, seed: int, quiet: bool = False) -> Summary:
    """`folder`: a short path, because sockets are below it."""
    say: Callable[[str], None] = (lambda _: None) if quiet else print
    async with _staged(folder) as (two, cell, expected):
        return await Migrations(two, cell, expected, chance=random.Random(seed), say=say).run(kills)


@asynccontextmanager
async def _staged(folder: Path) -> AsyncIterator[tuple[Two, AcceptanceCell, Expected]]:
    """Two nodes, a front end, and a server on the first node that has not been started yet."""
    (folder / "r").mkdir()
    redis = RedisServer(folder / "r")
    redis.start()
    client = redis.client()
    try:
        async with two_nodes(redis, client, folder) as two:
            second = two.path.with_name("vdb.qcow2")
            await two.define(second)
            lab = DaemonLab(two.first.daemon)
            cell = AcceptanceCell(folder=folder, redis=redis, lab=lab)
            server = Server(id=SERVER, name=NAME, disks=[two.path, second], console=lab.console(NAME))
            try:
                await cell.start_api()
                await cell.enroll()
                yield two, cell, Expected(server=server, running=True, runs_by_nature=True, content=0)
            finally:
                for node in (two.first, two.second):
                    said = [*node.said, *(node.worker.lines if node.worker else [])]
                    (folder / f"{node.name}.log").write_text("".join(said))
                if cell.api is not None:
                    await cell.api.stop()
                await cell.gateway.stop()
    finally:
        await client.aclose(close_connection_pool=True)
        redis.kill()


def main() -> int:
    kills, seed = int(os.environ.get("N") or "40"), int(os.environ.get("SEED") or secrets.randbelow(10_000))
    folder = Path(tempfile.mkdtemp(prefix="vps-", dir="/tmp"))
    print(f"{kills} kills, SEED={seed}, in {folder}")
    summary = asyncio.run(campaign(folder, kills=kills, seed=seed))
    print(summary.text())
    if summary.violations:
        print(f"kept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
