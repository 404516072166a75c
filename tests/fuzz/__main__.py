"""`make fuzz N=100000 SEED=7`: N random requests to a real service; exit code 1 if any is answered with 5xx or not
at all, or if a program has exited or keeps growing."""

import asyncio
import os
import random
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from deploy.demo.service import SERVER_ID, Service
from deploy.demo.state import State
from tests.fuzz.requests import Fuzzer, Request
from tests.integration.whole_service import running

CONNECTIONS = 16
ANSWER_SECONDS = 60.0
REST_SECONDS = 1.0  # wait for the answer to a request whose framing announces more data
GROWTH_MB = 40  # of one program over the second half; caches of a fixed size grow far less by then
SHOWN = 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(kw_only=True)
class Tally:
    statuses: Counter[int] = field(default_factory=Counter)
    closed: int = 0  # connections without an answer
    unfinished: int = 0  # requests for which the server may expect more data
    violations: list[str] = field(default_factory=list)
    growth_mb: dict[str, tuple[float, float]] = field(default_factory=dict)  # at half time and at the end

    def text(self) -> str:
        rows = [
            "answers: " + ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items())),
            f"closed without an answer: {self.closed}",
            f"unfinished: {self.unfinished} (their framing says that more follows, so the server waits; no violation)",
            *(
                f"{name}: {half:.0f} MB at half, {end:.0f} MB at the end"
                for name, (half, end) in self.growth_mb.items()
            ),
            f"violations: {len(self.violations)}",
        ]
        return "\n".join([*rows, *(f"  {violation}" for violation in self.violations[:SHOWN])])


async def campaign(service: Service, *, count: int, seed: int) -> Tally:
    chance = random.Random(seed)
    fuzzer = Fuzzer(chance=chance, customer=service.client.token, operator=service.operator.token)
    fuzzer.ids["server_id"] = [str(SERVER_ID)]
    tally = Tally()
    address = urlsplit(service.url)
    half = await _half(fuzzer, tally, (str(address.hostname), address.port or 0), count // 2, service)
    end = await _half(fuzzer, tally, (str(address.hostname), address.port or 0), count - count // 2, service)
    tally.growth_mb = {name: (half[name], end.get(name, 0.0)) for name in half}
    tally.violations += [f"the {name} has ended" for name in half if name not in end]
    tally.violations += [
        f"the {name} grew from {before:.0f} to {after:.0f} MB"
        for name, (before, after) in tally.growth_mb.items()
        if after - before > GROWTH_MB
    ]
    return tally


async def _half(
    fuzzer: Fuzzer, tally: Tally, address: tuple[str, int], count: int, service: Service
) -> dict[str, float]:
    left = iter(range(count))
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(_keep_sending(fuzzer, tally, address, left))
    return {name: _resident_mb(pid) for name, pid in service.pids().items() if Path(f"/proc/{pid}/statm").exists()}


async def _keep_sending(fuzzer: Fuzzer, tally: Tally, address: tuple[str, int], left: Iterator[int]) -> None:
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    for _ in left:
        request = fuzzer.request()
        streams = streams or await asyncio.open_connection(*address)
        reader, writer = streams
        goes_on = False
        try:
            async with asyncio.timeout(REST_SECONDS if request.ends else ANSWER_SECONDS):
                goes_on = await _answered(request, reader, writer, fuzzer, tally)
        except (asyncio.IncompleteReadError, ConnectionError):
            tally.closed += 1
        except TimeoutError:
            if request.ends:
                tally.unfinished += 1
            else:
                tally.violations.append(f"no answer to {request.raw[:300]!r}")
        if request.ends or not goes_on:
            writer.close()
            streams = None
    if streams:
        streams[1].close()


async def _answered(
    request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fuzzer: Fuzzer, tally: Tally
) -> bool:
    """Whether the connection can be used for another request."""
    writer.write(request.raw)
    version, status, headers = await _head(reader)
    while status == 100:
        version, status, headers = await _head(reader)
    tally.statuses[status] += 1
    if headers.get("transfer-encoding") or "text/event-stream" in headers.get("content-type", ""):
        return False  # an event stream has no end
    length = 0 if request.is_head or status in {204, 304} else int(headers.get("content-length", "0"))
    body = await reader.readexactly(length)
    if status >= 500:
        tally.violations.append(f"{status} {body[:200]!r} to {request.raw[:300]!r}")
    if status < 300:
        fuzzer.learn(body)
    return version != "HTTP/1.0" and headers.get("connection", "").lower() != "close"


async def _head(reader: asyncio.StreamReader) -> tuple[str, int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    version, status, _ = first.split(" ", 2)
    return version, int(status), {name.lower(): value for name, value in headers.items()}


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 1e6


async def play(folder: Path, *, count: int, seed: int) -> Tally:
    with closing(State.open(folder)) as state:
        async with running(state) as service:
            return await campaign(service, count=count, seed=seed)


def main() -> int:
    try:
        count, seed = int(os.environ.get("N") or "100000"), int(os.environ.get("SEED") or secrets.randbelow(10_000))
    except ValueError:
        print("make fuzz: N and SEED must be whole numbers", file=sys.stderr)
        return 2
    print(f"{count} requests, SEED={seed}")
    with tempfile.TemporaryDirectory(prefix="vps-fuzz-") as folder:
        tally = asyncio.run(play(Path(folder) / "state", count=count, seed=seed))
        print(tally.text())
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
