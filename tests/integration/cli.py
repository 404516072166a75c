"""`vps-snapshots` as a person or a script runs it: a process, in a pipe or at a terminal."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from fcntl import ioctl
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from struct import pack
from tempfile import TemporaryDirectory
from typing import Any

from api.cli.later import Later
from tests.integration import warm
from tests.queueing import PATIENCE_SECONDS

PROGRAM = Path(sys.executable).parent / "vps-snapshots"


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int | None
    out: str
    err: str

    @property
    def body(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(kw_only=True)
class Terminal:
    """The terminal of a program: its screen, and keyboard input."""

    process: asyncio.subprocess.Process
    keyboard: int
    shown: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def shows(self, text: str) -> str:
        """Wait until the text is on the screen. Returns all output so far without control sequences."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while text not in plain(self.shown):
                self.changed.clear()
                await self.changed.wait()
        return plain(self.shown)

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    async def ends(self) -> int:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.process.wait()


def _at_its_terminal() -> None:
    """Make Ctrl-C reach the program, also if the tests run in the background, where a shell makes it ignored."""
    ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True, kw_only=True)
class Cli:
    url: str
    token: str
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))  # a test may start dozens at once

    def environment(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("VPS_SNAPSHOTS_")}
        clean |= {"COLUMNS": "", "LINES": ""}  # of the terminal that runs the tests
        ours = {"VPS_SNAPSHOTS_URL": self.url, "VPS_SNAPSHOTS_TOKEN": self.token, "TERM": "xterm-256color"}
        return {name: value for name, value in (clean | ours | more).items() if value}

    async def run(self, *arguments: object, **environment: str) -> Done:
        """Run a command in a pipe until it ends."""
        async with self._slots:
            with TemporaryDirectory() as folder:
                out, err = Path(folder) / "out", Path(folder) / "err"
                words, given = list(map(str, arguments)), self.environment(**environment)
                process = warm.start("api.cli.main", words, given, program=PROGRAM.name, out=out, err=err)
                await _ended(process, arguments)
                done = Done(code=process.exitcode, out=out.read_text(), err=err.read_text())
        said = done.out + done.err
        assert "\x1b" not in said, said
        assert not self.token or self.token not in said, said
        assert "Traceback" not in said, said
        return done

    @asynccontextmanager
    async def running(self, *arguments: object, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *map(str, arguments),
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    @asynccontextmanager
    async def at_terminal(
        self, *arguments: object, width: int = 100, height: int = 30, **environment: str
    ) -> AsyncIterator[Terminal]:
        keyboard, screen = pty.openpty()
        ioctl(screen, termios.TIOCSWINSZ, pack("HHHH", height, width, 0, 0))
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *map(str, arguments),
            env=self.environment(**environment),
            stdin=screen,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            preexec_fn=_at_its_terminal,
        )
        terminal = Terminal(process=process, keyboard=keyboard)

        def read() -> None:
            terminal.shown += os.read(keyboard, 65536).decode(errors="replace")
            terminal.changed.set()

        asyncio.get_running_loop().add_reader(keyboard, read)
        try:
            yield terminal
        finally:
            asyncio.get_running_loop().remove_reader(keyboard)
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()
            os.close(keyboard)
            os.close(screen)


async def _ended(process: ForkServerProcess, arguments: object) -> None:
    """Return when it has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ended.wait()
    except TimeoutError:
        raise AssertionError(f"it did not end: {arguments}") from None
    finally:
        loop.remove_reader(process.sentinel)
        if not ended.is_set():
            process.kill()
        process.join()


def commands(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command by its words."""
    if isinstance(command, Later):
        command = command.load()
    inner = getattr(command, "commands", None)
    if inner is None:
        return {path: command}
    return {words: one for name, sub in inner.items() for words, one in commands(sub, (*path, name)).items()}


def plain(text: str) -> str:
    return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>(][0B]?)", "", text)
