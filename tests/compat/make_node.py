"""Write `data/node.json.gz`: what an older version leaves on a node with real libvirt and QEMU, and in its Redis.

Runs as root with the code of that version, like `make_cell`:

    .venv/bin/python -m tests.compat.make_node CHECKOUT/tests/compat/data/node.json.gz

A server with two disks and a server with UEFI variables get snapshots, are restored and turned off. The recording has
libvirt's own files with its list of snapshots, the images with their internal snapshots, the copies of the UEFI
variables, and the worker's journal.
"""

import asyncio
import gzip
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import libvirt

from deploy.demo.processes import Child
from deploy.lab.domain import UEFI_VARIABLES, disk, domain_xml
from deploy.lab.lab import make_disk
from drivers.kvm import KvmHypervisor
from tests.browser.stage import staged
from tests.compat.making import ACCOUNT, DESCRIPTION, Cell
from tests.compat.recording import dumped, packed
from tests.contract.kvm_bench import write_text
from tests.libvirtd import Daemon
from tests.queueing import until_told

SERVERS = {"plain": (12_201, 2), "uefi": (12_202, 1)}  # ID, number of disks
KEPT = ("etc/qemu/*.xml", "lib/qemu/snapshot/*/*.xml", "disks/*", "state/journal.sqlite")


def paths(folder: Path, name: str) -> list[Path]:
    return [folder / "disks" / f"{name}-{n}.qcow2" for n in range(SERVERS[name][1])]


async def define(daemon: Daemon, name: str) -> None:
    (daemon.folder / "disks").mkdir(exist_ok=True)
    devices = [disk(make_disk(path)) for path in paths(daemon.folder, name)]
    nvram = daemon.folder / "disks" / f"{name}.nvram" if name == "uefi" else None
    if nvram:
        shutil.copyfile(UEFI_VARIABLES, nvram)
    place = daemon.folder / "disks"
    xml = domain_xml(name, devices, image=None, socket=place / f"{name}.sock", log=place / f"{name}.log", nvram=nvram)
    connection = libvirt.open(daemon.uri)
    connection.defineXML(xml)
    connection.close()
    hypervisor = await KvmHypervisor.open(daemon.uri)
    await hypervisor.adopt(name, server_id=SERVERS[name][0], account_id=ACCOUNT)
    await hypervisor.close()


def power(daemon: Daemon, name: str, call: str) -> None:
    connection = libvirt.open(daemon.uri)
    getattr(connection.lookupByName(name), call)()
    connection.close()


def write(daemon: Daemon, name: str, text: str) -> None:
    """Write while the guest is off."""
    for path in paths(daemon.folder, name):
        write_text(path, text)
    if name == "uefi":
        (daemon.folder / "disks" / f"{name}.nvram").write_text(text)


async def start_worker(cell: Cell, daemon: Daemon) -> Child:
    settings = {
        "NODE": "k1",
        "DRIVER": "kvm",
        "LIBVIRT_URI": daemon.uri,
        "STATE_DIR": str(daemon.folder / "state"),
        "FREE_FLOOR_MB": "0",
        "GRACE_SECONDS": "0",
    }
    program = Path(sys.executable).parent / "vps-snapshots-worker"
    environment = {f"VPS_SNAPSHOTS_{name}": value for name, value in settings.items()}
    environment |= await cell.stage.gateway_of("k1")
    worker = await Child.start("k1", (program, "run"), settings=environment, log=cell.stage.folder / "k1.log")

    async def knows_them() -> bool:
        found = (await cell.call("GET", "ops/servers/", by="operator")).body["results"]
        unpublished = [await cell.stage.redis.hexists(f"server:{one['id']}", "unpublished") for one in found]  # type: ignore[misc] # redis-py: sync or async
        return len(found) == len(SERVERS) and not any(unpublished)

    await until_told(knows_them)
    return worker


async def create(cell: Cell, name: str, snapshot: str) -> Any:
    body = {"server_id": SERVERS[name][0], "name": snapshot, "description": DESCRIPTION}
    answer = await cell.call("POST", "snapshots/", body)
    await cell.ended(answer.headers["X-Job-Id"])
    return answer.body["id"]


async def work(cell: Cell, daemon: Daemon, name: str) -> dict[str, Any]:
    """At the end, the disks and `first` hold A; `second` and the data that the restore overwrote hold B."""
    write(daemon, name, "A")
    first = await create(cell, name, "first")
    write(daemon, name, "B")
    if name == "plain":
        power(daemon, name, "create")  # no guest boots, so its power is cut
    second = await create(cell, name, "second")
    restore = await cell.ended(await cell.ask("POST", f"snapshots/{first}/restore/"))
    if name == "plain":
        power(daemon, name, "destroy")
    return {"first": first, "second": second, "restore": restore}


def files_of(folder: Path) -> dict[str, str]:
    """Files by their paths in the folder."""
    with closing(sqlite3.connect(folder / "state" / "journal.sqlite")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    found = [path for pattern in KEPT for path in folder.glob(pattern) if path.suffix not in (".log", ".sock")]
    return {str(path.relative_to(folder)): packed(path) for path in found}


async def played(cell: Cell, daemon: Daemon) -> dict[str, Any]:
    for name, permissions in (("operator", None), ("customer", ["snapshots:read", "snapshots:write"])):
        if permissions is None:
            cell.secrets[name] = (await cell.stage.new_operator("Olga Brandt")).secret
            continue
        token = {"name": name, "permissions": permissions, "account_id": ACCOUNT}
        cell.secrets[name] = (await cell.call("POST", "ops/tokens/", token, by="operator")).body["secret"]
    for name in SERVERS:
        await define(daemon, name)
    worker = await start_worker(cell, daemon)
    try:
        made = {name: await work(cell, daemon, name) for name in SERVERS}
    finally:
        await worker.stop()
    return {
        "recorded_at": round(time.time()),
        "folder": str(daemon.folder),
        "secrets": cell.secrets,
        "made": made,
        "answers": (await cell.call("GET", "snapshots/")).body,
        "files": files_of(daemon.folder),
        "disks": {},
        "redis": await dumped(cell.stage.redis),
    }


async def main(place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="vps-", dir="/tmp") as folder:
        daemon = Daemon(Path(folder))
        await daemon.start()
        try:
            async with staged() as stage:
                recording = await played(Cell(stage=stage), daemon)
        finally:
            daemon.stop_for_good()
    place.write_bytes(gzip.compress(json.dumps(recording, ensure_ascii=False, indent=0).encode(), mtime=0))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
