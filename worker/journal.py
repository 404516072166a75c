"""The node's own durable record of the jobs that it has begun.

One SQLite file, `synchronous=FULL`: what `enter` has returned from survives kill -9 and a power cut. A job is written
down before its first effect, each step before the step's first effect, and the outcome before anyone is told. So after
a crash the journal alone says what is still owed; Redis is not asked.
"""

import math
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pydantic import TypeAdapter

from worker.procedures.work import Facts, Task
from worker.store.model import JobId, ServerId, Step
from worker.store.outcome import Outcome

VERSION = 2
BALLAST_BYTES = 4 << 20  # a thousand steps: each writes two or three pages of 4 KiB to the write-ahead log
KEPT_FOR_A_PERSON = math.inf  # seconds that a safety tag is kept: no clock ends it
KEPT_SECONDS = 30 * 86_400  # how long a job that is over and published stays: as long as its record in the store

_TASK, _FACTS, _OUTCOME = TypeAdapter(Task), TypeAdapter(Facts), TypeAdapter(Outcome)
_SELECT = "SELECT task, step, facts, interruptions, outcome, published FROM jobs"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    task TEXT NOT NULL,                  -- JSON: what is to be done
    step TEXT NOT NULL,                  -- entered, perhaps begun, perhaps done
    facts TEXT NOT NULL,                 -- JSON: what the steps so far have found out
    interruptions INTEGER NOT NULL,      -- worker processes that died in this step
    outcome TEXT,                        -- JSON once it is over
    published INTEGER NOT NULL DEFAULT 0,
    changed_at REAL NOT NULL             -- Unix seconds
) STRICT;
CREATE INDEX IF NOT EXISTS owed ON jobs (published) WHERE published = 0;
CREATE TABLE IF NOT EXISTS spare_tags (
    tag TEXT PRIMARY KEY,
    server_id INTEGER NOT NULL,
    drop_after REAL NOT NULL,            -- Unix seconds: what programs before `left_seconds` go by
    left_seconds REAL                    -- until it is dropped; NULL: written by such a program
) STRICT;
CREATE TABLE IF NOT EXISTS changing (    -- servers whose disks are being changed by no job
    server_id INTEGER PRIMARY KEY
) STRICT;
"""

log = structlog.stdlib.get_logger()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job as the journal has it."""

    task: Task
    step: Step
    facts: Facts
    interruptions: int
    outcome: Outcome | None
    published: bool


@dataclass(frozen=True, kw_only=True)
class SafetyTag:
    """A tag on a server's disks that is to be deleted when its time is over: a safety snapshot's, or one that a failed
    job could not delete."""

    tag: str
    server_id: ServerId


class NewerJournal(Exception):
    """The file was written by a later version of this program. Nothing was changed."""


class JournalFailed(Exception):
    """The disk does not take it. What stood in the journal before stands."""


