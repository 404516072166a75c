"""The expected state of each server in a cell whose processes are killed, and its check on the real disks."""

import asyncio
import json
import re
import sqlite3
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivers.kvm.records import NAMESPACE
from tests.acceptance.cell import AcceptanceCell, Server, tags

DATA_BYTES = 64 << 10  # at the start of each disk: one repeated byte is its content
NVRAM_BYTES = 4 << 10  # no guest boots with it
SAFETY_PREFIX = "vps-safety-"
LOCKED_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.1
CHECK_ERRORS = 2  # exit code of `qemu-img check`: the image has errors
CHECK_LEAKS = 3  # only leaked clusters
# The flag is missing (with it, one reference is right). With another number of references, it would be a flag too many,
# which destroys data.
_WITHOUT_COPIED = re.compile(r"ERROR OFLAG_COPIED .* refcount=1$")
# qemu-img allocates a cluster beyond the end of the file before it writes to it. If it is killed in between, the
# cluster is unused, and no `check` finds or repairs it until the file has grown past it.
LEAKS_OF_A_CHANGE = 1
LOOKS = 5


@dataclass(kw_only=True)
class Expected:
    """The expected state of a server while no job is running."""

    server: Server
    running: bool
    content: int  # the byte on every disk
    snapshots: dict[int, int] = field(default_factory=dict)  # ID -> the byte that it holds
    undoable: str | None = None  # the job of the restore that can be undone
    overwrote: dict[str, int] = field(default_factory=dict)  # job ID of a restore -> the byte that it overwrote
    nvram: Path | None = None  # UEFI variables: a file of the same byte, copied for each snapshot
    was_started: bool = False  # by a host that booted
    must_run: bool = False  # the job that was running at the kill had found the server running
    runs_by_nature: bool = False  # started again, as an operator would, after its QEMU was killed
    qemu_was_killed: bool = False  # by the campaign: metadata that it had not written yet is leaked
    change_was_killed: bool = False  # by the campaign: see LEAKS_OF_A_CHANGE
    may_drop_bitmaps: bool = False  # since its last check, a process was killed that may have been opening a disk
    # Changes by other tools. The byte of a disk that was not reverted with the others:
    stayed: dict[Path, int] = field(default_factory=dict)
    detached: list[Path] = field(default_factory=list)  # disks that no longer belong to the server
    held: dict[str, frozenset[Path]] = field(default_factory=dict)  # tag -> disks at that time
    sizes: dict[Path, int] = field(default_factory=dict)  # virtual bytes of all disks that were ever enlarged
    bitmaps: dict[Path, frozenset[str]] = field(default_factory=dict)  # of incremental backups
    dropped: set[Path] = field(default_factory=set)  # disks that lost bitmaps to a kill: what they used is leaked
    disturbed: bool = False  # a tool changed it during a job: its changes are read afterward
    damaged: bool = False  # a disk, repairably; the next job repairs it

    def holders(self, tag: str) -> frozenset[Path]:
        return self.held.get(tag, frozenset(self.server.disks))

    def differs(self, tag: str) -> bool:
        """Whether the snapshot holds other disks than the server has now."""
        return self.holders(tag) != frozenset(self.server.disks)


def write(expected: Expected, content: int) -> None:
    """Write as a guest would that has shut down since."""
    expected.content = content
    expected.stayed.clear()
    for disk in expected.server.disks:
        _qemu_io(disk, f"write -P {content} 0 {DATA_BYTES}")
    if expected.nvram is not None:
        expected.nvram.write_bytes(bytes([content]) * NVRAM_BYTES)


def content(disk: Path) -> int | None:
    """The byte on the disk; None if the disk is torn. Can read beside a running QEMU that does not write."""
    return _one_byte(disk)


def held(disk: Path, tag: str) -> int | None:
    return _one_byte(disk, "-l", f"snapshot.name={tag}")


async def violations(cell: AcceptanceCell, expected: Expected, safety: set[str]) -> list[str]:
    """All violations of one server. `safety`: tags that the journal tracks."""
    server, found = expected.server, []
    _, page = await cell.call("GET", f"/api/v1/snapshots/?server_id={server.id}&page_size=500")
    results: Any = page["results"]
    completed = {s["id"] for s in results if s["status"] == "completed"}
    if completed != set(expected.snapshots):
        found.append(f"listed as completed {sorted(completed)}, expected {sorted(expected.snapshots)}")
    if unended := [s["id"] for s in results if s["status"] == "in_progress"]:
        found.append(f"in progress with no job: {unended}")
    _, shown = await cell.call("GET", f"/api/v1/servers/{server.id}/")
    if (shown["snapshots"], shown["job"]) != (len(expected.snapshots), None):
        found.append(f"counts {shown['snapshots']} of {len(expected.snapshots)} snapshots, busy with {shown['job']}")
    _, jobs = await cell.call("GET", f"/api/v1/jobs/?server_id={server.id}&page_size=500")
    listed_jobs: Any = jobs["results"]
    if unended := [job["id"] for job in listed_jobs if job["state"] in {"queued", "in_progress"}]:
        found.append(f"jobs without an end: {unended}")
    found += await asyncio.to_thread(disk_violations, expected, completed, safety)
    found += _list_violations(cell.lab.folder, expected, safety)
    if cell.is_on(server) is not expected.running:
        found.append(f"power: on is {cell.is_on(server)}, expected {expected.running}")
    return [f"server {server.id}: {violation}" for violation in found]


