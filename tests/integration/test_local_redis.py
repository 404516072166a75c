"""The worker's own Redis starts and ends with the worker, and only the worker can use it."""

import asyncio
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest

from tests.conftest import RedisServer, needs
from tests.queueing import until
from tests.worker_process import worker_process
from worker.local_redis import LocalRedisDied, local_redis
from worker.program.configuration import ConfigurationError


async def test_it_answers_only_on_a_socket_in_a_folder_of_its_own(tmp_path: Path) -> None:
    needs("redis-server")
    folder = tmp_path / ("a-long-name-" * 12) / "queue"  # longer than a socket's path may be
    folder.parent.mkdir()
    async with local_redis(folder) as local:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        told = await local.client.config_get("*")
        assert {name: told[name] for name in ("port", "save", "appendonly")} == {
            "port": "0",
            "save": "",
            "appendonly": "no",
        }
        await local.client.set("x", "1")
        capabilities = Path(f"/proc/{local.process.pid}/status").read_text().partition("CapEff:")[2].split()[0]
        assert int(capabilities, 16) == 0  # whatever the worker has
    async with local_redis(folder) as local:
        assert await local.client.get("x") is None
        watching = asyncio.create_task(local.keep_watch())
        local.process.kill()
        with pytest.raises(LocalRedisDied):
            await watching


async def test_it_is_a_valkey_where_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("redis-server")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "setpriv").symlink_to(shutil.which("setpriv") or "")
    with monkeypatch.context() as patched:
        server = shutil.which("redis-server") or ""
        patched.setenv("PATH", str(programs))
        with pytest.raises(ConfigurationError, match="neither redis-server nor valkey-server is installed"):
            async with local_redis(tmp_path / "queue"):
                pass
        # stands in for Debian's program and takes the same arguments
        (programs / "valkey-server").symlink_to(server)
        async with local_redis(tmp_path / "queue") as local:
            assert await local.client.ping()


async def test_it_dies_with_a_killed_worker_and_holds_no_lock_of_it(redis_server: RedisServer, tmp_path: Path) -> None:
    async with worker_process(redis_server.socket, tmp_path) as worker:
        await worker.says("worker.started")
        (child,) = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
        held = {os.readlink(file) for file in Path(f"/proc/{child}/fd").iterdir()}
        assert not [path for path in held if path.endswith("worker.lock")]
        worker.signal(signal.SIGKILL)
        await worker.process.wait()
        await until(lambda: not Path(f"/proc/{child}/exe").exists())
