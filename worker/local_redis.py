"""The worker's private Redis: arq's queue of the jobs that run here.

It is a child of the worker, on a socket in a folder that only the worker can read, and dies with the worker. It
has no persistence: unfinished jobs are in the journal, and jobs that have not begun are in the cell's queue.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from drivers.child import unprivileged
from worker.program.configuration import ConfigurationError
from worker.store.redis_client import RedisSettings, connect

PROGRAMS = ("redis-server", "valkey-server")  # the first that is installed; either will do
START_SECONDS = 10.0
MEMORY = "64mb"  # a job takes less than 1 kB, and at most 100 run

log = structlog.stdlib.get_logger()


class LocalRedisDied(Exception):
    """The worker cannot start jobs without it. systemd restarts the worker, which starts another one."""


class LocalRedis:
    def __init__(self, client: Redis, process: "subprocess.Popen[bytes]") -> None:
        self.client = client
        self.process = process

    async def keep_watch(self) -> None:
        """Run until cancelled. Raises LocalRedisDied."""
        ended = asyncio.Event()
        loop, watched = asyncio.get_running_loop(), os.pidfd_open(self.process.pid)
        loop.add_reader(watched, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(watched)
            os.close(watched)
        raise LocalRedisDied(f"the worker's own Redis has ended with code {self.process.wait()}")


@asynccontextmanager
async def local_redis(folder: Path) -> AsyncIterator[LocalRedis]:
    """A Redis or Valkey while the block runs. `folder` is created or emptied. Raises ConfigurationError."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        names = " nor ".join(PROGRAMS)
        raise ConfigurationError(f"neither {names} is installed: the worker starts one of its own for arq's queue")
    place = _emptied(folder)
    try:
        process = _started(program, folder)
        try:
            # Uses the folder's descriptor, because a socket's path may have at most 107 characters.
            client = connect(RedisSettings(url=f"unix:///proc/self/fd/{place}/redis.sock"))
            try:
                await _answers(client, process, program)
                yield LocalRedis(client, process)
            finally:
                await client.aclose(close_connection_pool=True)
        finally:
            process.kill()  # it has nothing to save
            process.wait()
    finally:
        os.close(place)


def _emptied(folder: Path) -> int:
    """Create or empty the folder, and return a descriptor of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _started(program: str, folder: Path) -> "subprocess.Popen[bytes]":
    settings = {
        "port": "0",
        "dir": str(folder),
        "unixsocket": "redis.sock",  # relative to that folder
        "save": "",
        "appendonly": "no",
        "maxmemory": MEMORY,
        "hz": "1",  # its background work: ten times a second, the default, takes more CPU time than the idle worker
        "loglevel": "warning",
        "daemonize": "no",
    }
    arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
    # Not with uvloop, which would pass on our open files and therefore our locks.
    return subprocess.Popen(
        [*unprivileged(), program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def _answers(client: Redis, process: "subprocess.Popen[bytes]", program: str) -> None:
    """Wait until it responds. Raises ConfigurationError if it does not start."""
    with suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            while process.poll() is None:
                try:
                    await client.ping()
                except (RedisError, OSError):
                    await asyncio.sleep(0.01)
                else:
                    return
    raise ConfigurationError(f"{program} did not start (code {process.returncode}); try: {program} --version")
