"""This version compared with an earlier one on one machine: `make bench-beside REV=0a79ed0`, about five minutes.

The earlier version is exported from git and runs with the packages of this one. Each has its own Redis with
production's durability and its own records, which `beside_seed.py` writes with the code of that version. The versions
are measured in turn. wrk makes the HTTP calls, as in `http.py`.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from deploy.demo.processes import Child
from deploy.demo.service import free_port
from tests.bench.http import CONNECTIONS, is_up
from tests.conftest import RedisServer
from tests.queueing import until_told

REVISION = os.environ.get("REV") or "0a79ed0"
ROUNDS = int(os.environ.get("ROUNDS") or 4)
CALLS = tuple((os.environ.get("CALLS") or "create restore delete show list_of_server").split())
SERVERS = 4000  # each with one snapshot, unless creates are measured
SECONDS = 1
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PERMISSIONS = ("--permission", "snapshots:read", "--permission", "snapshots:write")
Figures = tuple[float, float, float]  # calls per second, and p50 and p99 in ms
TOKEN = ("token", "create", "--name", "bench", "--account", "77", *PERMISSIONS)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version's source tree, with its Redis and its front end."""

    name: str
    tree: Path
    redis: RedisServer
    port: int

    @property
    def settings(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(self.tree),
            "PYTHONSAFEPATH": "1",  # without the script's folder
            "VPS_SNAPSHOTS_REDIS__URL": f"unix://{self.redis.socket}",
            "VPS_SNAPSHOTS_PORT": str(self.port),
            "VPS_SNAPSHOTS_CALLS_PER_MINUTE": "100000000",
        }

    @property
    def program(self) -> list[str]:
        return [sys.executable, "-c", f"import os; os.chdir({str(self.tree)!r}); from api.main import main; main()"]

    async def says(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.tree,
            env=os.environ | self.settings,
            stdout=subprocess.PIPE,
            stderr=None if command[0] == "wrk" else subprocess.DEVNULL,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, command
        return out.decode()

    async def load(self, what: str) -> Figures:
        seed = HERE / "beside_seed.py"
        told = await self.says(sys.executable, str(seed), str(self.redis.socket), what, str(SERVERS))
        first = told.split()[-1]
        secret = (await self.says(*self.program, *TOKEN)).strip()
        script = str(HERE / "http.lua")
        wrk = ("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--timeout=10s", "-s", script)
        out = await self.says(*wrk, f"http://127.0.0.1:{self.port}", "--", what, secret, first, str(SERVERS))
        found = json.loads(out.split("RESULT ")[1])
        assert not found["refused"], (self.name, what, found)
        assert not found["broken"], (self.name, what, found)
        return found["requests"] / found["seconds"], found["p50_ms"], found["p99_ms"]


def taken_out(folder: Path) -> Path:
    """The source tree of the earlier version."""
    packed = subprocess.run(["git", "archive", REVISION], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


async def measure(versions: list[Version]) -> None:
    print(
        f"{ROUNDS} rounds of {SECONDS} s in turn, {CONNECTIONS} connections; medians of the rounds and of their ratios"
    )
    print(f"{'':<16}{'':<10}{'calls/s':>9}{'p50 ms':>9}{'p99 ms':>9}")
    rows = []
    for what in CALLS:
        found: dict[str, list[Figures]] = {version.name: [] for version in versions}
        for number in range(ROUNDS):
            for version in versions[:: 1 if number % 2 else -1]:
                found[version.name].append(await version.load(what))
        row: dict[str, Figures] = {}
        for name, rounds in found.items():
            row[name] = per_second, p50, p99 = medians(rounds)
            print(f"{what:<16}{name:<10}{per_second:>9,.0f}{p50:>9.1f}{p99:>9.1f}")
        ratios = [
            (now[0] / before[0], now[1] / before[1], now[2] / before[2])
            for before, now in zip(*found.values(), strict=True)
        ]
        row["ratio"] = speed, p50, p99 = medians(ratios)
        print(f"{'':<16}{'ratio':<10}{speed:>9.2f}{p50:>9.2f}{p99:>9.2f}", flush=True)
        rows.append({"call": what, **row})
    print(json.dumps({"revision": REVISION, "rounds": ROUNDS, "seconds": SECONDS, "rows": rows}))


def medians(rounds: list[Figures]) -> Figures:
    per_second, p50, p99 = (statistics.median(column) for column in zip(*rounds, strict=True))
    return per_second, p50, p99


async def main() -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vps-beside-")))
        trees = {REVISION: taken_out(folder / "before"), "now": ROOT}
        versions = []
        for name, tree in trees.items():
            (folder / name).mkdir()
            redis = RedisServer(folder / name)
            stack.callback(redis.kill)
            redis.start()
            version = Version(name=name, tree=tree, redis=redis, port=free_port())
            command = [*version.program, "serve"]
            child = await Child.start(name, command, settings=version.settings, log=folder / f"{name}.log")
            stack.push_async_callback(child.stop)
            await until_told(lambda port=str(version.port): is_up(port))  # type: ignore[misc]  # bound at once
            versions.append(version)
        await measure(versions)


if __name__ == "__main__":
    asyncio.run(main())