class Journal:
    """The journal of one node; one process at a time (its owner holds the node's lock file).

    Whatever writes, and the opening, may raise JournalFailed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ballast = path.with_suffix(".ballast")
        try:
            self._db = self._first_opened()
        except sqlite3.DatabaseError as error:
            raise JournalFailed(f"{path} can't be opened: {error}") from error
        self._take_ballast()

    def _first_opened(self) -> sqlite3.Connection:
        try:
            return _opened(self._path)
        except sqlite3.OperationalError:
            if not self._let_ballast_go():
                raise
            return _opened(self._path)

    def _take_ballast(self) -> None:
        """Hold some space on the disk, to be let go when it is full: a begun job must be able to end."""
        if self._ballast.exists() and self._ballast.stat().st_size == BALLAST_BYTES:
            return
        try:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError:  # no room yet: the next time
            self._ballast.unlink(missing_ok=True)

    def _durably(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        """All of the statements, or none; on a full disk with the space that was held for this."""
        try:
            self._in_one_transaction(statements)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not self._let_ballast_go():
                raise JournalFailed(str(error)) from error
            try:
                self._in_one_transaction(statements)
            except sqlite3.OperationalError as still:
                raise JournalFailed(str(still)) from still

    def _let_ballast_go(self) -> bool:
        """Whether there was one."""
        if not self._ballast.exists():
            return False
        log.error("journal.disk_full", detail="the reserve was let go", ballast=str(self._ballast))
        self._ballast.unlink()
        return True

    def _in_one_transaction(self, statements: tuple[tuple[str, tuple[Any, ...]], ...]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in statements:
                self._db.execute(statement, values)
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.OperationalError):  # SQLite has rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._db.close()

    def size_bytes(self) -> int:
        """With its write-ahead log. From any thread."""
        size = 0
        for file in (self._path, self._path.with_name(f"{self._path.name}-wal")):
            with suppress(FileNotFoundError):
                size += file.stat().st_size
        return size

    def begin(self, task: Task, step: Step) -> Entry:
        """Write down that the job is ours now, before its first effect. A job that is here already stays as it is."""
        insert = (
            "INSERT INTO jobs (id, task, step, facts, interruptions, changed_at) VALUES (?, ?, ?, ?, 0, ?)"
            " ON CONFLICT DO NOTHING"
        )
        self._durably((insert, (task.job_id, _json(_TASK, task), step, _json(_FACTS, Facts()), time.time())))
        entry = self.find(task.job_id)
        assert entry is not None, "just written"  # noqa: S101 - SQLite has answered
        return entry

    def enter(self, job_id: JobId, step: Step, facts: Facts) -> None:
        """Write down the step that comes next, before its first effect."""
        update = "UPDATE jobs SET step = ?, facts = ?, interruptions = 0, changed_at = ? WHERE id = ?"
        self._durably((update, (step, _json(_FACTS, facts), time.time(), job_id)))

    def interrupted(self, job_id: JobId) -> None:
        """Count a process that died in the job's step."""
        self._durably(("UPDATE jobs SET interruptions = interruptions + 1 WHERE id = ?", (job_id,)))

    def conclude(self, entry: Entry, outcome: Outcome, *, safety_kept_seconds: float) -> None:
        """Write down how the job ended, before anyone is told, and with it the tag that is left to be deleted."""
        now, task, tag = time.time(), entry.task, entry.facts.spare_tag
        facts, ended = _json(_FACTS, entry.facts), _json(_OUTCOME, outcome)
        statements: list[tuple[str, tuple[Any, ...]]] = [
            ("UPDATE jobs SET facts = ?, outcome = ?, changed_at = ? WHERE id = ?", (facts, ended, now, task.job_id))
        ]
        if tag is not None:
            if safety_kept_seconds > 0:  # one for each server: the newer safety snapshot makes the older ones due
                older = "UPDATE spare_tags SET drop_after = ?, left_seconds = 0 WHERE server_id = ? AND drop_after < ?"
                statements.append((older, (now, task.server_id, KEPT_FOR_A_PERSON)))
            kept = safety_kept_seconds
            insert = "INSERT OR REPLACE INTO spare_tags (tag, server_id, drop_after, left_seconds) VALUES (?, ?, ?, ?)"
            statements.append((insert, (tag, task.server_id, now + kept, kept)))
        self._durably(*statements)

    def published(self, job_id: JobId) -> None:
        """The outcome has reached the store: nothing is owed any more."""
        self._durably(("UPDATE jobs SET published = 1 WHERE id = ?", (job_id,)))

    def find(self, job_id: JobId) -> Entry | None:
        row = self._db.execute(f"{_SELECT} WHERE id = ?", (job_id,)).fetchone()
        return _entry(row) if row else None

    def owed(self) -> list[Entry]:
        """The jobs that were begun and whose outcome nobody knows yet, oldest first."""
        return [_entry(row) for row in self._db.execute(f"{_SELECT} WHERE published = 0 ORDER BY rowid")]

    def age_safety_tags(self, seconds: float) -> None:
        """Count down the time of each safety tag, by seconds in which this program ran.

        A wall clock that is wrong for a moment must not delete what a restore has overwritten.
        """
        if self.with_droppable_tags():
            aged = (
                "UPDATE spare_tags SET left_seconds = COALESCE(left_seconds, drop_after - ?) - ? WHERE drop_after < ?"
            )
            self._durably((aged, (time.time(), seconds, KEPT_FOR_A_PERSON)))

    def due_safety_tags(self) -> list[SafetyTag]:
        rows = self._db.execute("SELECT tag, server_id FROM spare_tags WHERE left_seconds <= 0")
        return [SafetyTag(tag=tag, server_id=ServerId(server_id)) for tag, server_id in rows]

    def safety_tags(self, server_id: ServerId) -> frozenset[str]:
        rows = self._db.execute("SELECT tag FROM spare_tags WHERE server_id = ?", (server_id,))
        return frozenset(tag for (tag,) in rows)

    def droppable_tags(self, server_id: ServerId) -> frozenset[str]:
        """The safety tags that may go before their time."""
        select = "SELECT tag FROM spare_tags WHERE server_id = ? AND drop_after < ?"
        return frozenset(tag for (tag,) in self._db.execute(select, (server_id, KEPT_FOR_A_PERSON)))

    def with_droppable_tags(self) -> frozenset[ServerId]:
        """The servers that have such tags."""
        rows = self._db.execute("SELECT DISTINCT server_id FROM spare_tags WHERE drop_after < ?", (KEPT_FOR_A_PERSON,))
        return frozenset(ServerId(server_id) for (server_id,) in rows)

    def track_safety_tag(self, server_id: ServerId, tag: str, *, kept_seconds: float) -> None:
        """Write down a safety tag that was found on the disks."""
        insert = "INSERT OR IGNORE INTO spare_tags (tag, server_id, drop_after, left_seconds) VALUES (?, ?, ?, ?)"
        self._durably((insert, (tag, server_id, time.time() + kept_seconds, kept_seconds)))

    def supersede(self, server_id: ServerId, tags: Iterable[str]) -> None:
        """Safety snapshots that a newer one makes due, written down already or not; what waits for a person stays."""
        statement = (
            "INSERT INTO spare_tags (tag, server_id, drop_after, left_seconds) VALUES (?, ?, ?, 0)"
            " ON CONFLICT (tag) DO UPDATE SET drop_after = excluded.drop_after, left_seconds = 0 WHERE drop_after < ?"
        )
        now = time.time()
        self._durably(*((statement, (tag, server_id, now, KEPT_FOR_A_PERSON)) for tag in tags))

    def dropped(self, tag: str) -> None:
        self._durably(("DELETE FROM spare_tags WHERE tag = ?", (tag,)))

    def change(self, server_id: ServerId) -> None:
        """Write down that the server's disks are about to be changed, outside of any job."""
        self._durably(("INSERT OR IGNORE INTO changing (server_id) VALUES (?)", (server_id,)))

    def changed(self, server_id: ServerId) -> None:
        """The change has come to its end: the disks are whole."""
        self._durably(("DELETE FROM changing WHERE server_id = ?", (server_id,)))

    def changing(self) -> frozenset[ServerId]:
        """The servers of which a change was begun and has not come to its end."""
        return frozenset(ServerId(server_id) for (server_id,) in self._db.execute("SELECT server_id FROM changing"))

    def forget_old(self) -> None:
        """Forget the jobs that have been over and published for longer than anyone asks."""
        self._take_ballast()
        self._durably(("DELETE FROM jobs WHERE published = 1 AND changed_at < ?", (time.time() - KEPT_SECONDS,)))


