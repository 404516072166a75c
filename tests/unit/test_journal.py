"""The journal: data is durable when a call returns, so that the next process finds it."""

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from tests.conftest import lacking
from worker.journal import BALLAST_BYTES, KEPT_FOR_A_PERSON, JobUnreadable, Journal, JournalFailed, NewerJournal
from worker.lease import NodeLock, NodeTaken
from worker.procedures.work import Facts, Task
from worker.store.model import CAUSE_MAX, Failure, JobId, JobKind, JobState, ServerId, SnapshotId, SnapshotStatus, Step
from worker.store.outcome import Outcome

TASK = Task(
    job_id=JobId("j1"),
    kind=JobKind.RESTORE,
    server_id=ServerId(12345),
    snapshot_id=SnapshotId(801),
    name="before-update",
    description='two\nlines "ü"',
    created_at=datetime(2025, 1, 15, 18, 30, tzinfo=UTC),
    request_id="r1",
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)
FACTS = Facts(was_running=True, off_since=1.5, failure=Failure(code="disk_failed", detail="vdb", stranded=True))
OUTCOME = Outcome(
    state=JobState.FAILED, failure=FACTS.failure, downtime_seconds=2.5, snapshot_status=SnapshotStatus.FAILED
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[[], Journal]]:
    """Opens the journal as another process would; closed after the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Journal(path)))


def test_a_process_that_comes_later_finds_the_job_the_step_and_the_facts(opened: Callable[[], Journal]) -> None:
    first = opened()
    first.begin(TASK, Step.PREFLIGHT)
    first.enter(TASK.job_id, Step.REVERTING, FACTS)
    # not closed: a killed process closes nothing

    (entry,) = opened().owed()

    assert (entry.task, entry.step, entry.facts, entry.outcome) == (TASK, Step.REVERTING, FACTS, None)


def test_a_job_from_before_tracing_continues(opened: Callable[[], Journal], path: Path) -> None:
    opened().begin(TASK, Step.PREFLIGHT)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE jobs SET task = json_remove(task, '$.traceparent')")

    (entry,) = opened().owed()

    assert entry.task == replace(TASK, traceparent="")


def test_a_job_that_is_started_twice_keeps_its_step(opened: Callable[[], Journal]) -> None:
    journal = opened()
    journal.begin(TASK, Step.PREFLIGHT)
    journal.enter(TASK.job_id, Step.STARTING, FACTS)
    assert journal.begin(TASK, Step.PREFLIGHT).step is Step.STARTING


def test_interruptions_count_for_one_step(opened: Callable[[], Journal]) -> None:
    journal = opened()
    journal.begin(TASK, Step.PREFLIGHT)
    journal.interrupted(TASK.job_id)
    journal.interrupted(TASK.job_id)
    assert [entry.interruptions for entry in journal.owed()] == [2]
    journal.enter(TASK.job_id, Step.STOPPING, Facts())
    assert [entry.interruptions for entry in journal.owed()] == [0]


def test_an_outcome_is_pending_until_it_is_published(opened: Callable[[], Journal]) -> None:
    journal = opened()
    entry = journal.begin(TASK, Step.PREFLIGHT)
    journal.conclude(entry, OUTCOME, safety_kept_seconds=0)
    assert [owed.outcome for owed in journal.owed()] == [OUTCOME]
    journal.published(TASK.job_id)
    assert journal.owed() == []
    kept = journal.find(TASK.job_id)
    assert kept is not None
    assert kept.outcome == OUTCOME


def test_a_newer_safety_snapshot_makes_the_servers_older_one_due(opened: Callable[[], Journal]) -> None:
    journal = opened()
    for number in (1, 2):
        task = Task(**{**TASK.__dict__, "job_id": JobId(f"j{number}")})
        journal.begin(task, Step.PREFLIGHT)
        journal.enter(task.job_id, Step.STARTING, Facts(spare_tag=task.safety_tag))
        entry = journal.find(task.job_id)
        assert entry is not None
        journal.conclude(entry, OUTCOME, safety_kept_seconds=3600)

    assert [safety.tag for safety in journal.due_safety_tags()] == ["vps-safety-j1"]
    journal.dropped("vps-safety-j1")
    assert journal.due_safety_tags() == []


def test_tags_due_in_an_older_journal_are_still_due(opened: Callable[[], Journal], path: Path) -> None:
    journal = opened()
    journal.track_safety_tag(TASK.server_id, "vps-safety-replaced", kept_seconds=0)
    journal.begin(TASK, Step.PREFLIGHT)
    journal.track_safety_tag(TASK.server_id, "vps-safety-newest", kept_seconds=3600)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("ALTER TABLE spare_tags DROP COLUMN left_seconds")

    journal = opened()
    journal.age_safety_tags(30)

    assert [safety.tag for safety in journal.due_safety_tags()] == ["vps-safety-replaced"]


@pytest.mark.parametrize("facts", ['{"was_running": true}', '{"was_running": true, "found_out_later": {"a": 1}}'])
def test_a_job_of_an_older_or_newer_version_can_be_read(
    opened: Callable[[], Journal], tmp_path: Path, facts: str
) -> None:
    journal = opened()
    journal.begin(TASK, Step.PREFLIGHT)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE jobs SET facts = ?", (facts,))
    entry = journal.find(TASK.job_id)
    assert entry is not None
    assert entry.facts == Facts(was_running=True)


def test_a_stranded_jobs_safety_snapshot_waits_for_a_person(opened: Callable[[], Journal]) -> None:
    journal = opened()
    journal.begin(TASK, Step.PREFLIGHT)
    journal.enter(TASK.job_id, Step.UNDOING, Facts(spare_tag=TASK.safety_tag))
    entry = journal.find(TASK.job_id)
    assert entry is not None
    journal.conclude(entry, OUTCOME, safety_kept_seconds=KEPT_FOR_A_PERSON)
    assert journal.due_safety_tags() == []
    assert journal.safety_tags(TASK.server_id) == {TASK.safety_tag}  # known, so that it is not mistaken for an orphan
    assert journal.droppable_tags(TASK.server_id) == frozenset()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a separate disk of 6 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False)
    if mounted.returncode:
        lacking("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("ab") as file, suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(512))
    return filler


def test_a_killed_worker_on_a_full_disk_comes_back_and_ends_its_job(small_disk: Path) -> None:
    path = small_disk / "journal.sqlite"
    with closing(Journal(path)) as dead:
        dead.begin(TASK, Step.PREFLIGHT)
        fill(small_disk)
        with closing(Journal(path)) as journal:
            assert [entry.task.job_id for entry in journal.owed()] == [TASK.job_id]
            for step in (Step.STOPPING, Step.SAFEGUARDING, Step.REVERTING, Step.STARTING):
                journal.enter(TASK.job_id, step, FACTS)
        assert not (small_disk / "journal.ballast").exists()


def test_a_worker_has_its_node_also_on_a_full_disk(small_disk: Path) -> None:
    fill(small_disk)
    lock = NodeLock(small_disk)
    lock.take()
    with pytest.raises(NodeTaken):
        NodeLock(small_disk).take(orphan_seconds=0)
    lock.release()


def test_the_reserve_is_there_again_once_there_is_room(small_disk: Path) -> None:
    with closing(Journal(small_disk / "journal.sqlite")) as journal:
        ballast = small_disk / "journal.ballast"
        for _ in range(2):
            journal.begin(TASK, Step.PREFLIGHT)
            filler = fill(small_disk)
            while ballast.exists():
                journal.enter(TASK.job_id, Step.STOPPING, FACTS)
            fill(small_disk)
            with suppress(JournalFailed):
                for _ in range(1000):
                    journal.enter(TASK.job_id, Step.STOPPING, FACTS)
            with suppress(JournalFailed):
                journal.forget_old()
            assert not ballast.exists()
            filler.unlink()
            journal.forget_old()
            assert ballast.stat().st_size == BALLAST_BYTES


def test_a_journal_of_a_later_version_is_left_alone(path: Path) -> None:
    sqlite3.connect(path).execute("PRAGMA user_version = 99").connection.close()
    with pytest.raises(NewerJournal):
        Journal(path)


@pytest.mark.parametrize("before", [None, 0o644])
def test_only_its_owner_can_read_it_whatever_the_umask(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "journal.sqlite"
    umask = os.umask(0o022)
    try:
        if before is not None:  # of an older worker, without its systemd unit
            with closing(sqlite3.connect(path)) as old:
                old.execute("PRAGMA journal_mode = WAL")
                old.execute("CREATE TABLE some (x)")
                path.with_name("journal.sqlite-wal").chmod(before)
                path.chmod(before)
                with closing(Journal(path)):
                    pass
        with closing(Journal(path)) as journal:
            journal.begin(TASK, Step.PREFLIGHT)
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("journal.sqlite*")}
    finally:
        os.umask(umask)
    assert modes == dict.fromkeys(("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"), 0o600)


def test_links_in_the_places_of_its_other_files_are_not_followed(path: Path) -> None:
    host = path.with_name("host")
    host.write_text("of the host")
    path.with_suffix(".ballast").symlink_to(host)
    path.with_name("worker.lock").symlink_to(host)
    Journal(path).close()
    with pytest.raises(OSError, match="symbolic links"):
        NodeLock(path.parent).take()
    assert host.read_text() == "of the host"


def test_a_link_in_its_place_is_not_followed(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(JournalFailed):
        Journal(path)
    assert not path.with_name("elsewhere").exists()


FORMER_JOBS = """CREATE TABLE jobs (id TEXT PRIMARY KEY, task TEXT NOT NULL, step TEXT NOT NULL, facts TEXT NOT NULL,
    interruptions INTEGER NOT NULL, outcome TEXT, published INTEGER NOT NULL DEFAULT 0, changed_at REAL NOT NULL)
    STRICT"""
FORMER_TAGS = """CREATE TABLE spare_tags (tag TEXT PRIMARY KEY, server_id INTEGER NOT NULL, drop_after REAL NOT NULL)
    STRICT"""
FORMER = {1: (FORMER_JOBS, FORMER_TAGS), 2: (FORMER_JOBS, FORMER_TAGS, "CREATE TABLE changing (server_id INTEGER)")}


def make_former(path: Path, version: int) -> None:
    """Make a journal of an earlier version: an unfinished job, a tag that is due, and one that is not."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in (*FORMER[version], f"PRAGMA user_version = {version}", "PRAGMA journal_mode = WAL"):
            db.execute(statement)
        job = (TASK.job_id, TypeAdapter(Task).dump_json(TASK).decode(), Step.REVERTING, "{}", 0, 5e9)
        db.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, NULL, 0, ?)", job)
        db.executemany("INSERT INTO spare_tags VALUES (?, 12345, ?)", [("due", 4e9), ("kept", 6e9)])


