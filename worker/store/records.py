"""Parses records (Redis hashes of text) into the types of `worker.store.model`."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from statistics import median
from typing import Any, TypeVar

import structlog

from worker.store import errors, written
from worker.store.model import (
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

Hash = dict[str, str]
Read = TypeVar("Read")

_STATE_OF_POWER = {"on": ServerState.ACTIVE, "off": ServerState.STOPPED, "paused": ServerState.SUSPENDED}
_STATE_UNDER = {
    JobKind.CREATE: ServerState.SNAPSHOTTING,
    JobKind.RESTORE: ServerState.RESTORING,
    JobKind.UNDO: ServerState.RESTORING,
}

log = structlog.stdlib.get_logger()


def one(read: Callable[[list[Any]], Read], shown: list[Any], *, kind: str) -> Read:
    """Parse one record of a script's answer. Raises RecordUnreadable if it is damaged or from a newer version."""
    try:
        return read(shown)
    except (KeyError, ValueError, OverflowError, OSError) as error:
        log.warning("record.unreadable", field=kind, id=shown[0].decode(), reason=str(error))
        raise errors.RecordUnreadable.of(kind=kind) from error


def many(read: Callable[[list[Any]], Read], rows: Iterable[list[Any]], *, kind: str) -> tuple[Read, ...]:
    """Parse records; unreadable ones are left out, so that they do not hide the others."""
    found = []
    for shown in rows:
        with suppress(errors.RecordUnreadable):
            found.append(one(read, shown, kind=kind))
    return tuple(found)


def pairs(flat: Sequence[bytes]) -> Hash:
    """A script's {field, value, ...} as a dictionary."""
    texts = [item.decode() for item in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def decoded(raw: dict[bytes, bytes]) -> Hash:
    return {field.decode(): value.decode() for field, value in raw.items()}


def milliseconds(moment: datetime) -> str:
    return str(round(moment.timestamp() * 1000))


def moment(milliseconds: str | bytes | int) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def snapshot(snapshot_id: SnapshotId, record: Hash, server_name: str) -> Snapshot:
    return Snapshot(
        id=snapshot_id,
        server_id=ServerId(int(record["server"])),
        server_name=server_name,
        account_id=AccountId(int(record["account"])),
        name=record["name"],
        description=record["description"],
        status=SnapshotStatus(record["status"]),
        size_mb=int(record["size_mb"]) if record["size_mb"] else None,
        created_at=moment(record["created_ms"]),
        labels=json.loads(record["labels"]) if record.get("labels") else {},
        protected=record.get("protected") == "1",
        expires_at=moment(record["expires_ms"]) if record.get("expires_ms") else None,
        schedule_id=ScheduleId(record["schedule"]) if record.get("schedule") else None,
        contents=written.read_contents(record.get("contents", "")),
    )


def server_state(record: Hash, holding: JobKind | None) -> ServerState:
    """`holding`: the kind of the job that holds the server; it determines the state while the job lasts."""
    state = _STATE_OF_POWER[record["power"]]
    return _STATE_UNDER.get(holding, state) if holding else state


def server(server_id: ServerId, record: Hash, holding: JobKind | None) -> Server:
    """`holding`: the kind of the job that holds the server."""
    return Server(
        id=server_id,
        name=record["name"],
        account_id=AccountId(int(record["account"])),
        node=record["node"],
        state=server_state(record, holding),
        job_id=JobId(record["job"]) if record.get("job") else None,
        job_kind=holding,
    )


def job(
    job_id: JobId, record: Hash, milliseconds: Sequence[bytes] = (), server_state: ServerState | None = None
) -> Job:
    """`milliseconds`: durations of the node's latest completed jobs of this kind."""
    failure = None
    if record.get("failure_code"):
        failure = Failure(
            code=record["failure_code"], detail=record["failure_detail"], stranded=record["stranded"] == "1"
        )
    return Job(
        id=job_id,
        kind=JobKind(record["kind"]),
        state=JobState(record["state"]),
        server_id=ServerId(int(record["server"])),
        server_name=record["server_name"],
        account_id=AccountId(int(record["account"])),
        node=record["node"],
        snapshot_id=SnapshotId(int(record["snapshot"])),
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
        attempts=int(record["attempts"]),
        estimated_seconds=max(1, round(median(map(int, milliseconds)) / 1000)) if milliseconds else None,
        downtime_seconds=float(record["downtime_seconds"]) if record.get("downtime_seconds") else None,
        failure=failure,
        traceparent=record.get("traceparent", ""),
        resolved_at=moment(record["resolved_ms"]) if record.get("resolved_ms") else None,
        present_only=record.get("present_only") == "1",
        live=record.get("live") == "1",
        notes=written.read_notes(record.get("notes", "")),
        contents=written.read_contents(record.get("contents", "")),
        retried_by=JobId(record["retried_by"]) if record.get("retried_by") else None,
    )
