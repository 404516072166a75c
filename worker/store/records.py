"""Parses records (Redis hashes of text) into the types of `worker.store.model`.

An unreadable record must not hide the others; see docs/adr/0021-unreadable-records.md.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any, TypeVar

from pydantic import TypeAdapter

from worker.store import errors, written
from worker.store.model import (
    NUMBER_MAX,
    AccountId,
    Failure,
    Job,
    JobId,
    JobKind,
    JobState,
    ScheduleId,
    Server,
    ServerId,
    ServerState,
    Snapshot,
    SnapshotId,
    SnapshotStatus,
    Step,
)
from worker.store.unreadable import notice

Hash = dict[str, str]
Read = TypeVar("Read")
Row = TypeVar("Row")
VERSION = 1  # of each kind of record except a server's, whose version only says which lists it is in

_STATE_OF_POWER = {"on": ServerState.ACTIVE, "off": ServerState.STOPPED, "paused": ServerState.SUSPENDED}
_STATE_UNDER = {
    JobKind.CREATE: ServerState.SNAPSHOTTING,
    JobKind.RESTORE: ServerState.RESTORING,
    JobKind.UNDO: ServerState.RESTORING,
}
_LABELS: TypeAdapter[Mapping[str, str]] = TypeAdapter(dict[str, str])


def one(read: Callable[[Row], Read], shown: Row, *, kind: str, key_of: Callable[[Row], str] | None = None) -> Read:
    """Parse one record of a script's answer. Its key consists of the kind and the first item of the row, or is
    returned by `key_of`. Raises RecordUnreadable if it is damaged or from a newer version."""
    try:
        return read(shown)
    except Exception as error:  # whatever is wrong with this record, others can be read
        _notice(shown, error, kind, key_of)
        raise errors.RecordUnreadable.of(kind=kind) from error


def _notice(shown: Row, error: Exception, kind: str, key_of: Callable[[Row], str] | None) -> None:
    first: Any = shown
    notice(key_of(shown) if key_of else f"{kind}:{text(first[0])}", error)


def many(
    read: Callable[[Row], Read], rows: Iterable[Row], *, kind: str, key_of: Callable[[Row], str] | None = None
) -> tuple[Read, ...]:
    """Parse records; unreadable ones are left out, so that they do not hide the others."""
    found = []
    for shown in rows:
        try:
            found.append(read(shown))
        except Exception as error:  # noqa: BLE001 - as in `one`; it is noted
            _notice(shown, error, kind, key_of)
    return tuple(found)


def part(read: Callable[[Row], Read], shown: Row, *, key: str, otherwise: Read) -> Read:
    """Parse an optional part; the record can be shown without it."""
    try:
        return read(shown)
    except Exception as error:  # noqa: BLE001 - as above; it is noted
        notice(key, error)
        return otherwise


def known(record: Hash) -> Hash:
    """The record. Raises ValueError if a newer release wrote it: this one must not guess what it means."""
    if (version := record.get("v", "1")).isdecimal() and int(version) > VERSION:
        raise ValueError(f"a newer release wrote it: version {version}")
    return record


def text(raw: bytes) -> str:
    """Decode text for people; invalid UTF-8 is replaced."""
    return raw.decode(errors="replace")


def whole(text: str | bytes) -> int:
    """Parse an integer. Raises ValueError, also for numbers that JSON readers do not keep exact."""
    number = int(text)
    if abs(number) > NUMBER_MAX:
        raise ValueError(f"{number:.3e} is too large")
    return number


def decimal(text: str) -> float:
    """Parse a number. Raises ValueError, also for values that JSON cannot express."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def pairs(flat: Sequence[bytes]) -> Hash:
    """A script's {field, value, ...} as a dictionary."""
    texts = list(map(bytes.decode, flat))
    return dict(zip(texts[::2], texts[1::2], strict=True))


def decoded(raw: dict[bytes, bytes]) -> Hash:
    return {field.decode(): value.decode() for field, value in raw.items()}


def milliseconds(moment: datetime) -> str:
    return str(round(moment.timestamp() * 1000))


def moment(milliseconds: str | bytes | int) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def labels(text: str) -> Mapping[str, str]:
    """Parse the labels of a snapshot, a server or a schedule: a JSON object; "" means none."""
    return _LABELS.validate_json(text) if text else {}