@pytest.mark.parametrize("version", FORMER)
def test_a_kill_at_any_statement_of_a_migration_leaves_a_journal_that_is_migrated_by_the_next_process(
    path: Path, tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_former(path, version)
    left: list[Path] = []

    def keep(_statement: str) -> None:
        """Copy what a kill would leave now: the files as the kernel's cache has them."""
        left.append(tmp_path / f"left-{len(left)}")
        left[-1].mkdir()
        for file in tmp_path.glob("journal.sqlite*"):
            shutil.copy(file, left[-1])

    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db = connect(*arguments, **options)
        db.set_trace_callback(keep)
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)
    with capture_logs() as logs, closing(Journal(path)):
        pass
    monkeypatch.setattr(sqlite3, "connect", connect)
    assert [line for line in logs if line["event"] == "journal.migrated"] == [
        {
            "event": "journal.migrated",
            "log_level": "info",
            "journal": str(path),
            "former_version": version,
            "version": 2,
        }
    ]
    assert len(left) > len(FORMER[2])
    for folder in (*left, tmp_path):
        for _ in range(2):  # repeated
            with closing(Journal(folder / path.name)) as journal:
                (entry,) = journal.owed()
                assert (entry.task, entry.step) == (TASK, Step.REVERTING)
                assert [tag.tag for tag in journal.due_safety_tags()] == ["due"]
                assert journal.changing() == frozenset()


