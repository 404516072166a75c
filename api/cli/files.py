"""Files with secrets."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from api.cli.exits import CliError, Exit


@contextmanager
def private(path: Path) -> Iterator[Path]:
    """A new file that only its owner can read. It replaces `path` when the block ends. Raises CliError."""
    if path.is_dir():
        raise CliError(Exit.USAGE, f"Cannot write {path}: it is a folder.")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise CliError(Exit.USAGE, f"Cannot write {path}: {error.strerror}.") from error
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
