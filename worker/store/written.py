"""Notes of a job and contents of a snapshot as JSON, each in one field of a record in Redis."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from pydantic import TypeAdapter, ValidationError

from worker.store.model import Contents, Note

_NOTE = TypeAdapter(Note)
_NOTES = TypeAdapter(tuple[Note, ...])
_RAW_NOTES = TypeAdapter(tuple[object, ...])
_CONTENTS = TypeAdapter(Contents)

log = structlog.stdlib.get_logger()


def notes(found: tuple[Note, ...]) -> str:
    """The text of the field; "" for no notes."""
    return _NOTES.dump_json(found).decode() if found else ""


def contents(held: Contents | None) -> str:
    """The text of the field; "" if they are unknown."""
    return "" if held is None else _CONTENTS.dump_json(held).decode()


def read_notes(text: str) -> tuple[Note, ...]:
    """A note that this version does not know, from a newer worker, is left out."""
    if not text:
        return ()
    known: list[Note] = []
    with _logged("notes"):
        for one in _RAW_NOTES.validate_json(text):
            with _logged("notes"):
                known.append(_NOTE.validate_python(one))
    return tuple(known)


def read_contents(text: str) -> Contents | None:
    """None also for contents that this version cannot read."""
    if text:
        with _logged("contents"):
            return _CONTENTS.validate_json(text)
    return None


@contextmanager
def _logged(field: str) -> Iterator[None]:
    """Log an invalid value instead of raising its error."""
    try:
        yield
    except ValidationError as error:
        log.warning("record.unreadable", field=field, reason=str(error))
