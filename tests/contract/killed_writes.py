"""Kills QEMU or qemu-img right before a certain one of its writes, which no kill after some time can hit reliably."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import needs

# In front of qemu-img: all changes of images after the first `after_runs` count their writes.
_SCRIPT = """#!/bin/sh
if [ "$1" = snapshot ] && [ "$2" != -l ] && [ "$3" != -l ] && read -r after_runs _ <{asked}; then
    echo run >>{runs}
    if [ "$(wc -l <{runs})" -gt "$after_runs" ]; then
        export {environment}
    fi
fi 2>/dev/null
exec {real} "$@"
"""
# QEMU writes from several threads, so that a debugger's count, which is one per thread, would miss some writes.
_LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int asked(void)
{
    int at_write = 0;
    FILE *file = fopen(getenv("ASKED"), "r");
    if (file) {
        if (fscanf(file, "%*d %d", &at_write) != 1) at_write = 0;
        fclose(file);
    }
    return at_write;
}

ssize_t pwrite64(int file, const void *data, size_t size, off_t at)
{
    static atomic_int writes;
    ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite64");
    int at_write = asked();
    if (at_write && atomic_fetch_add(&writes, 1) + 1 == at_write) {
        close(creat(getenv("KILLED"), 0600));
        kill(getpid(), SIGKILL);
    }
    return real(file, data, size, at);
}
"""


class KilledWrites:
    """Compiles a library that counts the writes, and writes a script in front of qemu-img that loads it."""

    def __init__(self, folder: Path) -> None:
        needs("gcc")
        self.programs = folder / "programs"  # to be put in front of PATH
        self._asked, self._runs, self._killed = (folder / name for name in ("asked", "runs", "killed"))
        source, library = folder / "writes.c", folder / "writes.so"
        source.write_text(_LIBRARY)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
        # for a program whose writes are to be counted while a kill is asked for
        self.environment = {"LD_PRELOAD": str(library), "ASKED": str(self._asked), "KILLED": str(self._killed)}
        self.programs.mkdir()
        script = self.programs / "qemu-img"
        environment = " ".join(f"{name}={value}" for name, value in self.environment.items())
        places = {"asked": self._asked, "runs": self._runs, "environment": environment}
        script.write_text(_SCRIPT.format(real=shutil.which("qemu-img"), **places))
        script.chmod(0o755)

    @contextmanager
    def kill(self, *, after_runs: int, at_write: int) -> Iterator[None]:
        """Within, all changes but the first `after_runs` are killed before that write, which is counted from 1. So is a
        program that runs with `environment`."""
        self._runs.unlink(missing_ok=True)
        self._killed.unlink(missing_ok=True)
        self._asked.write_text(f"{after_runs} {at_write}\n")
        try:
            yield
        finally:
            self._asked.unlink()

    @property
    def have_happened(self) -> bool:
        return self._killed.exists()
