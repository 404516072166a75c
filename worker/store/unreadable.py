"""Unreadable records: collected where they are parsed, then added to the operators' list by the caller."""

from contextvars import ContextVar
from dataclasses import dataclass

REASON_MAX = 200  # characters


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """`key` in Redis; for one member of a key, followed by a space and the member."""

    key: str
    reason: str


_noticed: ContextVar[list[Unreadable] | None] = ContextVar("noticed", default=None)


class Noticing:
    """Collects the unreadable records within the block. It is a class for speed, because each record is parsed in such
    a block."""

    def __enter__(self) -> list[Unreadable]:
        noticed: list[Unreadable] = []
        self._before = _noticed.set(noticed)
        return noticed

    def __exit__(self, *_: object) -> None:
        _noticed.reset(self._before)


def notice(key: str, error: Exception) -> None:
    """Note that a record, or a part of one, is unreadable."""
    noticed = _noticed.get()
    if noticed is not None:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:REASON_MAX]
        noticed.append(Unreadable(key=key.replace("\n", " "), reason=reason))
