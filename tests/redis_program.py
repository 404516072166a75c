"""The program that the tests start as `redis-server`: the first on PATH, or the environment variable REDIS_SERVER.

Only this module reads the variable. Tests, the programs under test and their children all search PATH.
"""

import atexit
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

NAME = "redis-server"
SETTING = "REDIS_SERVER"
# error of a script whose account lacks a permission; the second since Redis 7.2 and in Valkey
NOT_ALLOWED_IN_SCRIPT = "The user executing the script can't|ACL failure in script"


def choose() -> None:
    """Raises FileNotFoundError if the setting names no program."""
    wanted = os.environ.get(SETTING)
    if not wanted:
        return
    program = shutil.which(wanted)
    if program is None:
        raise FileNotFoundError(f"{SETTING}={wanted}: no such program")
    folder = tempfile.mkdtemp(prefix="vps-redis-program-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (Path(folder) / NAME).symlink_to(Path(program).absolute())
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def version() -> str:
    """`Redis 7.0.15` or `Valkey 9.1.2`; empty without a program."""
    if shutil.which(NAME) is None:
        return "none"
    done = subprocess.run([NAME, "--version"], capture_output=True, text=True, check=False, timeout=60)
    found = re.match(r"(\w+) server v=(\S+)", done.stdout)
    return f"{found[1]} {found[2]}" if found else "?"
