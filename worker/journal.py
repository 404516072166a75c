"""The journal: the node's durable record of the jobs that it has started.

One SQLite file with `synchronous=FULL`: once a write has returned, it survives kill -9 and a power failure. A job is
recorded before its first effect, each step before the step's first effect, and the outcome before it is published.
After a crash the journal alone tells which jobs are unfinished; Redis is not needed.
"""

import math
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from pydantic_core import from_json

from worker.procedures.work import Facts, Task
from worker.program.adapters import adapter
from worker.store.model import JobId, ServerId, Step
from worker.store.outcome import JOB_KEPT_SECONDS, Outcome

VERSION = 2  # of the file; an older worker does not open one with a higher number
JOB_VERSION = 1  # of one job, in its task; an older worker leaves a job with a higher number to a newer one
PRIVATE_MODE = 0o600
BALLAST_BYTES = 4 << 20  # enough for 300 steps: each writes two or three pages of 4 KiB to the write-ahead log
CACHE_KIB = 256  # page cache: SQLite's default of 2 MiB would fill with ended jobs
KEPT_FOR_A_PERSON = math.inf  # retention in seconds of a safety tag that only an operator may release
KEPT_SECONDS = JOB_KEPT_SECONDS  # retention of a finished, published job, equal to that of its record in the store

# minimum retention of a tag that has only a deadline, because a wrong wall clock must not end it
LEFT_AT_LEAST_SECONDS = 3600.0

Record = TypeVar("Record", Task, Facts, Outcome)

_SELECT = "SELECT task, step, facts, interruptions, outcome, published FROM jobs"
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    task TEXT NOT NULL,                  -- JSON: what to do
    step TEXT NOT NULL,                  -- recorded; it may or may not have started or finished
    facts TEXT NOT NULL,                 -- JSON: results of the steps so far
    interruptions INTEGER NOT NULL,      -- worker processes that died in this step
    outcome TEXT,                        -- JSON; NULL until the job has ended
    published INTEGER NOT NULL DEFAULT 0,
    changed_at REAL NOT NULL             -- Unix seconds
) STRICT""",
    "CREATE INDEX IF NOT EXISTS owed ON jobs (published) WHERE published = 0",
    """CREATE TABLE IF NOT EXISTS spare_tags (
    tag TEXT PRIMARY KEY,
    server_id INTEGER NOT NULL,
    drop_after REAL NOT NULL,            -- Unix seconds; used by versions that do not know `left_seconds`
    left_seconds REAL                    -- until it is deleted; NULL: written by such a version
) STRICT""",
    """CREATE TABLE IF NOT EXISTS changing (    -- servers whose disks are being changed outside of any job
    server_id INTEGER PRIMARY KEY
) STRICT""",
)

log = structlog.stdlib.get_logger()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job in the journal."""

    task: Task
    step: Step
    facts: Facts
    interruptions: int
    outcome: Outcome | None
    published: bool


@dataclass(frozen=True, kw_only=True)
class SafetyTag:
    """A tag on a server's disks that is hidden from customers and is deleted when its retention ends."""

    tag: str
    server_id: ServerId


class NewerJournal(Exception):
    """A later version of the worker wrote the journal. Nothing was changed."""


class JobUnreadable(Exception):
    """A later version of the worker wrote that job, or it is damaged."""


class JournalFailed(Exception):
    """The journal cannot be read, or a write failed (disk full, I/O error). It is unchanged."""


