"""No VM boots on disks that a job was changing when everything died, whoever starts it and however early."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.lab.domain import disk
from deploy.lab.lab import LabFailed, make_disk
from drivers import base
from tests.conftest import needs
from tests.libvirtd import PROGRAMS, Daemon, DaemonLab, install_hook
from worker.journal import Journal
from worker.procedures.work import Facts, Task
from worker.settings import WorkerSettings
from worker.start_guard import MARK_NAMESPACE, NOT_YET, TEARING, state_dir
from worker.store.model import JobId, JobKind, JobState, ServerId, SnapshotId, Step
from worker.store.outcome import Outcome

SERVER = ServerId(7)
DOMAIN = (
    "<domain><metadata><o:x xmlns:o='urn:other'/><vps:server xmlns:vps='https://vps-snapshots.dev/libvirt/1' id='{id}'"
    " account='77'/></metadata></domain>"
)
TASK = Task(
    job_id=JobId("j1"),
    kind=JobKind.RESTORE,
    server_id=SERVER,
    snapshot_id=SnapshotId(801),
    name="n",
    description="",
    created_at=datetime(2025, 1, 15, tzinfo=UTC),
    request_id="r",
)


# If a job stops in one of these steps, or before the next one, the disks are consistent: at most a tag is left over.
HARMLESS = {
    *(Step.PREFLIGHT, Step.STOPPING, Step.FREEZING, Step.RECORDING, Step.DELETING, Step.STARTING, Step.MEASURING)
}


def test_the_guard_knows_the_steps_and_the_mark_without_importing_them() -> None:
    """Each start of a VM waits for the guard."""
    assert {*Step} >= TEARING
    assert MARK_NAMESPACE == base.MARK_NAMESPACE
    ours = "name for name in sys.modules if name.startswith(('worker', 'drivers'))"
    code = f"import sys, worker.start_guard; print(*({ours}))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["worker", "worker.start_guard"]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "worker.toml"
    file.write_text(f'node = "n1"\nstate_dir = "{tmp_path}"\n')
    return file


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal.sqlite")) as opened:
        yield opened


@pytest.mark.parametrize("environment", [{}, {"PYTHONPATH": "."}])
def test_the_hook_imports_nothing_from_its_working_directory(tmp_path: Path, environment: dict[str, str]) -> None:
    # libvirt's working directory may be a folder that others can write to
    (tmp_path / "libvirt").mkdir()
    install_hook(Daemon(tmp_path / "libvirt"), tmp_path)
    planted = tmp_path / "planted"
    for name in ("worker", "tomllib", "sqlite3"):
        (planted / name).mkdir(parents=True)
        (planted / name / "__init__.py").write_text("open('was_run', 'w')")
    hook = tmp_path / "libvirt" / "etc" / "hooks" / "qemu.d" / "vps-snapshots"
    Journal(tmp_path / "journal.sqlite").close()
    done = subprocess.run(
        [hook, "domain", "prepare", "begin", "-"],
        input=DOMAIN.format(id=SERVER),
        text=True,
        check=False,
        capture_output=True,
        cwd=planted,
        env={"PATH": os.defpath, **environment},
    )
    assert not (planted / "was_run").exists()
    assert (done.returncode, done.stderr) == (0, "")


def asked(settings: Path, domain: str) -> int:
    command = [sys.executable, "-I", "-m", "worker.start_guard", str(settings)]
    done = subprocess.run(command, input=domain, text=True, check=False, capture_output=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


@pytest.mark.parametrize("step", [*Step])
def test_only_the_server_whose_job_was_in_a_step_that_tears_waits(settings: Path, journal: Journal, step: Step) -> None:
    journal.begin(TASK, step)
    journal.close()  # closed, as after a power failure
    assert asked(settings, DOMAIN.format(id=SERVER)) == (0 if step in HARMLESS else NOT_YET)
    assert asked(settings, DOMAIN.format(id=8)) == 0


def test_it_waits_for_the_jobs_next_step_and_no_longer(settings: Path, journal: Journal) -> None:
    entry = journal.begin(TASK, Step.REVERTING)
    assert asked(settings, DOMAIN.format(id=SERVER)) == NOT_YET
    journal.enter(TASK.job_id, Step.STARTING, Facts())
    assert asked(settings, DOMAIN.format(id=SERVER)) == 0
    journal.enter(TASK.job_id, Step.UNDOING, Facts())
    journal.conclude(entry, Outcome(state=JobState.FAILED), safety_kept_seconds=0)  # stranded: an operator starts it
    assert asked(settings, DOMAIN.format(id=SERVER)) == 0


@pytest.mark.parametrize("domain", ["", "<domain/>", "no XML", DOMAIN.format(id="x"), DOMAIN.format(id=1 << 64)])
def test_uncertainty_is_no_reason_to_wait(tmp_path: Path, settings: Path, domain: str) -> None:
    assert asked(settings, domain) != NOT_YET
    assert asked(settings, DOMAIN.format(id=SERVER)) != NOT_YET  # there is no journal yet
    (tmp_path / "odd.toml").write_text("no TOML")
    for odd in (tmp_path, tmp_path / "odd.toml"):
        assert asked(odd, DOMAIN.format(id=SERVER)) != NOT_YET
    Journal(tmp_path / "journal.sqlite").close()
    assert asked(settings, domain) != NOT_YET
    (tmp_path / "journal.sqlite").write_text("no journal")
    assert asked(settings, DOMAIN.format(id=SERVER)) != NOT_YET


def test_by_default_it_reads_the_workers_folder(tmp_path: Path) -> None:
    assert state_dir(tmp_path / "nowhere") == WorkerSettings.model_fields["state_dir"].default


@pytest.fixture
async def lab() -> AsyncIterator[DaemonLab]:
    for program in PROGRAMS:
        needs(program)
    with tempfile.TemporaryDirectory(prefix="vps-", dir="/tmp") as folder:
        daemon = Daemon(Path(folder))
        (daemon.folder / "node").mkdir()
        install_hook(daemon, daemon.folder / "node")
        await daemon.start()
        try:
            yield DaemonLab(daemon)
        finally:
            daemon.stop_for_good()


async def test_libvirt_asks_it(lab: DaemonLab) -> None:
    mark = f"<vps:server xmlns:vps='https://vps-snapshots.dev/libvirt/1' id='{SERVER}' account='77'/>"
    devices = [disk(await asyncio.to_thread(make_disk, lab.disk_path("d")))]
    await lab.define(lab.domain_xml("s", devices, guest=False, metadata=mark))
    with closing(Journal(lab.folder / "node" / "journal.sqlite")) as journal:
        journal.begin(TASK, Step.REVERTING)
        with pytest.raises(LabFailed, match="a job is repairing the VM's disks"):
            await lab.start("s")
        assert not lab.is_on("s")
        journal.enter(TASK.job_id, Step.STARTING, Facts())
        await lab.start("s")
        assert lab.is_on("s")
