"""Converts a job's notes and a snapshot's contents to JSON, each in one field of a record in Redis."""

from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from pydantic import ValidationError

from worker.program.adapters import adapter
from worker.store.model import Contents, Note

Parsed = TypeVar("Parsed")

log = structlog.stdlib.get_logger()


def notes(found: tuple[Note, ...]) -> str:
    """The field's text; "" for no notes."""
    return adapter(tuple[Note, ...]).dump_json(found).decode() if found else ""


def contents(held: Contents | None) -> str:
    """The field's text; "" if the contents are unknown."""
    return "" if held is None else adapter(Contents).dump_json(held).decode()


def read_notes(text: str) -> tuple[Note, ...]:
    """Parse the notes. Notes of a newer worker that this version does not know are left out."""
    raw = _read(adapter(tuple[object, ...]).validate_json, text, "notes") if text else None
    notes = [_read(adapter(Note).validate_python, one, "notes") for one in raw or ()]
    return tuple(note for note in notes if note is not None)


def read_contents(text: str) -> Contents | None:
    """Parse the contents; None also if this version cannot read them."""
    return _read(adapter(Contents).validate_json, text, "contents") if text else None


def _read(parse: Callable[[Any], Parsed], value: object, field: str) -> Parsed | None:
    """Parse a field; None for an invalid value, which is logged."""
    try:
        return parse(value)
    except ValidationError as error:
        log.warning("record.unreadable", field=field, reason=str(error))
        return None
