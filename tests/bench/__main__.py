"""Runs every benchmark in a short form, one after the other, and writes docs/benchmarks.md: `make bench`. With
ONLY="http disk" it runs only these.

The page's text is written by hand. This program writes the part between two marks at its end: the machine, the
versions, the output of each benchmark, and plots, which are in docs/benchmarks/ beside the results as JSON.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests import redis_program

ROOT = Path(__file__).parents[2]
PAGE, FOLDER = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
PEERS_PYTHON = Path(f"{sys.prefix}-peers") / "bin" / "python"
BEGIN, END = "<!-- written by make bench -->", "<!-- end of what make bench has written -->"
PACKAGES = ("aiohttp", "arq", "redis", "hiredis", "uvloop", "pydantic", "libvirt-python")
LOG_LINE = re.compile(r"^(\{.*\"level\"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[)")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """`python -m tests.bench.NAME`, with these environment variables for its short form."""

    name: str
    title: str
    settings: dict[str, str] = field(default_factory=dict)


BENCHES = (
    Bench(name="http", title="Front end"),
    Bench(name="pickup", title="Pick-up"),
    Bench(name="downtime", title="Downtime", settings={"N": "3"}),
    Bench(name="live", title="Snapshots without a stop", settings={"N": "100", "SIZES": "100G:64k"}),
    Bench(name="disk", title="Disk", settings={"SIZES": "1 10 100 500"}),
    Bench(name="neighbors", title="Neighbors", settings={"N": "3", "SECONDS": "3"}),
    Bench(name="fleet", title="Fleet", settings={"NODES": "100 300", "IDLE": "5"}),
    Bench(name="footprint", title="Footprint", settings={"RUNS": "3", "IDLE": "10"}),
    Bench(name="lists", title="Customers' lists", settings={"N": "1000000", "ROUNDS": "200"}),
    Bench(name="ops", title="Operators' lists and pages", settings={"N": "20000"}),
    Bench(name="admission", title="Admission"),
    Bench(name="tracing", title="Tracing"),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    bench: Bench
    seconds: float
    load: tuple[float, float]  # load of the machine before and after
    table: str
    figures: Any  # its JSON output, if any


def run(bench: Bench) -> Result:
    """Raises CalledProcessError."""
    print(f"\n== {bench.title}: python -m tests.bench.{bench.name}", flush=True)
    before, began = os.getloadavg()[0], time.monotonic()
    command = (sys.executable, "-m", f"tests.bench.{bench.name}")
    lines = []
    with subprocess.Popen(
        command, env={**os.environ, **bench.settings}, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line.rstrip("\n"))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    figures = json.loads(lines.pop()) if lines and lines[-1].startswith("{") else None
    table = "\n".join(line for line in lines if not LOG_LINE.match(line))
    load = (before, os.getloadavg()[0])
    return Result(bench=bench, seconds=time.monotonic() - began, load=load, table=table.strip("\n"), figures=figures)


def machine() -> Iterator[str]:
    about = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in about.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield f"{os.cpu_count()} CPUs ({model or platform.machine()}), {memory:.0f} GiB, Linux {platform.release()}"
    yield f"Python {platform.python_version()}"
    yield redis_program.version()
    told = subprocess.run(("qemu-system-x86_64", "--version"), capture_output=True, text=True, check=True).stdout
    if found := re.search(r"\d+\.\d+\.\d+", told):
        yield f"QEMU {found[0]}"
    yield from (f"{package} {version(package)}" for package in PACKAGES)


def section(results: list[Result], pictures: list[str]) -> str:
    commit = subprocess.run(
        ("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    parts = [
        BEGIN,
        "## The latest run of `make bench`",
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}. {', '.join(machine())}.",
    ]
    for one in results:
        options = "".join(f" {name}={value!r}" for name, value in one.bench.settings.items())
        load = f"load {one.load[0]:.1f} before, {one.load[1]:.1f} after"
        parts.append(f"### {one.bench.title}, measured")
        parts.append(f"`make bench-{one.bench.name}{options}`, {one.seconds:.0f} s, {load}:")
        parts.append(f"```text\n{one.table}\n```")
        parts += [f"![{one.bench.title}](benchmarks/{name})" for name in pictures if name == f"{one.bench.name}.svg"]
    return "\n\n".join([*parts, END]) + "\n"


def draw() -> list[str]:
    """Return the names of the pictures. The plotting library is in the peers' venv."""
    command = (PEERS_PYTHON, "-m", "tests.bench.peers.plots", FOLDER)
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()


def main() -> None:
    redis_program.choose()
    only = (os.environ.get("ONLY") or " ".join(bench.name for bench in BENCHES)).split()
    results = [run(bench) for bench in BENCHES if bench.name in only]
    FOLDER.mkdir(exist_ok=True)
    for one in results:
        if one.figures is not None:
            (FOLDER / f"{one.bench.name}.json").write_text(json.dumps(one.figures, indent=1) + "\n")
    text = PAGE.read_text()
    kept = text.partition(BEGIN)[0].rstrip("\n")
    PAGE.write_text(f"{kept}\n\n{section(results, draw())}")
    print(f"\n{sum(one.seconds for one in results):.0f} s in all; {PAGE.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
