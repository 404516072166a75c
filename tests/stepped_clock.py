"""A program's wall clock that a test can set forward or back while the program is running.

libfaketime does the same, but not for redis-server: its allocator asks for the time while the library starts.
"""

import shutil
import struct
import subprocess
from datetime import timedelta
from pathlib import Path

from tests.conftest import needs

_SOURCE = Path(__file__).with_suffix(".c")


class SteppedClock:
    """`environment`: for programs that are to have this clock, which `file` sets."""

    def __init__(self, folder: Path) -> None:
        needs("gcc")
        library = folder / "stepped_clock.so"
        gcc = shutil.which("gcc") or "gcc"
        subprocess.run([gcc, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE)], check=True)
        self.file = folder / "ahead_ms"
        self.file.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self.file)}

    def set(self, ahead: timedelta) -> None:
        """Set the clock ahead of the machine's by that much."""
        with self.file.open("r+b") as file:
            file.write(struct.pack("q", round(ahead / timedelta(milliseconds=1))))