def snapshot(snapshot_id: SnapshotId, record: Hash, server_name: str) -> Snapshot:
    known(record)
    return Snapshot(
        id=snapshot_id,
        server_id=ServerId(whole(record["server"])),
        server_name=server_name,
        account_id=AccountId(whole(record["account"])),
        name=record["name"],
        description=record["description"],
        status=SnapshotStatus(record["status"]),
        size_mb=whole(record["size_mb"]) if record["size_mb"] else None,
        created_at=moment(record["created_ms"]),
        labels=labels(record.get("labels", "")),
        protected=record.get("protected") == "1",
        expires_at=moment(record["expires_ms"]) if record.get("expires_ms") else None,
        schedule_id=ScheduleId(record["schedule"]) if record.get("schedule") else None,
        contents=written.read_contents(record.get("contents", "")),
    )


def server_state(record: Hash, holding: JobKind | None) -> ServerState:
    """`holding`: the kind of the job that holds the server; it determines the state during the job."""
    state = _STATE_OF_POWER[record["power"]]
    return _STATE_UNDER.get(holding, state) if holding else state


def server(server_id: ServerId, record: Hash, holding: JobKind | None) -> Server:
    """`holding`: the kind of the job that holds the server."""
    return Server(
        id=server_id,
        name=record["name"],
        account_id=AccountId(whole(record["account"])),
        node=record["node"],
        state=server_state(record, holding),
        job_id=JobId(record["job"]) if record.get("job") else None,
        job_kind=holding,
        consistency=record.get("consistency") or None,
        labels=labels(record.get("labels", "")),
    )


def estimated_seconds(milliseconds: Sequence[bytes], *, node: str) -> int | None:
    """The median of the durations in seconds."""
    return part(_median_seconds, milliseconds, key=f"node:{node}:milliseconds", otherwise=None)


def _median_seconds(milliseconds: Sequence[bytes]) -> int | None:
    return max(1, round(median(map(whole, milliseconds)) / 1000)) if milliseconds else None


def silent_since(silence: Sequence[bytes], *, node: str) -> datetime | None:
    """The time of a silent node's last heartbeat, from a script's answer. None: it responds, or the time is unknown."""
    return part(moment, silence[0], key=f"node:{node}", otherwise=None) if silence and silence[0] else None


def job(
    job_id: JobId, record: Hash, *, estimated_seconds: int | None = None, server_state: ServerState | None = None
) -> Job:
    known(record)
    failure = None
    if record.get("failure_code"):
        failure = Failure(
            code=record["failure_code"], detail=record["failure_detail"], stranded=record["stranded"] == "1"
        )
    return Job(
        id=job_id,
        kind=JobKind(record["kind"]),
        state=JobState(record["state"]),
        server_id=ServerId(whole(record["server"])),
        server_name=record["server_name"],
        account_id=AccountId(whole(record["account"])),
        node=record["node"],
        snapshot_id=SnapshotId(whole(record["snapshot"])),
        snapshot_name=record["snapshot_name"],
        snapshot_description=record["snapshot_description"],
        snapshot_created_at=moment(record["snapshot_created_ms"]),
        request_id=record["request_id"],
        queued_at=moment(record["queued_ms"]),
        started_at=moment(record["started_ms"]) if record.get("started_ms") else None,
        finished_at=moment(record["finished_ms"]) if record.get("finished_ms") else None,
        step=Step(record["step"]) if record.get("step") else None,
        undoes=JobId(record["undoes"]) if record.get("undoes") else None,
        server_state=server_state,
        attempts=whole(record["attempts"]),
        estimated_seconds=estimated_seconds,
        downtime_seconds=decimal(record["downtime_seconds"]) if record.get("downtime_seconds") else None,
        failure=failure,
        traceparent=record.get("traceparent", ""),
        resolved_at=moment(record["resolved_ms"]) if record.get("resolved_ms") else None,
        present_only=record.get("present_only") == "1",
        live=record.get("live") == "1",
        notes=written.read_notes(record.get("notes", "")),
        contents=written.read_contents(record.get("contents", "")),
        retried_by=JobId(record["retried_by"]) if record.get("retried_by") else None,
        off_since=moment(record["off_ms"]) if record.get("off_ms") else None,
    )
