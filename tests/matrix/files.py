"""Which server loads whose append-only files: each writes data and rewrites its file, and each other one loads a copy.

The results must be those of the table in docs/versions.md.
"""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.matrix.servers import SERVERS
from tests.matrix.table import PAGE

NAMES = {  # in the table, by row of the matrix
    "redis-7.0": "Redis 7.0",
    "redis-7.2": "Redis 7.2",
    "redis-8.0": "Redis 8.0",
    "valkey-8.1": "Valkey 8.1",
    "valkey-9": "Valkey 9",
}
LIMIT_SECONDS = 60


def differences(cache: Path) -> list[str]:
    """A line for each pair that the page has otherwise."""
    documented = _documented(PAGE.read_text())
    programs = {name: SERVERS[row](cache) for row, name in NAMES.items()}
    found = []
    with tempfile.TemporaryDirectory(prefix="vps-files-", dir="/tmp") as folder:
        for writer, program in programs.items():
            written = Path(folder, writer)
            _write(program, written)
            for reader, other in programs.items():
                copy = Path(folder, "copy")
                shutil.copytree(written / "appendonlydir", copy / "appendonlydir")
                loads = _loads(other, copy)
                shutil.rmtree(copy)
                print(f"{writer} -> {reader}: {'yes' if loads else 'no'}", flush=True)
                if loads != documented[writer, reader]:
                    found.append(f"{PAGE.name} is wrong about {writer} -> {reader}")
    return found


def _documented(page: str) -> dict[tuple[str, str], bool]:
    (head,) = re.findall(r"^\| written by \|(.*)\|$", page, re.MULTILINE)
    columns = [_full(cell.strip().removeprefix("read by ")) for cell in head.split("|")]
    assert columns == list(NAMES.values())
    found = {}
    for name in NAMES.values():
        (row,) = re.findall(rf"^\| {re.escape(name)}(?: \([^)]*\))? \|((?: (?:yes|no) \|)+)$", page, re.MULTILINE)
        for reader, word in zip(columns, re.findall(r"yes|no", row), strict=True):
            found[name, reader] = word == "yes"
    return found


def _full(column: str) -> str:
    return column if " " in column else f"Redis {column}"


def _write(program: str, folder: Path) -> None:
    folder.mkdir()
    with _started(program, folder) as client:
        assert client is not None, f"{program} does not start"
        _fill(client)
        client.execute_command("BGREWRITEAOF")  # type: ignore[no-untyped-call]  # redis-py's types
        deadline = time.monotonic() + LIMIT_SECONDS
        while _is_rewriting(client):
            assert time.monotonic() < deadline, "the file is not rewritten"
            time.sleep(0.02)
        client.incr("after")  # in the part of the file that is not the rewritten one


def _is_rewriting(client: Redis) -> bool:
    about = client.execute_command("INFO", "persistence")  # type: ignore[no-untyped-call]  # redis-py's types
    return bool(about["aof_rewrite_in_progress"] or about["aof_rewrite_scheduled"])


def _fill(client: Redis) -> None:
    client.hset("hash", mapping={f"field-{number}": "x" * number for number in range(40)})
    client.zadd("sorted", {"one": 1.0, "two": 2.0})
    client.rpush("list", "one", "two")
    client.sadd("set", "one", "two")
    client.xadd("stream", {"field": "value"})
    client.set("expiring", "value", ex=3600)


def _loads(program: str, folder: Path) -> bool:
    with _started(program, folder) as client:
        return client is not None and client.dbsize() == 7 and client.hlen("hash") == 40


@contextmanager
def _started(program: str, folder: Path) -> Iterator[Redis | None]:
    """A client, or None if the server ended."""
    socket = folder / "redis.sock"
    socket.unlink(missing_ok=True)
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""]
    command = [program, *options, "--appendonly", "yes", "--appendfsync", "always"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Redis(unix_socket_path=str(socket), decode_responses=True) as client:
            yield client if _answers(client, process) else None
    finally:
        process.kill()
        process.wait()


def _answers(client: Redis, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(RedisError):
            client.ping()
            return True
        time.sleep(0.02)
    return False
