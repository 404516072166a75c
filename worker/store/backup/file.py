"""The backup file: lines of JSON, compressed and optionally encrypted.

The first line is {vps_snapshots_backup: version, made_ms, last_id, life, merged}, the last one {rows, sha256: of the
lines before}. So a file that was cut off or changed, or has rows that no backup has, is noticed before anything of it
is used.
"""

import gzip
import hashlib
import json
import os
import subprocess
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.store.backup.rows import kind_of
from worker.store.model import NUMBER_MAX

VERSION = 1
LINE_BYTES = 1 << 20  # longer than any record; limits memory if a file decompresses to very long lines
_AGE_MAGIC = b"age-encryption.org/"


class BackupUnusable(Exception):
    """The file is not a backup, is damaged, or cannot be decrypted. The text gives the reason."""


@dataclass(frozen=True, kw_only=True)
class Written:
    rows: int
    file_bytes: int


async def write(
    path: Path,
    rows: AsyncIterator[dict[str, Any]],
    *,
    made_ms: int,
    last_id: str,
    recipient: str | None,
    life: str = "",
    merged: Sequence[str] = (),
) -> Written:
    """Write the file atomically; only its owner can read it.

    `recipient`: age's public key for encryption. Raises OSError, also if age fails.
    """
    count = 0
    with new_file(path, recipient=recipient) as raw, gzip.GzipFile(fileobj=raw, mode="wb") as compressed:
        lines = _Lines(compressed)
        head = {"vps_snapshots_backup": VERSION, "made_ms": made_ms, "last_id": last_id, "life": life}
        lines.add(head | ({"merged": [*merged]} if merged else {}))
        async for row in rows:
            lines.add(row)
            count += 1
        lines.add({"rows": count, "sha256": lines.digest.hexdigest()})
    return Written(rows=count, file_bytes=_size(path))


class _Lines:
    def __init__(self, to: gzip.GzipFile) -> None:
        self._to = to
        self.digest = hashlib.sha256()

    def add(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        self._to.write(line)
        self.digest.update(line)


@contextmanager
def _sink(opened: int, recipient: str | None) -> Iterator[IO[bytes]]:
    with open(opened, "wb") as file:
        if recipient is None:
            yield file
            return
        command = ["age", "--recipient", recipient]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file) as age, cast("IO[bytes]", age.stdin) as sink:
            yield sink
        if age.returncode:
            raise OSError(f"age ended with {age.returncode}")


@contextmanager
def new_file(path: Path, *, recipient: str | None = None) -> Iterator[IO[bytes]]:
    """A file that gets its final name once it is complete and on the disk. Until then it has a temporary name,
    because another backup may be written at the same time."""
    opened, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    new = Path(name)
    try:
        with _sink(opened, recipient) as raw:
            yield raw
        _sync(new)
        new.replace(path)
        _sync(path.parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _size(path: Path) -> int:
    return path.stat().st_size


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


Milliseconds = Annotated[int, Field(ge=0, le=NUMBER_MAX)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Head(_Checked):
    vps_snapshots_backup: int
    made_ms: Milliseconds
    last_id: str
    life: str = ""  # missing in older files
    merged: tuple[str, ...] = ()


class _Row(_Checked):
    kind: str
    record: dict[str, str]
    key: str = ""
    lifetime_ms: Milliseconds = 0
    id: Annotated[str, Field(pattern=r"^[0-9]{1,15}-[0-9]{1,15}$")] = "0-0"  # the ID of an entry of the audit log


_Form = TypeVar("_Form", bound=_Checked)


@dataclass(frozen=True, kw_only=True)
class BackupFile:
    """A backup that was read to its end once and is complete."""

    path: Path
    identity: Path | None  # file with age's secret key; None: the backup is not encrypted
    made_ms: int
    last_id: str
    life: str  # see `Backup.life`
    merged: tuple[str, ...]  # see `Backup.merged`
    has_tokens: bool

    @classmethod
    def open(cls, path: Path, *, identity: Path | None) -> Self:
        """Raises BackupUnusable or OSError."""
        digest, count, head, last, has_tokens = hashlib.sha256(), -1, None, b"", False
        for line in _lines(path, identity):
            if last:
                digest.update(last)
                count += 1
            if count > 0:
                has_tokens |= _checked_row(last).kind == "token"
            head, last = head or _head(line), line
        if head is None or _parsed(last) != {"rows": count, "sha256": digest.hexdigest()}:
            raise BackupUnusable("it is damaged or truncated")
        return cls(
            path=path,
            identity=identity,
            made_ms=head.made_ms,
            last_id=head.last_id,
            life=head.life,
            merged=head.merged,
            has_tokens=has_tokens,
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        for line in _lines(self.path, self.identity):
            row = _parsed(line)
            if "kind" in row:
                yield row


def _head(line: bytes) -> _Head:
    version = _parsed(line).get("vps_snapshots_backup")
    if version is None:
        raise BackupUnusable("it is not a backup")
    if version != VERSION:
        raise BackupUnusable(f"it has version {version!a:.100}; this program reads {VERSION}")
    return _checked(_Head, line)


def _checked_row(line: bytes) -> _Row:
    """Raises BackupUnusable for a row that a backup does not write."""
    row = _checked(_Row, line)
    if row.kind not in {"audit", "audit_head"} and row.kind != kind_of(row.key):
        raise BackupUnusable(f"it has a row of kind {row.kind!a:.100} for the key {row.key!a:.100}")
    return row


def _checked(form: type[_Form], line: bytes) -> _Form:
    try:
        return form.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BackupUnusable(f"it has an invalid row: {where!a:.100}: {first['msg']}") from error


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BackupUnusable("it is damaged or truncated") from error
    if not isinstance(row, dict):
        raise BackupUnusable("it is not a backup")
    return row


def _lines(path: Path, identity: Path | None) -> Iterator[bytes]:
    try:
        with _source(path, identity) as raw, gzip.GzipFile(fileobj=raw) as lines:
            while line := lines.readline(LINE_BYTES + 1):
                if len(line) > LINE_BYTES:
                    raise BackupUnusable("it has a line that is too long")
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BackupUnusable("it is damaged, truncated or not a backup") from error


@contextmanager
def _source(path: Path, identity: Path | None) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        if identity is None:
            if file.read(len(_AGE_MAGIC)) == _AGE_MAGIC:
                raise BackupUnusable("it is encrypted: specify the file with the secret key (--identity)")
            file.seek(0)
            yield file
            return
        command = ["age", "--decrypt", "--identity", str(identity)]
        with (
            subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE) as age,
            cast("IO[bytes]", age.stdout) as source,
        ):
            yield source
        if age.returncode:
            raise BackupUnusable(f"age could not decrypt it ({age.returncode})")
