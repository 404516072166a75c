"""How numbers and moments are told to a person."""

from datetime import UTC, datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_KIB = 1024
_TENTH = 0.1
_SHORT = 10  # below it, one more digit


def span(seconds: float) -> str:
    """A duration, to what matters of it: < 0.1 s, 0.4 s, 42 s, 3 min 05 s, 2 h 10 min, 4 d 3 h."""
    if seconds < _TENTH / 2:
        return f"< {_TENTH} s"
    if seconds < _SHORT:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def rough(seconds: float) -> str:
    """A duration in one unit: 42 s, 3 min, 2 h, 4 d."""
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds)} s"


def ago(moment: datetime) -> str:
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if seconds < 0:
        return f"in {rough(-seconds)}" if seconds < -1 else "now"
    return f"{rough(seconds)} ago" if seconds >= 1 else "now"


def absolute(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def machine(moment: datetime) -> str:
    """For the attribute of a <time>."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(count: float) -> str:
    """Bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < _KIB:
            return f"{count:.0f} {unit}" if unit == "B" or count >= _SHORT else f"{count:.1f} {unit}"
        count /= _KIB
    return f"{count:.1f} TiB"


def number(count: int) -> str:
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def plain(word: str) -> str:
    """A stored word as it is read: in_progress is in progress."""
    return word.replace("_", " ")
