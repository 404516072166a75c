"""A program's command in a process that has already imported its modules, which is most of what a start costs.

For tests of hundreds of commands; others start the real programs.
"""

import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from api.cli.main import COMMANDS

_WARM = multiprocessing.get_context("forkserver")
_MODULES = ("api.cli.wire", "api.main", "api.serving", "api.gateway.main", "worker.main")
_MODULES_OF_COMMANDS = {command.module for command in COMMANDS}
_WARM.set_forkserver_preload(["__main__", *_MODULES, *_MODULES_OF_COMMANDS, __name__])
_LIMIT_SECONDS = 60.0


def run(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], *, program: str
) -> subprocess.CompletedProcess[str]:
    """Run the module's `main` until it ends. `program`: its name in messages."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = start(module, arguments, environment, program=program, out=out, err=err)
        process.join(_LIMIT_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"it did not end: {arguments}")
        return subprocess.CompletedProcess([program, *arguments], process.exitcode, out.read_text(), err.read_text())


def start(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], *, program: str, out: Path, err: Path
) -> ForkServerProcess:
    """Start the module's `main` with its output in these files. Only one thread may wait for its end: of two at once,
    one gets the exit code 255."""
    process = _WARM.Process(target=_main, args=(module, [program, *arguments], dict(environment), out, err))
    process.start()
    return process


def _main(module: str, argv: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = argv
    importlib.import_module(module).main()