def drop_kept(path: Path, tag: str) -> ServerId | None:
    """Make the tag due that a job has left for a person: the worker whose journal this is deletes it next, also one
    that runs meanwhile. The tag's server, or None where no such tag is kept. Raises JournalFailed or NewerJournal."""
    update = (
        "UPDATE spare_tags SET drop_after = ?, left_seconds = 0 WHERE tag = ? AND drop_after = ? RETURNING server_id"
    )
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
            _ensure_known(db, path)
            _ensure_ages(db)
            found = db.execute(update, (time.time(), tag, KEPT_FOR_A_PERSON)).fetchall()
    except sqlite3.Error as error:
        raise JournalFailed(f"{path}: {error}") from error
    return ServerId(found[0][0]) if found else None


def _ensure_known(db: sqlite3.Connection, path: Path) -> int:
    """The journal's version."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise NewerJournal(f"{path} has version {version}; this program knows {VERSION}")
    return version


def _opened(path: Path) -> sqlite3.Connection:
    """Writes nothing to a journal that is as it should be: it must open on a full disk."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if _ensure_known(db, path) < VERSION:
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {VERSION}")
        _ensure_ages(db)
    except BaseException:
        db.close()
        raise
    return db


def _ensure_ages(db: sqlite3.Connection) -> None:
    # A column that older programs need not know: they can go on with this journal.
    if not db.execute("SELECT 1 FROM pragma_table_info('spare_tags') WHERE name = 'left_seconds'").fetchone():
        db.execute("ALTER TABLE spare_tags ADD COLUMN left_seconds REAL")


def _json(kind: TypeAdapter[Any], record: Any) -> str:
    return kind.dump_json(record).decode()


def _entry(row: tuple[str, str, str, int, str | None, int]) -> Entry:
    task, step, facts, interruptions, outcome, published = row
    return Entry(
        task=_TASK.validate_json(task),
        step=Step(step),
        facts=_FACTS.validate_json(facts),
        interruptions=interruptions,
        outcome=_OUTCOME.validate_json(outcome) if outcome else None,
        published=bool(published),
    )