class Journal:
    """The journal of one node, open in one process at a time (the one that holds the node's lock file).

    Opening it and every method may raise JournalFailed. Opening it may also raise NewerJournal; otherwise all jobs that
    have not ended can be read. `find` may raise JobUnreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._uptime_began_at = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._ballast = path.with_suffix(".ballast")
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            raise JournalFailed(f"{path} cannot be opened: {error}") from error
        try:
            self.owed()  # its guest may be off: no part of the worker may continue without it
        except JournalFailed:
            self.close()
            raise
        except JobUnreadable as error:
            self.close()
            raise NewerJournal(
                f"{path}: {error}. It has not ended. Install the version that began it again, and let it end"
            ) from error
        self._reserve_ballast()

    def _open(self) -> sqlite3.Connection:
        try:
            return _opened(self._path)
        except sqlite3.OperationalError:
            if not self._release_ballast():
                raise
            return _opened(self._path)

    def _reserve_ballast(self) -> None:
        """Reserve disk space that is released when the disk is full, so that a started job can finish."""
        if self._ballast.exists() and self._ballast.stat().st_size == BALLAST_BYTES:
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(self._ballast, flags, PRIVATE_MODE)
            try:
                os.posix_fallocate(file, 0, BALLAST_BYTES)
            finally:
                os.close(file)
        except OSError:  # no space now; housekeeping tries again
            self._ballast.unlink(missing_ok=True)

    def _durably(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        """Execute all statements in one transaction. If the disk is full, release the reserved space and retry."""
        try:
            self._in_one_transaction(statements)
        except sqlite3.DatabaseError as error:
            is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL  # Python's own errors have none
            if not is_full or not self._release_ballast():
                raise self._failed(error) from error
            try:
                self._in_one_transaction(statements)
            except sqlite3.DatabaseError as still:
                raise self._failed(still) from still

    def _release_ballast(self) -> bool:
        """Release the reserved space. Returns False if none was reserved."""
        if not self._ballast.exists():
            return False
        log.error("journal.disk_full", detail="the reserved disk space was released", ballast=str(self._ballast))
        self._ballast.unlink()
        return True

    def _in_one_transaction(self, statements: tuple[tuple[str, tuple[Any, ...]], ...]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in statements:
                self._db.execute(statement, values)
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.DatabaseError):  # SQLite may have rolled back already
                self._db.execute("ROLLBACK")
            raise

    def _rows(self, select: str, values: tuple[Any, ...] = ()) -> list[Any]:
        try:
            return self._db.execute(select, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.DatabaseError) -> JournalFailed:
        return JournalFailed(f"{self._path}: {error}")

    def close(self) -> None:
        self._db.close()

    def size_bytes(self) -> int:
        """Size of the journal and its write-ahead log. Safe to call from any thread."""
        size = 0
        for file in (self._path, self._path.with_name(f"{self._path.name}-wal")):
            with suppress(FileNotFoundError):
                size += file.stat().st_size
        return size

    def begin(self, task: Task, step: Step) -> Entry:
        """Record a job before its first effect. A job that is already in the journal is left unchanged."""
        insert = (
            "INSERT INTO jobs (id, task, step, facts, interruptions, changed_at)"
            " VALUES (?, json_set(?, '$.v', ?), ?, ?, 0, ?) ON CONFLICT DO NOTHING"
        )
        self._durably((insert, (task.job_id, _json(task), JOB_VERSION, step, _json(Facts()), time.time())))
        entry = self.find(task.job_id)
        assert entry is not None, "just written"  # noqa: S101 - for mypy
        return entry

    def enter(self, job_id: JobId, step: Step, facts: Facts) -> None:
        """Record the next step, before its first effect."""
        update = "UPDATE jobs SET step = ?, facts = ?, interruptions = 0, changed_at = ? WHERE id = ?"
        self._durably((update, (step, _json(facts), time.time(), job_id)))

    def interrupted(self, job_id: JobId) -> None:
        """Count one more worker process that died in the job's current step."""
        self._durably(("UPDATE jobs SET interruptions = interruptions + 1 WHERE id = ?", (job_id,)))

    def conclude(self, entry: Entry, outcome: Outcome, *, safety_kept_seconds: float) -> None:
        """Record the outcome before it is published, together with the job's safety tag if it left one.

        `safety_kept_seconds`: retention of that tag.
        """
        now, task, tag = time.time(), entry.task, entry.facts.spare_tag
        facts, ended = _json(entry.facts), _json(outcome)
        statements: list[tuple[str, tuple[Any, ...]]] = [
            ("UPDATE jobs SET facts = ?, outcome = ?, changed_at = ? WHERE id = ?", (facts, ended, now, task.job_id))
        ]
        if tag is not None:
            if safety_kept_seconds > 0:  # only the newest safety snapshot of a server is kept
                older = "UPDATE spare_tags SET drop_after = ?, left_seconds = 0 WHERE server_id = ? AND drop_after < ?"
                statements.append((older, (now, task.server_id, KEPT_FOR_A_PERSON)))
            kept = safety_kept_seconds
            insert = "INSERT OR REPLACE INTO spare_tags (tag, server_id, drop_after, left_seconds) VALUES (?, ?, ?, ?)"
            statements.append((insert, (tag, task.server_id, now + kept, kept)))
        self._durably(*statements)

    def published(self, job_id: JobId) -> None:
        """Record that the store has the outcome, so that nothing is left to do for the job."""
        self._durably(("UPDATE jobs SET published = 1 WHERE id = ?", (job_id,)))

    def find(self, job_id: JobId) -> Entry | None:
        rows = self._rows(f"{_SELECT} WHERE id = ?", (job_id,))
        return _entry(rows[0]) if rows else None

    def owed(self) -> list[Entry]:
        """The jobs that have started and whose outcome the store does not have yet, oldest first."""
        return [_entry(row) for row in self._rows(f"{_SELECT} WHERE published = 0 ORDER BY rowid")]

    def left_frozen(self) -> list[Entry]:
        """The ended jobs that may have left their guest's file systems frozen. Unreadable ones are left out."""
        frozen = "outcome IS NOT NULL AND CASE WHEN json_valid(facts) THEN json_extract(facts, '$.frozen') END"
        found = []
        for row in self._rows(f"{_SELECT} WHERE {frozen}"):
            with suppress(JobUnreadable):
                found.append(_entry(row))
        return found

    def thawed(self, job_id: JobId) -> None:
        """Record that the guest of an ended job is no longer frozen."""
        self._durably(("UPDATE jobs SET facts = json_set(facts, '$.frozen', json('false')) WHERE id = ?", (job_id,)))

    def age_safety_tags(self, seconds: float) -> None:
        """Count down the retention of each safety tag by the seconds that the worker has run.

        The wall clock is not used: a short clock error must not delete the data that a restore has overwritten.
        """
        if self.with_droppable_tags():
            aged = (
                "UPDATE spare_tags SET left_seconds = COALESCE(left_seconds, MAX(drop_after - ?, ?)) - ?"
                " WHERE drop_after < ?"
            )
            self._durably((aged, (time.time(), LEFT_AT_LEAST_SECONDS, seconds, KEPT_FOR_A_PERSON)))

    def due_safety_tags(self) -> list[SafetyTag]:
        rows = self._rows("SELECT tag, server_id FROM spare_tags WHERE left_seconds <= 0")
        return [SafetyTag(tag=tag, server_id=ServerId(server_id)) for tag, server_id in rows]

    def safety_tags(self, server_id: ServerId) -> frozenset[str]:
        rows = self._rows("SELECT tag FROM spare_tags WHERE server_id = ?", (server_id,))
        return frozenset(tag for (tag,) in rows)

    def droppable_tags(self, server_id: ServerId) -> frozenset[str]:
        """The safety tags that may be deleted early to free space: all that are not kept for an operator."""
        select = "SELECT tag FROM spare_tags WHERE server_id = ? AND drop_after < ?"
        return frozenset(tag for (tag,) in self._rows(select, (server_id, KEPT_FOR_A_PERSON)))

    def with_droppable_tags(self) -> frozenset[ServerId]:
        """The servers that have droppable tags."""
        rows = self._rows("SELECT DISTINCT server_id FROM spare_tags WHERE drop_after < ?", (KEPT_FOR_A_PERSON,))
        return frozenset(ServerId(server_id) for (server_id,) in rows)

    def track_safety_tag(self, server_id: ServerId, tag: str, *, kept_seconds: float) -> None:
        """Record a safety tag that was found on the disks."""
        insert = "INSERT OR IGNORE INTO spare_tags (tag, server_id, drop_after, left_seconds) VALUES (?, ?, ?, ?)"
        self._durably((insert, (tag, server_id, time.time() + kept_seconds, kept_seconds)))

    def supersede(self, server_id: ServerId, tags: Iterable[str]) -> None:
        """End the retention of safety snapshots that a newer one replaces, and record those that are not in the journal
        yet. Tags that are kept for an operator stay."""
        statement = (
            "INSERT INTO spare_tags (tag, server_id, drop_after, left_seconds) VALUES (?, ?, ?, 0)"
            " ON CONFLICT (tag) DO UPDATE SET drop_after = excluded.drop_after, left_seconds = 0 WHERE drop_after < ?"
        )
        now = time.time()
        self._durably(*((statement, (tag, server_id, now, KEPT_FOR_A_PERSON)) for tag in tags))

    def dropped(self, tag: str) -> None:
        self._durably(("DELETE FROM spare_tags WHERE tag = ?", (tag,)))

    def change(self, server_id: ServerId) -> None:
        """Record that the server's disks are about to be changed outside of a job."""
        self._durably(("INSERT OR IGNORE INTO changing (server_id) VALUES (?)", (server_id,)))

    def changed(self, server_id: ServerId) -> None:
        """Record that the change has finished and the disks are consistent."""
        self._durably(("DELETE FROM changing WHERE server_id = ?", (server_id,)))

    def changing(self) -> frozenset[ServerId]:
        """The servers with a change outside of a job that has not finished."""
        return frozenset(ServerId(server_id) for (server_id,) in self._rows("SELECT server_id FROM changing"))

    def forget_old(self) -> None:
        """Delete the jobs whose outcome was published more than KEPT_SECONDS ago. The time is the wall clock at
        the start of this process plus the monotonic time since then."""
        self._reserve_ballast()
        now = self._uptime_began_at + time.clock_gettime(time.CLOCK_BOOTTIME)
        self._durably(("DELETE FROM jobs WHERE published = 1 AND changed_at < ?", (now - KEPT_SECONDS,)))


