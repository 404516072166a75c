"""Called by a libvirt hook before each VM start: refuses a VM whose disks an interrupted job was changing.

After a power failure the host may start its VMs before its worker. A guest that boots from a disk with an
interrupted revert destroys the snapshot. The journal shows which servers are affected; their jobs repair the disks when
the worker resumes them, and start the servers that were running.

`python -I -m worker.start_guard WORKER.toml <DOMAIN.xml` exits with 75 if the VM must not start yet. It imports few
modules to start fast. It reads only `state_dir`, and only from the file, because libvirt does not have the worker's
environment.
"""

import sqlite3
import sys
import tomllib
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path

# `drivers.base` and `worker.store.model` have these two as well: importing them took as long as all the rest, and each
# start of a VM waits for it. A test compares them.
MARK_NAMESPACE = "https://vps-snapshots.dev/libvirt/1"
NOT_YET = 75
STATE_DIR = Path("/var/lib/vps-snapshots")  # the default in worker.settings
LOCKED_SECONDS = 2.0  # limit for the worker to finish a write to its journal

# Steps that can leave a disk inconsistent if interrupted. An interrupted delete only leaks space.
# ADAPTING: until it is done, a disk may be smaller than the customer's disk should be.
TEARING = frozenset(
    {
        *("checking", "snapshotting", "thawing", "safeguarding", "clearing"),
        *("reverting", "adapting", "undoing", "cleaning"),
    }
)


def may_start(journal: Path, domain_xml: str) -> bool:
    """Whether no unfinished job of the domain is in a step of TEARING.

    Raises sqlite3.Error, ET.ParseError, ValueError or OverflowError.
    """
    mark = ET.fromstring(domain_xml).find(f"./metadata/{{{MARK_NAMESPACE}}}server")  # noqa: S314 - libvirt's own
    if mark is None or not journal.exists():
        return True
    unfinished = (
        "SELECT step FROM jobs WHERE published = 0"  # so that SQLite uses the index
        " AND outcome IS NULL AND json_extract(task, '$.server_id') = ?"
    )
    with closing(sqlite3.connect(f"file:{journal}?mode=rw", uri=True, timeout=LOCKED_SECONDS)) as database:
        return not any(step in TEARING for (step,) in database.execute(unfinished, (int(mark.get("id", "0")),)))


def state_dir(settings: Path) -> Path:
    """The worker's state folder, as its settings file names it. Raises OSError or ValueError."""
    given = tomllib.loads(settings.read_text()) if settings.exists() else {}
    return Path(str(given.get("state_dir", STATE_DIR)))


def main() -> int:
    try:
        may = may_start(state_dir(Path(sys.argv[1])) / "journal.sqlite", sys.stdin.read())
    except (sqlite3.Error, ET.ParseError, OSError, ValueError, OverflowError) as error:
        sys.stderr.write(f"vps-snapshots: cannot tell whether the VM may start: {error}\n")
        return 1
    if not may:
        sys.stderr.write("vps-snapshots: a job is repairing the VM's disks and starts the VM when it is done\n")
    return 0 if may else NOT_YET


if __name__ == "__main__":
    sys.exit(main())
