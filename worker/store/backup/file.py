"""The file of a backup: lines of JSON, compressed, and encrypted if wanted.

The first line is {vps_snapshots_backup: version, made_ms, last_id}, the last one {rows, sha256: of the lines before}.
So a file that was cut off or changed is noticed before anything of it is used.
"""

import gzip
import hashlib
import json
import os
import subprocess
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

VERSION = 1
_AGE_MAGIC = b"age-encryption.org/"


class BackupUnusable(Exception):
    """The file is no backup, is damaged, or cannot be decrypted. The text says which."""


@dataclass(frozen=True, kw_only=True)
class Written:
    rows: int
    file_bytes: int


async def write(
    path: Path, rows: AsyncIterator[dict[str, Any]], *, made_ms: int, last_id: str, recipient: str | None
) -> Written:
    """Write the file whole or not at all; only its owner can read it.

    `recipient`: a public key of age, which encrypts it. Raises OSError, also if age fails.
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    count = file_bytes = 0
    try:
        with _sink(new, recipient) as raw, gzip.GzipFile(fileobj=raw, mode="wb") as compressed:
            lines = _Lines(compressed)
            lines.add({"vps_snapshots_backup": VERSION, "made_ms": made_ms, "last_id": last_id})
            async for row in rows:
                lines.add(row)
                count += 1
            lines.add({"rows": count, "sha256": lines.digest.hexdigest()})
        file_bytes = _moved(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    return Written(rows=count, file_bytes=file_bytes)


class _Lines:
    def __init__(self, to: gzip.GzipFile) -> None:
        self._to = to
        self.digest = hashlib.sha256()

    def add(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        self._to.write(line)
        self.digest.update(line)


@contextmanager
def _sink(path: Path, recipient: str | None) -> Iterator[IO[bytes]]:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        if recipient is None:
            yield file
            return
        command = ["age", "--recipient", recipient]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file) as age, cast("IO[bytes]", age.stdin) as sink:
            yield sink
        if age.returncode:
            raise OSError(f"age ended with {age.returncode}")


def _moved(new: Path, path: Path) -> int:
    """The bytes of the file, once it is safe on the disk."""
    _sync(new)
    new.replace(path)
    _sync(path.parent)
    return path.stat().st_size


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@dataclass(frozen=True, kw_only=True)
class BackupFile:
    """A backup that was read to its end once, and is whole."""

    path: Path
    identity: Path | None  # file with age's secret key; None: the backup is not encrypted
    made_ms: int
    last_id: str

    @classmethod
    def open(cls, path: Path, *, identity: Path | None) -> Self:
        """Raises BackupUnusable or OSError."""
        digest, count, first, last, line = hashlib.sha256(), -1, b"", b"", b""
        for line in _lines(path, identity):
            if last:
                digest.update(last)
                count += 1
            first, last = first or line, line
        head, end = _parsed(first), _parsed(last)
        if head.get("vps_snapshots_backup") != VERSION:
            version = head.get("vps_snapshots_backup")
            raise BackupUnusable(
                f"it has version {version}; this program reads {VERSION}" if version else "it is no backup"
            )
        if end != {"rows": count, "sha256": digest.hexdigest()}:
            raise BackupUnusable("it is damaged or was cut off")
        return cls(path=path, identity=identity, made_ms=int(head["made_ms"]), last_id=str(head["last_id"]))

    def rows(self) -> Iterator[dict[str, Any]]:
        for line in _lines(self.path, self.identity):
            row = _parsed(line)
            if "kind" in row:
                yield row


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BackupUnusable("it is damaged or was cut off") from error
    if not isinstance(row, dict):
        raise BackupUnusable("it is no backup")
    return row


def _lines(path: Path, identity: Path | None) -> Iterator[bytes]:
    try:
        with _source(path, identity) as raw, gzip.GzipFile(fileobj=raw) as lines:
            yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BackupUnusable("it is damaged, was cut off, or is no backup") from error


@contextmanager
def _source(path: Path, identity: Path | None) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        if identity is None:
            if file.read(len(_AGE_MAGIC)) == _AGE_MAGIC:
                raise BackupUnusable("it is encrypted: name the file with the secret key (--identity)")
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