def _list_violations(libvirt: Path, expected: Expected, safety: set[str]) -> list[str]:
    """Violations in the records of snapshots, read from libvirt's files: the domain's metadata must have exactly the
    existing snapshots, and libvirt's own list none, or the server could not be migrated."""
    found = []
    name = expected.server.name
    listed = {path.stem for path in (libvirt / "lib" / "qemu" / "snapshot" / name).glob("*.xml")}
    if listed:
        found.append(f"libvirt lists {sorted(listed)}")
    definition = ET.parse(libvirt / "etc" / "qemu" / f"{name}.xml")  # noqa: S314 - libvirt's own
    written = {snapshot.get("tag", "") for snapshot in definition.iterfind(f".//{{{NAMESPACE}}}snapshot")}
    ours = {f"vps-{snapshot}" for snapshot in expected.snapshots}
    if ours - written or written - ours - safety:
        found.append(f"written down are {sorted(written)}, expected {sorted(ours)}")
    return found


def _nvram_violations(expected: Expected, safety: set[str]) -> list[str]:
    if expected.nvram is None:
        return []
    image = expected.server.disks[0]
    copies = {path.name.removeprefix(f"{image.name}."): path for path in image.parent.glob(f"{image.name}.*.nvram")}
    bytes_of = {f"vps-{snapshot}.nvram": byte for snapshot, byte in expected.snapshots.items()}
    found = [
        f"{expected.nvram.name}, {name}: not as expected"
        for name, byte in {"now": expected.content, **bytes_of}.items()
        if (path := copies.get(name) if name != "now" else expected.nvram) is None
        or path.read_bytes() != bytes([byte]) * NVRAM_BYTES
    ]
    if stray := set(copies) - set(bytes_of) - {f"{tag}.nvram" for tag in safety}:
        found.append(f"{expected.nvram.name}: nobody remembers {stray}")
    return found


def disk_violations(expected: Expected, completed: set[int], safety: set[str]) -> list[str]:
    found = _nvram_violations(expected, safety)
    for disk in [*expected.server.disks, *expected.detached]:
        on_disk = set(tags(disk))
        if stray := {tag for tag in on_disk if tag.startswith(SAFETY_PREFIX)} - safety:
            found.append(f"{disk.name}: safety snapshots that nobody remembers: {stray}")
        ours = {tag for tag in on_disk if not tag.startswith(SAFETY_PREFIX)}
        if ours != {tag for snapshot in completed if disk in expected.holders(tag := f"vps-{snapshot}")}:
            found.append(f"{disk.name}: has {sorted(ours)}, the store lists {sorted(completed)}")
        for snapshot, byte in expected.snapshots.items():
            if f"vps-{snapshot}" in ours and (kept := held(disk, f"vps-{snapshot}")) != byte:
                found.append(f"{disk.name}: snapshot {snapshot} holds {kept}, expected {byte}")
    for disk in expected.server.disks:
        if (now := content(disk)) != (byte := expected.stayed.get(disk, expected.content)):
            found.append(f"{disk.name}: content {now}, expected {byte}")
        found += [f"{disk.name}: {violation}" for violation in _others_violations(expected, disk)]
        if not expected.running:
            code, leaks = _checked(disk)
            # A repair would invalidate the bitmaps of a backup chain, so leaks on such a disk stay.
            waits = leaks <= LEAKS_OF_A_CHANGE or disk in expected.dropped or look(disk).bitmaps
            spilt = expected.qemu_was_killed or (expected.change_was_killed and waits)
            if code and not (code == CHECK_LEAKS and spilt):
                found.append(f"{disk.name}: qemu-img check answers {code}, {leaks} clusters leaked")
    return found


def _others_violations(expected: Expected, disk: Path) -> Iterator[str]:
    """Violations on a disk that other tools have changed."""
    if disk not in expected.sizes and disk not in expected.bitmaps:
        return
    now = look(disk)
    if now.virtual_bytes != (size := expected.sizes.get(disk, now.virtual_bytes)):
        yield f"has {now.virtual_bytes} bytes, expected {size}"
    if now.bitmaps != (names := expected.bitmaps.get(disk, now.bitmaps)):
        yield f"has the bitmaps {sorted(now.bitmaps)}, expected {sorted(names)}"


@dataclass(frozen=True, kw_only=True)
class Look:
    virtual_bytes: int
    bitmaps: frozenset[str]


def look(disk: Path) -> Look:
    command = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(disk)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    bitmaps = found["format-specific"]["data"].get("bitmaps", [])
    return Look(virtual_bytes=found["virtual-size"], bitmaps=frozenset(bitmap["name"] for bitmap in bitmaps))


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    """The journal's state of a job that has started but not ended."""

    step: str
    was_running: bool


