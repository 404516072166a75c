"""Domains that a libvirt which was killed had begun to start: forget the start, before the next libvirt reads of it.

libvirt 9.0 writes a domain's status before it makes the QEMU (with `pid='0'`), again when the process is there, and
only then lets it become QEMU. Killed in between it leaves a domain that its successors take for active and locked for
ever: they neither look for a QEMU of that number nor answer any call on it (each waits 30 s and fails). No such QEMU
has ever run, so the status is all that there is to remove.

`python -m drivers.cut_off_starts FOLDER` does it for a libvirtd, whose folder is /run/libvirt/qemu, before it starts.
"""

import sys
from pathlib import Path

_HEAD_BYTES = 4096  # the root element comes after a comment of 250
_ROOT, _NO_QEMU = b"<domstatus ", b" pid='0'"


def forget_cut_off_starts(folder: Path) -> list[str]:
    """The names of the domains whose status was removed from the folder, where libvirt keeps one file for each that
    is active. No libvirt may be at work there."""
    forgotten = [status for status in folder.glob("*.xml") if _was_cut_off(status)]
    for status in forgotten:
        status.unlink(missing_ok=True)
    return [status.stem for status in forgotten]


def _was_cut_off(status: Path) -> bool:
    with status.open("rb") as file:
        _, found, rest = file.read(_HEAD_BYTES).partition(_ROOT)
    return bool(found) and _NO_QEMU in rest.partition(b">")[0]


if __name__ == "__main__":
    for name in forget_cut_off_starts(Path(sys.argv[1])):
        sys.stdout.write(f"forgot the start of {name} that was cut off\n")
