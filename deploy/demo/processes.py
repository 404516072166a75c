"""Child processes that end with their parent."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

STOP_SECONDS = 340.0  # the worker may take 300 s to finish its running jobs


class Child:
    """A child process.

    It has its own process group, so that Ctrl-C does not reach it and the parent decides the order of stopping. The
    kernel sends it SIGTERM if the parent is killed.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str | Path], *, settings: Mapping[str, str], log: Path | None
    ) -> Self:
        """`settings` are added to our environment. The output is appended to `log`; None: to our own output."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("VPS_SNAPSHOTS_")}
        output = log.open("ab") if log else None
        try:
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "TERM", "--", *command),
                env={**environment, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )
        finally:
            if output:
                output.close()
        return cls(name, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> int:
        """Wait until it ends; returns the exit status, negative for the signal that killed it."""
        return await self._process.wait()

    async def stop(self) -> int:
        """Send SIGTERM; kill it and its children after STOP_SECONDS. May be called again."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self.kill()
        return await self._process.wait()

    def kill(self) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
