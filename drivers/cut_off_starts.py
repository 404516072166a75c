"""Removes the status files of domain starts that were interrupted because libvirt was killed.

libvirt 9.0 writes a domain's status file with `pid='0'` before it forks, and again once the process exists, which then
executes QEMU. If libvirt is killed in between, the next libvirt considers the domain active and locks it forever:
every call on it waits 30 s and fails. No QEMU has run for such a domain, so removing the status file is enough.

`python -I -m drivers.cut_off_starts FOLDER` does this for libvirtd (FOLDER: /run/libvirt/qemu) before it starts.
"""

import os
import sys
from pathlib import Path

from drivers import safe_files

_HEAD_BYTES = 4096  # the root element follows a comment of 250 bytes
_ROOT, _NO_QEMU = b"<domstatus ", b" pid='0'"


def forget_cut_off_starts(folder: Path) -> list[str]:
    """Remove the status files of interrupted starts from the folder; returns the names of their domains.

    The folder has one status file for each active domain. No libvirt may be running on it.
    """
    forgotten = [status for status in folder.glob("*.xml") if _was_cut_off(status)]
    for status in forgotten:
        status.unlink(missing_ok=True)
    return [status.stem for status in forgotten]


def _was_cut_off(status: Path) -> bool:
    with safe_files.regular(status.absolute()) as file:
        _, found, rest = os.pread(file, _HEAD_BYTES, 0).partition(_ROOT)
    return bool(found) and _NO_QEMU in rest.partition(b">")[0]


if __name__ == "__main__":
    for name in forget_cut_off_starts(Path(sys.argv[1])):
        sys.stdout.write(f"removed the interrupted start of {name}\n")
