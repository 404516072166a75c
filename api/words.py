"""Durations, times, sizes and counts as text for people, in the dashboard and the command line."""

from datetime import UTC, datetime, tzinfo

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_KIB = 1024
_TENTH = 0.1
_SHORT = 10  # tenths are shown below this


def span(seconds: float) -> str:
    """A duration in its two largest units: < 0.1 s, 0.4 s, 42 s, 3 min 05 s, 2 h 10 min, 4 d 3 h."""
    if 0 < seconds < _TENTH / 2:
        return f"< {_TENTH} s"
    if seconds < _SHORT and seconds != int(seconds):
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
    """A duration in its largest unit: 42 s, 3 min, 2 h, 4 d."""
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds)} s"


def age(moment: datetime) -> str:
    """The time since then, formatted by `rough`; 0 s if it is in the future."""
    return rough(max(0.0, (datetime.now(UTC) - moment).total_seconds()))


def seconds_since(moment: datetime) -> int:
    """0 if it is in the future."""
    return max(0, int((datetime.now(UTC) - moment).total_seconds()))


def elapsed(moment: datetime) -> str:
    """The time since then, formatted by `span`."""
    return span(seconds_since(moment))


def ago(moment: datetime) -> str:
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"in {rough(-seconds)}" if seconds < 0 else f"{rough(seconds)} ago"


def absolute(moment: datetime, zone: tzinfo = UTC) -> str:
    return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def machine(moment: datetime) -> str:
    """The time for the `datetime` attribute of <time>."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(count: float) -> str:
    """Bytes in the largest unit that fits: 512 B, 1.5 GiB, 40 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < _KIB:
            return f"{count:.1f} {unit}" if count < _SHORT and count != int(count) else f"{count:.0f} {unit}"
        count /= _KIB
    return f"{count:.1f} TiB"


def number(count: int) -> str:
    return f"{count:,}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 job, 1,200 jobs, 3 entries."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number(count)} {noun}"


def plain(word: str) -> str:
    """A stored word as text: in_progress becomes in progress."""
    return word.replace("_", " ")
