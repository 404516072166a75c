"""What the fake hypervisor knows of its domains, and the file that keeps it over restarts."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from drivers.base import Contents, Power, SnapshotSpec


@dataclass(kw_only=True)
class FakeDisk:
    content: str = "installed"  # the guest's data
    tags: dict[str, str] = field(default_factory=dict)  # tag -> the content that it holds
    image: str = field(default_factory=lambda: uuid4().hex)  # the file itself, wherever it is attached
    tag_bytes: dict[str, int] = field(default_factory=dict)  # tag -> the size that the disk had
    bitmaps: list[str] = field(default_factory=list)  # of incremental backups: a revert is refused where one is
    can_grow: bool = True  # False: an old format, which can't be enlarged while it has snapshots
    dirty: bool = False
    damaged: bool = False  # by no change of ours; the guest does not notice, `repair` mends it
    rotten: bool = False  # damaged so that only a check shows it, and nothing mends it; a guest runs on it
    ruined: bool = False  # damaged beyond repair, for all to see
    unsupported: str = ""  # why no snapshot can hold it
    data_mb: int = 2560
    virtual_bytes: int = 20 << 30


@dataclass(kw_only=True)
class FakeServer:
    name: str
    server_id: int | None = None  # None: a domain that was not adopted
    account_id: int = 0
    power: Power = Power.OFF
    presses_needed: int = 1  # of the power button, until the guest hears one
    deaf: bool = False  # hears none
    disks: dict[str, FakeDisk] = field(default_factory=lambda: {"vda": FakeDisk()})
    detached: dict[str, FakeDisk] = field(default_factory=dict)  # not the server's any more, and still there
    skipped: dict[str, str] = field(default_factory=dict)  # target -> reason
    nvram: str | None = None
    nvram_copies: dict[str, str] = field(default_factory=dict)
    generation: int | None = None  # of a server that has a VM generation id
    listed: dict[str, SnapshotSpec] = field(default_factory=dict)  # written down with the domain
    contents: dict[str, Contents] = field(default_factory=dict)  # likewise
    checkpoints: list[str] = field(default_factory=list)
    in_use: str = ""  # what another tool does with it: "is being migrated"
    reduced: list[str] = field(default_factory=list)  # what it has less of after a stop: "2 vCPUs instead of 4"
    held: bool = False  # nobody can migrate it
    current: str = ""  # the tag that someone went back to past the driver

    def reduced_by_a_stop(self) -> tuple[str, ...]:
        return tuple(self.reduced) if self.power is Power.ON else ()


_SERVER = TypeAdapter(FakeServer)


class StateFile:
    """One line of JSON for each change: a fleet's file is never rewritten for one server, a kill loses nothing written.

    Of a server's lines the last counts. What is old is dropped, with a rename, before the first change of a process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._servers: dict[str, FakeServer] = {}  # those that were ever changed
        self._compact = False

    def read(self) -> dict[str, FakeServer]:
        if self._path.exists():
            for line in self._path.read_bytes().splitlines():
                try:
                    server = _SERVER.validate_json(line)
                except ValidationError:
                    continue  # the process was killed while it wrote the last line: that change never was
                self._servers[server.name] = server
        return dict(self._servers)

    def write(self, server: FakeServer) -> None:
        self._servers[server.name] = server
        if self._compact:
            with self._path.open("ab") as file:
                file.write(_line(server))
            return
        fresh = self._path.with_name(f"{self._path.name}.new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(b"".join(_line(server) for server in self._servers.values()))
        os.replace(fresh, self._path)
        self._compact = True


def _line(server: FakeServer) -> bytes:
    return _SERVER.dump_json(server) + b"\n"
