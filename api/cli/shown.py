"""The API's values as a person reads them."""

from datetime import UTC, datetime

from rich.text import Text

from api.cli.client import Body

STYLES = {
    "queued": "yellow",
    "in_progress": "cyan",
    "completed": "green",
    "failed": "red",
    "stranded": "bold red",
    "alive": "green",
    "paused": "yellow",
    "silent": "bold red",
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def ago(text: str | None) -> str:
    """How long it is since then, in one unit."""
    if text is None:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - moment(text)).total_seconds()))
    for unit, letter in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds >= 2 * unit:
            return f"{seconds // unit}{letter}"
    return f"{seconds}s"


def at(text: str | None) -> str:
    return "-" if text is None else moment(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds(value: float | None) -> str:
    """As `0.42s`, `12s`, `3m 20s`, `1h 05m`."""
    if value is None:
        return "-"
    if value < 10 and value != int(value):  # noqa: PLR2004 - there the tenths still matter
        return f"{value:.1f}s"
    if value < _MINUTE:
        return f"{value:.0f}s"
    if value < _HOUR:
        return f"{int(value) // _MINUTE}m {int(value) % _MINUTE:02}s"
    return f"{int(value) // _HOUR}h {int(value) % _HOUR // _MINUTE:02}m"


def between(begin: str | None, end: str | None) -> str | None:
    """How long it was, to a second; until now where it goes on."""
    if begin is None:
        return None
    until = moment(end) if end else datetime.now(UTC)
    return seconds(max(0, int((until - moment(begin)).total_seconds())))


def size(count: float) -> str:
    """Bytes, in the largest unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def mebibytes(count: int | None) -> str:
    return "-" if count is None else size(count << 20)


def clock(event_id: str) -> str:
    """The moment of an event, out of its id."""
    milliseconds = int(event_id.partition("-")[0] or 0)
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%H:%M:%S")


def alarming(count: int) -> Text:
    """A number that is to be 0."""
    return Text(f"{count:,}", style="bold red" if count else "")


def word(text: str) -> Text:
    """A state, in its colour."""
    return Text(text, style=STYLES.get(text, ""))


def job_state(job: Body) -> Text:
    """In one word; of a job that runs: how far it is."""
    if job["state"] == "in_progress":
        return Text(progress(job), style=STYLES["in_progress"])
    return word("stranded" if is_stranded(job) else job["state"])


def is_stranded(job: Body) -> bool:
    """Whether a person must still look, as far as this body tells: a job in a list does not tell of its resolution."""
    return bool(job["error"] and job["error"]["stranded"] and not job.get("resolution"))


def note(one: Body) -> str:
    """What a job noted, as a line."""
    return f"{one['code']}: {one['detail']}"


def holds(contents: Body) -> str:
    """What a snapshot holds."""
    disks = [f"{disk['target']} {mebibytes(disk['size_mb'])}" for disk in contents["disks"]]
    more = [name for name, has in (("UEFI variables", contents["nvram"]), ("TPM", contents["tpm"])) if has]
    return ", ".join(disks + more)


def left_out(contents: Body) -> str:
    return ", ".join(f"{one['target']} ({one['reason']})" for one in contents["left_out"])


def contents_facts(contents: Body | None, *, would: bool = False) -> tuple[tuple[str, str | None], ...]:
    """For the facts of a snapshot or a job. `would`: of a dry run."""
    if contents is None:
        return ()
    return ("would hold" if would else "holds", holds(contents)), ("left out", left_out(contents) or None)


def job_facts(job: Body) -> tuple[tuple[str, str | None], ...]:
    """What a job says beside how it went."""
    contents, notes = job.get("contents"), job.get("notes", ())  # an earlier service tells none
    return (
        ("disks", "only those that are present" if job.get("disks") == "present" else None),
        *contents_facts(contents, would=job["kind"].startswith("check_")),
        *(("note", note(one)) for one in notes if one["code"] != "left_out" or contents is None),
        ("retried by", job.get("retried_by")),
    )


def job_error(job: Body) -> str:
    return job["error"]["code"] if job["error"] else ""


def progress(job: Body) -> str:
    return f"{job['step'] or 'begun'} {job['percent']}%"


def named(thing: Body | None) -> str:
    """A server or a snapshot: its name and number."""
    return f"{thing['name']} ({thing['id']})" if thing else "-"


def what(job: Body) -> str:
    """A job in words."""
    of = f" of {job['snapshot']['name']}" if job["snapshot"] else ""
    return f"{job['kind'].replace('_', ' ')}{of} on {named(job['server'])}"


def node_state(node: Body) -> Text:
    if node["alive"] and node["paused"]:
        return word("paused")
    return word("alive" if node["alive"] else "silent")


def free(node: Body) -> str:
    """Of the pool that has least."""
    return size(min(pool["free_bytes"] for pool in node["pools"])) if node["pools"] else "-"


def log_line(line: Body) -> str:
    """A line of a job's log: when, how bad, what, and its fields."""
    first = [str(line[name]) for name in ("timestamp", "level", "event") if name in line]
    rest = [f"{name}={value}" for name, value in line.items() if name not in {"timestamp", "level", "event"}]
    return " ".join(first + rest)


def glance(overview: Body) -> Text:
    """The cell in a line, what is bad in red."""
    nodes, stranded = overview["nodes"], overview["stranded_servers"]
    parts = [
        (f"{overview['queued']:,} queued", ""),
        (f"{overview['in_progress']:,} in progress", ""),
        (f"{overview['completed']['hour']:,} completed and {overview['failed']['hour']:,} failed in the last hour", ""),
        (f"{stranded:,} stranded {'server' if stranded == 1 else 'servers'}", "bold red" if stranded else ""),
        (f"{nodes['silent']:,} of {nodes['alive'] + nodes['silent']:,} nodes silent", "red" if nodes["silent"] else ""),
    ]
    return Text(", ").join(Text(text, style=style) for text, style in parts)
