"""The real worker program in a separate process, with the fake driver."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivers.fake_state import FakeServer, StateFile
from tests.gateway import gateway
from tests.queueing import until

FIRST, SECOND = 12345, 12346  # IDs of its servers


@dataclass(kw_only=True)
class WorkerProcess:
    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)  # its output so far

    def has_said(self, event: str, **fields: Any) -> bool:
        return any(_says(line, event, fields) for line in self.lines)

    async def says(self, event: str, **fields: Any) -> None:
        await until(lambda: self.has_said(event, **fields))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())


def _says(line: str, event: str, fields: dict[str, Any]) -> bool:
    try:
        said = json.loads(line)
    except ValueError:
        return False
    return bool(said.get("event") == event and fields.items() <= said.items())


@asynccontextmanager
async def worker_process(redis_socket: Path, state_dir: Path, **settings: str) -> AsyncIterator[WorkerProcess]:
    """A worker of node n1 with two servers, and a gateway for it. Killed at the end if it is still running."""
    async with (
        gateway(redis_socket, node=settings.get("NODE", "n1")) as reached,
        at_work(state_dir, reached.environment | settings) as worker,
    ):
        yield worker


@asynccontextmanager
async def at_work(state_dir: Path, settings: dict[str, str]) -> AsyncIterator[WorkerProcess]:
    """`settings`: without their prefix; they contain its gateway's address."""
    ours = {
        "DRIVER": "fake",
        "FAKE_SERVERS": "2",
        "NODE": "n1",
        "START_SECONDS": "1",
    }
    ours |= {"STATE_DIR": str(state_dir)} | settings
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.main", "run"),
        env=os.environ | {f"VPS_SNAPSHOTS_{name}": value for name, value in ours.items()},
        stderr=asyncio.subprocess.PIPE,
    )
    worker = WorkerProcess(process=process)
    reading = asyncio.create_task(worker.read())
    try:
        yield worker
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading


def server_of(state_dir: Path, server_id: int) -> FakeServer:
    """The server in its node's file; it must have been changed at least once."""
    known = StateFile(state_dir / "fake.json").read().values()
    return next(server for server in known if server.server_id == server_id)
