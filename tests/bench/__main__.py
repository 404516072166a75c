"""Runs every benchmark in a short form, one after the other, and writes docs/benchmarks.md: `make bench`, about 15
minutes. With ONLY="http disk" it runs only these; the page's other results stay.

The page's text is written by hand. After each benchmark, this program writes its section at the end of the page: date,
commit, machine, output, and a plot, which is in docs/benchmarks/ beside the result as JSON. A benchmark that fails
leaves its section as it was, and does not prevent the others.
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

import libvirt

from tests import redis_program
from tests.bench.page import with_section

ROOT = Path(__file__).parents[2]
PAGE, FOLDER = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
PEERS_PYTHON = Path(f"{sys.prefix}-peers") / "bin" / "python"
PACKAGES = ("aiohttp", "arq", "redis", "hiredis", "uvloop", "pydantic", "libvirt-python")
PEERS = ("fastapi", "uvicorn", "pydantic", "redis", "saq", "taskiq", "taskiq-redis", "rq", "dramatiq", "celery")
ABOUT = "Machine and versions of the newest section: "
LOG_LINE = re.compile(r"^(\{.*\"level\"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[)")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """`python -m tests.bench.NAME`, with these environment variables for its short form."""

    name: str
    title: str
    settings: dict[str, str] = field(default_factory=dict)


BENCHES = (
    Bench(name="http", title="Front end", settings={"DURATION": "1"}),
    Bench(name="pickup", title="Pick-up", settings={"N": "3"}),
    Bench(name="downtime", title="Downtime", settings={"N": "3"}),
    Bench(name="live", title="Snapshots without a stop", settings={"N": "30", "SIZES": "100G:64k 100G:1M"}),
    Bench(name="disk", title="Disk", settings={"SIZES": "1 10 100 500", "OLDER_UP_TO": "100"}),
    Bench(name="neighbors", title="Neighbors", settings={"N": "3", "SECONDS": "2"}),
    Bench(name="fleet", title="Fleet", settings={"NODES": "100 300", "IDLE": "5"}),
    Bench(name="footprint", title="Footprint", settings={"RUNS": "3", "IDLE": "60", "GROWTH": "500"}),
    Bench(name="lists", title="Customers' lists", settings={"N": "100000", "ROUNDS": "1000"}),
    Bench(name="ops", title="Operators' lists and pages", settings={"N": "20000"}),
    Bench(name="admission", title="Admission"),
    Bench(name="tracing", title="Tracing"),
)


@dataclass(frozen=True, kw_only=True)
class Result:
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
    return Result(seconds=time.monotonic() - began, load=load, table=table.strip("\n"), figures=figures)


def about() -> str:
    return f"{ABOUT}{', '.join(machine())}; the peers: {', '.join(peers())}."


def cpus() -> str:
    about = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in about.splitlines() if line.startswith("model name")), "")
    return f"{os.cpu_count()} CPUs ({model or platform.machine()})"


def machine() -> Iterator[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield f"{cpus()}, {memory:.0f} GiB, Linux {platform.release()}"
    yield f"Python {platform.python_version()}"
    yield redis_program.version()
    if found := re.search(r"\d+\.\d+\.\d+", said("qemu-system-x86_64", "--version")):
        yield f"QEMU {found[0]}"
    of_library = libvirt.getVersion()
    yield f"libvirt {of_library // 1_000_000}.{of_library // 1000 % 1000}.{of_library % 1000}"
    if found := re.search(r"wrk (\S+)", said("wrk", "-v")):  # it then ends with 1
        yield found[0]
    yield from (f"{package} {version(package)}" for package in PACKAGES)


def peers() -> list[str]:
    program = "import sys; from importlib.metadata import version; [print(one, version(one)) for one in sys.argv[1:]]"
    return said(PEERS_PYTHON, "-c", program, *PEERS).splitlines()


def said(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout


def draw(bench: Bench) -> list[str]:
    """Return the names of its pictures. The plotting library is in the peers' venv."""
    command = (PEERS_PYTHON, "-m", "tests.bench.peers.plots", FOLDER, bench.name)
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()


def section(bench: Bench, result: Result, pictures: list[str]) -> str:
    options = "".join(f" {name}={value!r}" for name, value in bench.settings.items())
    load = f"load {result.load[0]:.1f} before, {result.load[1]:.1f} after"
    when = f"{datetime.now(UTC):%Y-%m-%d}, commit {said('git', 'rev-parse', '--short', 'HEAD').strip()}"
    parts = [f"{when}, {cpus()}: `make bench-{bench.name}{options}`, {result.seconds:.0f} s, {load}:"]
    parts.append(f"```text\n{result.table}\n```")
    parts += [f"![{bench.title}](benchmarks/{name})" for name in pictures]
    return "\n\n".join(parts)


def write(bench: Bench, result: Result, about: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    if result.figures is not None:
        (FOLDER / f"{bench.name}.json").write_text(json.dumps(result.figures, indent=1) + "\n")
    text, titles = section(bench, result, draw(bench)), [one.title for one in BENCHES]
    PAGE.write_text(with_section(PAGE.read_text(), about=about, title=bench.title, text=text, titles=titles))


def main() -> int:
    redis_program.choose()
    only, versions = (os.environ.get("ONLY") or "").split(), about()
    if unknown := set(only) - {bench.name for bench in BENCHES}:
        print(f"there is no benchmark {' '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    began, failed = time.monotonic(), []
    for bench in BENCHES:
        if only and bench.name not in only:
            continue
        try:
            write(bench, run(bench), versions)
        except subprocess.CalledProcessError as error:
            print(f"{error}\n{error.stderr or ''}", file=sys.stderr)
            failed.append(bench.name)
    print(f"\n{time.monotonic() - began:.0f} s in all; {PAGE.relative_to(ROOT)} is written")
    if failed:
        print(f"failed: {' '.join(failed)}; their sections are as they were", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