def under_way(journal: Path) -> dict[int, UnderWay]:
    """Running jobs by server ID."""
    rows = _query(
        journal,
        "SELECT json_extract(task, '$.server_id'), step, json_extract(facts, '$.was_running')"
        " FROM jobs WHERE outcome IS NULL ORDER BY rowid",
    )
    return {server_id: UnderWay(step=step, was_running=bool(on)) for server_id, step, on in rows}


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of a job according to the journal."""

    row: int
    job_id: str
    server_id: int
    kind: str
    snapshot_id: int
    undoes: str | None
    state: str
    code: str | None  # reason of the failure
    stranded: bool
    present_only: bool  # a restore with `disks=present`
    notes: frozenset[str]  # by code
    live: bool  # a live create of a running server

    @property
    def tag(self) -> str:
        """The tag that a restore or an undo reverts to, or that a create makes."""
        return f"{SAFETY_PREFIX}{self.undoes}" if self.undoes else f"vps-{self.snapshot_id}"


def ends(journal: Path, *, after: int) -> list[End]:
    """The jobs that ended and were journaled after that row, in the order of their start."""
    rows = _query(
        journal,
        "SELECT rowid, id, json_extract(task, '$.server_id'), json_extract(task, '$.kind'),"
        " json_extract(task, '$.snapshot_id'), json_extract(task, '$.undoes'), json_extract(outcome, '$.state'),"
        " json_extract(outcome, '$.failure.code'), coalesce(json_extract(outcome, '$.failure.stranded'), 0),"
        " coalesce(json_extract(task, '$.present_only'), 0), json_extract(outcome, '$.notes'),"
        " coalesce(json_extract(facts, '$.live'), 0)"
        " FROM jobs WHERE outcome IS NOT NULL AND rowid > ? ORDER BY rowid",
        after,
    )
    return [
        End(
            row=row,
            job_id=job_id,
            server_id=server_id,
            kind=kind,
            snapshot_id=snapshot_id,
            undoes=undoes,
            state=state,
            code=code,
            stranded=bool(stranded),
            present_only=bool(present),
            notes=frozenset(note["code"] for note in json.loads(notes or "[]")),
            live=bool(live),
        )
        for row, job_id, server_id, kind, snapshot_id, undoes, state, code, stranded, present, notes, live in rows
    ]


def owed(journal: Path) -> int:
    """Jobs that have started but not ended, or are not published."""
    return len(_query(journal, "SELECT 1 FROM jobs WHERE published = 0"))


def safety_tags(journal: Path) -> set[str]:
    return {tag for (tag,) in _query(journal, "SELECT tag FROM spare_tags")}


def _query(journal: Path, statement: str, *values: int) -> list[tuple[Any, ...]]:
    if not journal.exists():
        return []
    database = sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=5)
    try:
        return database.execute(statement, values).fetchall()
    except sqlite3.OperationalError:
        return []  # it is being written, or its writer was killed: the next check reads it
    finally:
        database.close()


def _checked(disk: Path) -> tuple[int, int]:
    """The exit code of `qemu-img check`, and the number of leaked clusters.

    An interrupted delete may leave tables without their flag COPIED: QEMU then copies a table that it could change in
    place. Nothing repairs them if the server is started before the worker. They count as leaks.
    """
    done = unlocked("qemu-img", "check", "--output=json", "-f", "qcow2", str(disk))
    code = done.returncode
    if code == CHECK_ERRORS:
        errors = [line for line in done.stderr.decode().splitlines() if line.startswith("ERROR")]
        if errors and all(_WITHOUT_COPIED.match(line) for line in errors):
            code = CHECK_LEAKS
    return code, json.loads(done.stdout or "{}").get("leaks", 0)


def _qemu_io(disk: Path, command: str) -> None:
    unlocked("qemu-io", "-f", "qcow2", "-c", command, str(disk)).check_returncode()


def unlocked(*command: str) -> "subprocess.CompletedProcess[bytes]":
    """The output of the command once no other process uses its disk: the worker may be deleting a safety tag."""
    deadline = time.monotonic() + LOCKED_SECONDS
    while True:
        done = subprocess.run(command, check=False, capture_output=True)
        if b"lock" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(LOOK_AGAIN_SECONDS)


def _one_byte(disk: Path, *options: str) -> int | None:
    """Reads again if the disk looks torn: the worker may just have changed the image while it deleted a safety tag."""
    for _ in range(LOOKS):
        data = _converted(disk, *options)
        if len(data) == DATA_BYTES and data == data[:1] * DATA_BYTES:
            return data[0]
        time.sleep(LOOK_AGAIN_SECONDS)
    return None


def _converted(disk: Path, *options: str) -> bytes:
    raw = disk.with_suffix(".look")
    command = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", *options, str(disk), str(raw)]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        return b""
    with raw.open("rb") as file:
        return file.read(DATA_BYTES)