def drop_kept(path: Path, tag: str) -> ServerId | None:
    """End the retention of a tag that a stranded job has left. The node's worker deletes the tag in its next round.
    Returns the tag's server; None if no such tag is kept. Raises JournalFailed or NewerJournal."""
    update = (
        "UPDATE spare_tags SET drop_after = ?, left_seconds = 0 WHERE tag = ? AND drop_after = ? RETURNING server_id"
    )
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
            _migrate(db, path)
            found = db.execute(update, (time.time(), tag, KEPT_FOR_A_PERSON)).fetchall()
    except sqlite3.Error as error:
        raise JournalFailed(f"{path}: {error}") from error
    return ServerId(found[0][0]) if found else None


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """In one transaction: a kill leaves the journal as it was. Raises NewerJournal."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise NewerJournal(f"{path} has version {version}; this program supports up to {VERSION}")
    if version == VERSION and _has_ages(db):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SCHEMA:
            db.execute(statement)
        if not _has_ages(db):  # added without a new version: older workers ignore the column
            db.execute("ALTER TABLE spare_tags ADD COLUMN left_seconds REAL")
            # Tags that a newer restore has replaced were due from the moment of its record. No clock is asked.
            db.execute("UPDATE spare_tags SET left_seconds = 0 WHERE drop_after <= (SELECT MAX(changed_at) FROM jobs)")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.OperationalError):
            db.execute("ROLLBACK")
        raise
    if version:
        log.info("journal.migrated", journal=str(path), former_version=version, version=VERSION)


def _has_ages(db: sqlite3.Connection) -> bool:
    found = db.execute("SELECT 1 FROM pragma_table_info('spare_tags') WHERE name = 'left_seconds'").fetchone()
    return found is not None


def _opened(path: Path) -> sqlite3.Connection:
    """Open the database. An up-to-date journal is not written to, so that it also opens on a full disk."""
    _make_private(path)
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        _migrate(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _make_private(path: Path) -> None:
    """Create the journal, or correct its mode, so that only its owner can read it: it contains customers' names and
    texts. SQLite gives its other files the mode of the database. Raises sqlite3.OperationalError."""
    try:
        for file in (path, *(path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-shm"))):
            create = os.O_CREAT if file == path else 0
            with suppress(FileNotFoundError):
                descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | create, PRIVATE_MODE)
                try:
                    if os.fstat(descriptor).st_mode & 0o077:
                        os.fchmod(descriptor, PRIVATE_MODE)
                finally:
                    os.close(descriptor)
    except OSError as error:
        raise sqlite3.OperationalError(str(error)) from error


def _json(record: Task | Facts | Outcome) -> str:
    return adapter(type(record)).dump_json(record).decode()


def _read(kind: type[Record], text: str) -> Record:
    """Parse JSON without pydantic's string cache, which would keep the strings of the last 4,000 jobs."""
    return adapter(kind).validate_python(from_json(text, cache_strings="none"))


def _entry(row: tuple[str, str, str, int, str | None, int]) -> Entry:
    """Raises JobUnreadable."""
    task, step, facts, interruptions, outcome, published = row
    try:
        return Entry(
            task=_known_task(task),
            step=Step(step),
            facts=_read(Facts, facts),
            interruptions=interruptions,
            outcome=_read(Outcome, outcome) if outcome else None,
            published=bool(published),
        )
    except ValueError as error:  # pydantic's, too
        reason = str(error).splitlines()[0]
        raise JobUnreadable(
            f"a job at the step {step} was written by a newer version or is damaged ({reason})"
        ) from error


def _known_task(text: str) -> Task:
    version = from_json(text).get("v", 1)
    if version > JOB_VERSION:
        raise ValueError(f"version {version}; this program supports up to {JOB_VERSION}")
    return _read(Task, text)
