"""Asked by libvirt before it starts a VM: one whose disks a job was just changing when all died must not boot on them.

A host that comes up after a power cut starts its VMs before its worker. A guest that boots on a disk whose revert was
broken off destroys the very snapshot that it was to go back to. The journal tells which servers those are; their jobs
put the disks right, and start those that had been running.

`python -m worker.start_guard WORKER.toml <DOMAIN.xml` ends with 75 where the VM must not start yet. It imports little,
to be quick. Of the settings it reads `state_dir`, from the file alone: libvirt has none of the worker's environment.
"""

import sqlite3
import sys
import tomllib
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path

from drivers.base import MARK_NAMESPACE
from worker.store.model import Step

NOT_YET = 75
STATE_DIR = Path("/var/lib/vps-snapshots")  # as in worker.settings
LOCKED_SECONDS = 2.0  # for the worker to end a write to its journal

# Broken off in one of these, a disk may be torn. A delete leaves nothing worse than lost space.
# Before ADAPTING is done, a guest would find a disk smaller than the one that its owner pays for.
TEARING = frozenset(
    {
        *(Step.CHECKING, Step.SNAPSHOTTING, Step.SAFEGUARDING, Step.CLEARING),
        *(Step.REVERTING, Step.ADAPTING, Step.UNDOING, Step.CLEANING),
    }
)


def may_start(journal: Path, domain_xml: str) -> bool:
    """Raises sqlite3.Error, ET.ParseError, ValueError or OverflowError."""
    mark = ET.fromstring(domain_xml).find(f"./metadata/{{{MARK_NAMESPACE}}}server")  # noqa: S314 - libvirt's own
    if mark is None or not journal.exists():
        return True
    under_way = (
        "SELECT step FROM jobs WHERE published = 0"  # for the index
        " AND outcome IS NULL AND json_extract(task, '$.server_id') = ?"
    )
    with closing(sqlite3.connect(f"file:{journal}?mode=rw", uri=True, timeout=LOCKED_SECONDS)) as database:
        return not any(step in TEARING for (step,) in database.execute(under_way, (int(mark.get("id", "0")),)))


def state_dir(settings: Path) -> Path:
    """Raises OSError or ValueError."""
    given = tomllib.loads(settings.read_text()) if settings.exists() else {}
    return Path(str(given.get("state_dir", STATE_DIR)))


def main() -> int:
    try:
        may = may_start(state_dir(Path(sys.argv[1])) / "journal.sqlite", sys.stdin.read())
    except (sqlite3.Error, ET.ParseError, OSError, ValueError, OverflowError) as error:
        sys.stderr.write(f"vps-snapshots can't say whether the VM may start: {error}\n")
        return 1
    if not may:
        sys.stderr.write("vps-snapshots: a job is putting the VM's disks right; it starts the VM when it is done\n")
    return 0 if may else NOT_YET


if __name__ == "__main__":
    sys.exit(main())