NEWER = {
    "version": "UPDATE jobs SET task = json_set(task, '$.v', 2)",
    "step": "UPDATE jobs SET step = 'of a newer version'",
    "outcome": 'UPDATE jobs SET outcome = \'{"state": "of a newer version"}\'',
}


@pytest.mark.parametrize("newer", NEWER)
def test_a_job_of_a_newer_version_that_has_not_ended_is_left_to_that_version(path: Path, newer: str) -> None:
    with closing(Journal(path)) as journal:
        journal.begin(TASK, Step.PREFLIGHT)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(NEWER[newer])
        before = db.execute("SELECT * FROM jobs").fetchall()
        with pytest.raises(NewerJournal, match="Install the version that began it again"):
            Journal(path)
        assert db.execute("SELECT * FROM jobs").fetchall() == before


def test_an_ended_job_of_a_newer_version_does_not_block_others(path: Path) -> None:
    with closing(Journal(path)) as journal:
        entry = journal.begin(TASK, Step.PREFLIGHT)
        journal.conclude(replace(entry, facts=replace(FACTS, frozen=True)), OUTCOME, safety_kept_seconds=1)
        journal.published(TASK.job_id)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(NEWER["step"])
    with closing(Journal(path)) as journal:
        other = replace(TASK, job_id=JobId("j2"))
        journal.begin(other, Step.PREFLIGHT)
        assert [entry.task for entry in journal.owed()] == [other]
        assert journal.left_frozen() == []
        with pytest.raises(JobUnreadable):
            journal.find(TASK.job_id)


def test_a_job_has_a_version_that_an_older_reader_ignores(path: Path) -> None:
    with closing(Journal(path)) as journal:
        journal.begin(TASK, Step.PREFLIGHT)
    with closing(sqlite3.connect(path)) as db:
        (text,) = db.execute("SELECT task FROM jobs").fetchone()
    assert json.loads(text)["v"] == 1
    assert TypeAdapter(Task).validate_json(text) == TASK


def test_the_hypervisors_messages_of_many_failures_stay_short() -> None:
    facts = Facts()
    for step in range(10):
        facts = facts.failed(Failure(code="disk_failed", detail="vda"), f"{step}: {'x' * 100_000} the reason {step}")
    assert len(facts.cause) <= CAUSE_MAX
    assert facts.cause.startswith("0: x")
    assert facts.cause.endswith("the reason 9")
