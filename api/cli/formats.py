"""The API's values as text."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from api import words
from api.cli.client import Body
from api.cli.output import styled

if TYPE_CHECKING:
    from rich.text import Text

STYLES = {
    "queued": "yellow",
    "in_progress": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "stranded": "bold red",
    "alive": "green",
    "paused": "yellow",
    "silent": "bold red",
    "failing": "bold red",
}


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def age(text: str | None) -> str:
    return "-" if text is None else words.age(moment(text))


def at(text: str | None) -> str:
    return "-" if text is None else moment(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds(value: float | None) -> str:
    return "-" if value is None else words.span(value)


def between(begin: str | None, end: str | None) -> str | None:
    """The time between two moments; until now if `end` is None."""
    if begin is None:
        return None
    until = moment(end) if end else datetime.now(UTC)
    return words.span(max(0, int((until - moment(begin)).total_seconds())))


def mebibytes(count: int | None) -> str:
    return "-" if count is None else words.size(count << 20)


def clock(event_id: str) -> str:
    """The time of an event, from its ID."""
    milliseconds = int(event_id.partition("-")[0] or 0)
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%H:%M:%S")


def alarming(count: int) -> "Text":
    """A number that should be 0."""
    return styled(f"{count:,}", "bold red" if count else "")


def word(text: str) -> "Text":
    """A state, in its color."""
    return styled(text, STYLES.get(text, ""))


def job_state(job: Body) -> "Text":
    """The state, or the progress of a running job."""
    if job["state"] == "in_progress":
        return styled(progress(job), STYLES["in_progress"])
    if job.get("resolved_at"):
        return word("resolved")
    return word("stranded" if is_stranded(job) else "cancelled" if job_error(job) == "cancelled" else job["state"])


def server_state(server: Body) -> "Text":
    """The most important part of a server's state. Earlier versions of the service do not return its job's state."""
    if server.get("stranded_by"):
        return word("stranded")
    return word("queued" if (server["job"] or {}).get("state") == "queued" else server["status"])


def taken(server: Body) -> str:
    """Who repairs a stranded server."""
    hands = server.get("taken")
    return f"{hands['by']}, {age(hands['at'])} ago" if hands else "nobody"


def off_for(thing: Body) -> str | None:
    """How long a server's guest has been off for a job. While its node does not respond, it may run again."""
    since = thing.get("off_since")
    if since and thing.get("reachable") is False:
        return "at last report"
    return words.elapsed(moment(since)) if since else None


def waiting_facts(job: Body) -> tuple[tuple[str, str | None], ...]:
    """Why a queued job has not started. Earlier versions of the service do not return it."""
    waiting = job.get("waiting")
    if not waiting:
        return ()
    return ("waiting", waiting["detail"]), ("fails at", waiting["given_up_at"] and f"{at(waiting['given_up_at'])} UTC")


def is_stranded(job: Body) -> bool:
    """Whether the server still needs a repair. The customer's view of a job does not show whether it was repaired."""
    return bool(job["error"] and job["error"]["stranded"] and not job.get("resolution") and not job.get("resolved_at"))


def contents(held: Body) -> str:
    """What a snapshot contains."""
    disks = [f"{disk['target']} {mebibytes(disk['size_mb'])}" for disk in held["disks"]]
    more = [name for name, has in (("UEFI variables", held["nvram"]), ("TPM", held["tpm"])) if has]
    return ", ".join(disks + more)


def contents_facts(held: Body | None, *, would: bool = False) -> tuple[tuple[str, str | None], ...]:
    """The contents of a snapshot or a job. `would`: of a dry run."""
    if held is None:
        return ()
    left_out = ", ".join(f"{one['target']} ({one['reason']})" for one in held["left_out"])
    return ("would contain" if would else "contents", contents(held)), ("left out", left_out or None)


def job_facts(job: Body) -> tuple[tuple[str, str | None], ...]:
    """Facts of a job that do not depend on its state."""
    held, notes = job.get("contents"), job.get("notes", ())  # older services send neither
    return (
        ("disks", "present disks only" if job.get("disks") == "present" else None),
        *contents_facts(held, would=job["kind"].startswith("check_")),
        *(("note", f"{one['code']}: {one['detail']}") for one in notes if one["code"] != "left_out" or held is None),
        ("retried by", job.get("retried_by")),
    )


def run_facts(job: Body) -> tuple[tuple[str, str | None], ...]:
    """The job's duration and the guest's downtime."""
    downtime = job["downtime_seconds"]
    return (
        ("took", between(job["started_at"], job["finished_at"])),
        ("downtime", None if downtime is None else words.span(downtime)),
        ("off for", off_for(job)),
    )


def job_error(job: Body) -> str:
    return job["error"]["code"] if job["error"] else ""


def progress(job: Body) -> str:
    return f"{job['step'] or 'starting'} {job['percent']}%"


def named(thing: Body | None) -> str:
    """A server or a snapshot: name (ID)."""
    return f"{thing['name']} ({thing['id']})" if thing else "-"


def labels(held: Body | None) -> str | None:
    return ", ".join(f"{key}={value}" for key, value in held.items()) if held else None


def what(job: Body) -> str:
    """What a job does."""
    of = f" of {job['snapshot']['name']}" if job["snapshot"] else ""
    return f"{job['kind'].replace('_', ' ')}{of} on {named(job['server'])}"


def node_state(node: Body) -> "Text":
    if node["alive"] and node["paused"]:
        return word("paused")
    return word("silent" if not node["alive"] else "failing" if node.get("failing") else "alive")


def failed_lately(node: Body) -> str:
    """The jobs that failed in the last hour, stranded ones in parentheses; "-" if an older service does not return
    it."""
    ended = node.get("last_hour")
    if not ended:
        return "-"
    return f"{ended['failed']} ({ended['stranded']} stranded)" if ended["stranded"] else str(ended["failed"])


def ended_lately(node: Body) -> str | None:
    ended = node.get("last_hour")
    return ended and f"{ended['completed']} completed, {ended['failed']} failed, {ended['stranded']} stranded"


def free(node: Body) -> str:
    """The free space of the pool with the least."""
    return words.size(min(pool["free_bytes"] for pool in node["pools"])) if node["pools"] else "-"


def log_line(line: Body) -> str:
    """A line of a job's log: timestamp, level, event, fields."""
    first = [str(line[name]) for name in ("timestamp", "level", "event") if name in line]
    rest = [f"{name}={value}" for name, value in line.items() if name not in {"timestamp", "level", "event"}]
    return " ".join(first + rest)


def summary(overview: Body) -> "Text":
    """The cell in one line, problems in red."""
    nodes, stranded = overview["nodes"], overview["stranded_servers"]
    parts = [
        (f"{overview['queued']:,} queued", ""),
        (f"{overview['in_progress']:,} in progress", ""),
        (f"{overview['completed']['hour']:,} completed and {overview['failed']['hour']:,} failed in the last hour", ""),
        (words.plural(stranded, "stranded server"), "bold red" if stranded else ""),
        (
            f"{nodes['silent']:,} of {words.plural(nodes['alive'] + nodes['silent'], 'node')} silent",
            "red" if nodes["silent"] else "",
        ),
    ]
    return styled(", ").join(styled(text, style) for text, style in parts)
