"""The domains of the fake hypervisor, and the file that keeps them across restarts."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from drivers.base import Contents, Power, SnapshotSpec


@dataclass(kw_only=True)
class FakeDisk:
    content: str = "installed"  # the guest's data
    tags: dict[str, str] = field(default_factory=dict)  # tag -> its content
    image: str = field(default_factory=lambda: uuid4().hex)  # identifies the file, wherever it is attached
    tag_bytes: dict[str, int] = field(default_factory=dict)  # tag -> size of the disk
    # dirty bitmaps of incremental backups; a revert is refused while there are any
    bitmaps: list[str] = field(default_factory=list)
    can_grow: bool = True  # False: an old format that cannot be enlarged while it has snapshots
    dirty: bool = False  # a change was interrupted
    damaged: bool = False  # not because of an interrupted change; the guest does not notice, and `repair` fixes it
    rotten: bool = False  # beyond repair, but only a check finds it; a guest can run on it
    ruined: bool = False  # beyond repair and marked corrupt
    unsupported: str = ""  # why it cannot be snapshotted, to follow "disk vda "
    data_mb: int = 2560
    virtual_bytes: int = 20 << 30


@dataclass(kw_only=True)
class FakeServer:
    name: str
    server_id: int | None = None  # None: a domain that was not adopted
    account_id: int = 0
    power: Power = Power.OFF
    shut_down: bool | None = None  # how it was stopped, if it is off; None: unknown
    presses_needed: int = 1  # presses of the power button until the guest reacts
    deaf: bool = False  # never reacts to the power button
    disks: dict[str, FakeDisk] = field(default_factory=lambda: {"vda": FakeDisk()})
    detached: dict[str, FakeDisk] = field(default_factory=dict)  # no longer attached, but the files still exist
    skipped: dict[str, str] = field(default_factory=dict)  # target -> reason
    nvram: str | None = None
    nvram_copies: dict[str, str] = field(default_factory=dict)
    generation: int | None = None  # None: the server has no VM generation ID
    listed: dict[str, SnapshotSpec] = field(default_factory=dict)  # the records in the domain's metadata, by tag
    contents: dict[str, Contents] = field(default_factory=dict)  # likewise
    checkpoints: list[str] = field(default_factory=list)
    in_use: str = ""  # what another tool does with it, to follow "the server "; for example "is being migrated"
    reduced: list[str] = field(default_factory=list)  # what it has less of after a stop: "2 vCPUs instead of 4"
    agent: bool = False  # the guest has an agent that answers
    frozen: bool = False  # its file systems are frozen: it hangs at its next write, and ignores the power button
    needs_stop: str = ""  # why no snapshot can be taken while it runs, to follow "disk vda "
    held: bool = False  # migration is blocked
    current: str = ""  # the tag that someone has reverted to outside the driver

    def reduced_by_a_stop(self) -> tuple[str, ...]:
        return tuple(self.reduced) if self.power is Power.ON else ()


_SERVER = TypeAdapter(FakeServer)


class StateFile:
    """A file with one JSON line per change, so that a change does not rewrite the whole file and a kill loses nothing.

    A server's last line counts. Before a process's first change the file is compacted and replaced by a rename.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._servers: dict[str, FakeServer] = {}  # only servers that were changed
        self._compact = False

    def read(self) -> dict[str, FakeServer]:
        if self._path.exists():
            for line in self._path.read_bytes().splitlines():
                try:
                    server = _SERVER.validate_json(line)
                except ValidationError:
                    continue  # the process was killed while writing the last line: that change did not happen
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
