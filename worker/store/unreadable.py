"""Records that can't be read: noticed where they are read, then put into the operators' list by who reads the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

REASON_MAX = 200  # characters


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """`key` in Redis, with the member behind a space where it is one of many."""

    key: str
    reason: str


_noticed: ContextVar[list[Unreadable] | None] = ContextVar("noticed", default=None)


@contextmanager
def noticing() -> Iterator[list[Unreadable]]:
    """What is noticed within the block."""
    noticed: list[Unreadable] = []
    token = _noticed.set(noticed)
    try:
        yield noticed
    finally:
        _noticed.reset(token)


def notice(key: str, error: Exception) -> None:
    """Note that a record, or a part of one, can't be read."""
    noticed = _noticed.get()
    if noticed is not None:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:REASON_MAX]
        noticed.append(Unreadable(key=key.replace("\n", " "), reason=reason))
