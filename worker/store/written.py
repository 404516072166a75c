"""The notes of a job and the contents of a snapshot as JSON: one field each of a record in Redis."""

import structlog
from pydantic import TypeAdapter, ValidationError

from worker.store.model import Contents, Note

_NOTE = TypeAdapter(Note)
_NOTES = TypeAdapter(tuple[Note, ...])
_RAW_NOTES = TypeAdapter(tuple[object, ...])
_CONTENTS = TypeAdapter(Contents)

log = structlog.stdlib.get_logger()


def notes(found: tuple[Note, ...]) -> str:
    """The text of a record's field; "" for none."""
    return _NOTES.dump_json(found).decode() if found else ""


def contents(held: Contents | None) -> str:
    """The text of a record's field; "" where they are not known."""
    return "" if held is None else _CONTENTS.dump_json(held).decode()


def read_notes(text: str) -> tuple[Note, ...]:
    """One that this version does not know, of a newer worker, is left out."""
    if not text:
        return ()
    try:
        raw = _RAW_NOTES.validate_json(text)
    except ValidationError as error:
        log.warning("record.unreadable", field="notes", reason=str(error))
        return ()
    known = []
    for one in raw:
        try:
            known.append(_NOTE.validate_python(one))
        except ValidationError as error:
            log.warning("record.unreadable", field="notes", reason=str(error))
    return tuple(known)


def read_contents(text: str) -> Contents | None:
    """None also for contents that this version can't read."""
    if not text:
        return None
    try:
        return _CONTENTS.validate_json(text)
    except ValidationError as error:
        log.warning("record.unreadable", field="contents", reason=str(error))
        return None
