"""A node whose disks are busy runs fewer jobs at a time."""

from pathlib import Path

import pytest
import structlog

from tests.conftest import lacking
from worker.disk_load import DiskLoad

PSI = "some avg10={:.2f} avg60=50.00 avg300=50.00 total=1\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=1\n"


@pytest.fixture
def pressure(tmp_path: Path) -> Path:
    return tmp_path / "io"


def load_of(pressure: Path, changes: list[int]) -> DiskLoad:
    load = DiskLoad(most=4, busy_percent=40, pressure=pressure)
    load.on_change(lambda: changes.append(load.allowed))
    return load


async def allowed_after(load: DiskLoad, pressure: Path, *percents: float) -> list[int]:
    found = []
    for percent in percents:
        pressure.write_text(PSI.format(percent))
        await load.look()
        found.append(load.allowed)
    return found


async def test_one_job_fewer_with_each_reading_and_at_least_one(pressure: Path) -> None:
    changes: list[int] = []
    load = load_of(pressure, changes)
    assert await allowed_after(load, pressure, 41, 60, 80, 80, 80) == [3, 2, 1, 1, 1]
    assert changes == [3, 2, 1]


async def test_between_the_limit_and_its_half_the_number_stays(pressure: Path) -> None:
    load = load_of(pressure, [])
    assert await allowed_after(load, pressure, 40, 41, 40, 21, 20) == [4, 3, 3, 3, 3]
    assert await allowed_after(load, pressure, 19.9, 0) == [4, 4]


@pytest.mark.parametrize("said", [None, "", "full avg10=99.00 avg60=0.00 avg300=0.00 total=1\n"])
async def test_without_pressure_all_jobs_are_allowed_and_one_line_is_logged(pressure: Path, said: str | None) -> None:
    load = load_of(pressure, [])
    assert await allowed_after(load, pressure, 50, 50) == [3, 2]
    pressure.unlink()
    if said is not None:
        pressure.write_text(said)
    with structlog.testing.capture_logs() as lines:
        await load.look()
        await load.look()
    assert load.allowed == 4
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["disks.pressure_unknown"]


async def test_it_is_off_without_a_limit(pressure: Path) -> None:
    pressure.write_text(PSI.format(100))
    load = DiskLoad(most=4, busy_percent=0, pressure=pressure)
    await load.keep_looking()
    assert load.allowed == 4


def test_the_kernel_writes_what_is_read() -> None:
    real = Path("/proc/pressure/io")
    if not real.exists():
        lacking("the kernel has no CONFIG_PSI")
    assert real.read_text().startswith("some avg10=")
