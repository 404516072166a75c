"""Records that can't be read: noticed where they are read, then put into the operators' list by who reads the store."""

from contextvars import ContextVar
from dataclasses import dataclass

REASON_MAX = 200  # characters


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """`key` in Redis, with the member behind a space where it is one of many."""

    key: str
    reason: str


_noticed: ContextVar[list[Unreadable] | None] = ContextVar("noticed", default=None)


class Noticing:
    """Collects what is noticed within the block. A class, because it stands around each record that is read."""

    def __enter__(self) -> list[Unreadable]:
        noticed: list[Unreadable] = []
        self._before = _noticed.set(noticed)
        return noticed

    def __exit__(self, *_: object) -> None:
        _noticed.reset(self._before)


def notice(key: str, error: Exception) -> None:
    """Note that a record, or a part of one, can't be read."""
    noticed = _noticed.get()
    if noticed is not None:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:REASON_MAX]
        noticed.append(Unreadable(key=key.replace("\n", " "), reason=reason))
