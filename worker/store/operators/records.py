"""The records that operators see, parsed from the scripts' answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.store import errors, records
from worker.store.calls import kind_of, shown_job
from worker.store.model import AccountId, Job, JobId, ServerId, ServerView
from worker.store.reports import NodeFacts


@dataclass(frozen=True, kw_only=True)
class AccountLimits:
    account_id: AccountId
    snapshots_max: int  # of each of its servers
    is_default: bool
    servers: int


@dataclass(frozen=True, kw_only=True)
class Pause:
    since: datetime
    reason: str
    by: str  # name of the operator's token


@dataclass(frozen=True, kw_only=True)
class Node:
    name: str
    alive: bool
    heartbeat_at: datetime
    worker_at: str  # its worker's process and machine, readable
    pause: Pause | None
    facts: NodeFacts | None  # None: not reported yet
    queued: int
    running: int
    servers: int
    findings: int  # servers with findings


@dataclass(frozen=True, kw_only=True)
class Finding:
    kind: str
    tag: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class ServerFindings:
    server_id: ServerId
    server_name: str
    account_id: AccountId
    node: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class RefusedClaim:
    """What a node said that does not fit what was decided: a fault of its worker, or of whoever has its credential."""

    node: str
    call: str  # as `NodeStore` names its scripts: begin, publish, ...
    reason: str
    about: str  # what the latest one named: "server:12345"; "": nothing that can be shown
    count: int
    first_at: datetime
    at: datetime  # of the latest


@dataclass(frozen=True, kw_only=True)
class OpsServer:
    view: ServerView
    power: str  # as last reported
    missing: bool  # its node no longer reports it
    stranded_by: JobId | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class StepTaken:
    """An attempt at a step of a job."""

    step: str
    started_at: datetime
    seconds: float | None  # None: running
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Resolution:
    at: datetime
    by: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Whether a job can be retried. `refusal`: why not, or why only with force; None: it can."""

    job: Job
    refusal: errors.Refused | None

    @property
    def needs_force(self) -> bool:
        return isinstance(self.refusal, errors.RetryNeedsForce)

    @property
    def is_possible(self) -> bool:
        """Also if only with force."""
        return self.refusal is None or self.needs_force


@dataclass(frozen=True, kw_only=True)
class OpsJob:
    """A job with its steps and log."""

    retry: Retry
    power_found: str | None  # as last reported when the job started
    power_now: str | None
    steps: tuple[StepTaken, ...]
    log: tuple[Mapping[str, Any], ...]
    resolution: Resolution | None

    @property
    def job(self) -> Job:
        return self.retry.job


@dataclass(frozen=True, kw_only=True)
class UnreadableRecord:
    """`key` in Redis; of an entry in a stream or hash, the entry behind a space. `at`: when it was met last."""

    key: str
    reason: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    id: str
    at: datetime
    fields: Mapping[str, str]
    notes: tuple[str, ...] = ()  # codes of the notes of the entry's job


def node(shown: list[Any]) -> Node:
    name, flat, silent, queued, running, servers, findings = shown
    record = records.pairs(flat)
    paused = record.get("paused_ms")
    return Node(
        name=name.decode(),
        alive=not silent,
        heartbeat_at=records.moment(record["heartbeat_ms"]),
        worker_at=record["who"],
        pause=Pause(since=records.moment(paused), reason=record["paused_reason"], by=record["paused_by"])
        if paused
        else None,
        facts=records.part(_facts, record.get("about", ""), key=f"node:{name.decode()}", otherwise=None),
        queued=queued,
        running=running,
        servers=servers,
        findings=findings,
    )


def _facts(text: str) -> NodeFacts | None:
    return NodeFacts.model_validate_json(text) if text else None


def _findings(text: bytes) -> tuple[Finding, ...]:
    found = json.loads(text) if text else []
    return tuple(
        Finding(kind=str(one["finding"]), tag=str(one["tag"]), at=records.moment(1000 * int(one["at"])))
        for one in found
    )


def server_findings(shown: list[bytes]) -> ServerFindings:
    server_id, name, account, at_node, found = shown
    return ServerFindings(
        server_id=ServerId(int(server_id)),
        server_name=records.text(name),
        account_id=AccountId(int(account)),
        node=records.text(at_node),
        findings=_findings(found),
    )


def key_of_findings(shown: list[bytes]) -> str:
    server_id, _, _, at_node, _ = map(records.text, shown)
    return f"node:{at_node}:findings {server_id}"


def refused_claim(shown: list[bytes]) -> RefusedClaim:
    node_name, call, reason, count, first_ms, last_ms, about = (text.decode() for text in shown)
    return RefusedClaim(
        node=node_name,
        call=call,
        reason=reason,
        about=about,
        count=int(count),
        first_at=records.moment(first_ms),
        at=records.moment(last_ms),
    )


def server(shown: list[Any]) -> OpsServer:
    server_id, flat, holding, counted, found, snapshots_max = shown
    record = records.pairs(flat)
    known = records.server(ServerId(int(server_id)), record, kind_of(holding))
    return OpsServer(
        view=ServerView(server=known, counted=counted, snapshots_max=snapshots_max, reachable="missing" not in record),
        power=record["power"],
        missing="missing" in record,
        stranded_by=JobId(record["stranded"]) if "stranded" in record else None,
        findings=records.part(_findings, found, key=f"node:{known.node}:findings {known.id}", otherwise=()),
    )


def job(shown: list[Any]) -> OpsJob:
    job_id, row, steps, lines, power_now, refused = shown
    key = f"job:{job_id.decode()}"
    record = records.pairs(row[1])
    resolved = record.get("resolved_ms")
    return OpsJob(
        retry=retry([row, refused]),
        power_found=record.get("power_found") or None,
        power_now=records.text(power_now) or None,
        steps=records.part(_steps, steps, key=f"{key}:steps", otherwise=()),
        log=tuple(map(_line, lines)),
        resolution=Resolution(at=records.moment(resolved), by=record["resolved_by"], reason=record["resolved_reason"])
        if resolved
        else None,
    )


def retry(shown: list[Any]) -> Retry:
    row, refused = shown
    _, *found = map(records.text, refused) if refused else [""]
    return Retry(job=shown_job(row), refusal=errors.refusal(*found) if found else None)


def _steps(texts: Sequence[bytes]) -> tuple[StepTaken, ...]:
    """A step lasts until the next one starts; the end of the job is reported as a step without a name."""
    reported: list[Mapping[str, Any]] = [json.loads(text) for text in texts]
    ends = [float(step["ms"]) for step in reported[1:]]
    return tuple(
        StepTaken(
            step=str(step["step"]),
            started_at=records.moment(step["ms"]),
            seconds=round((end - step["ms"]) / 1000, 3) if end is not None else None,
            attempt=int(step["attempt"]),
        )
        for step, end in zip(reported, [*ends, None], strict=False)
        if step["step"]
    )


def _line(text: bytes) -> Mapping[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):  # it was too long and was cut
        return {"event": records.text(text)}


def audit_entry(shown: list[Any]) -> AuditEntry:
    entry_id, flat, noted = shown
    return AuditEntry(
        id=entry_id.decode(),
        at=records.moment(entry_id.decode().partition("-")[0]),
        fields=records.pairs(flat),
        notes=tuple(records.text(noted).split()),
    )


def key_of_audit(shown: list[Any]) -> str:
    return f"audit {records.text(shown[0])}"


def unreadable(shown: list[bytes]) -> UnreadableRecord:
    key, reason, at = shown
    return UnreadableRecord(key=records.text(key), reason=records.text(reason), at=records.moment(at))
