"""The records that operators see, parsed from the scripts' answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from worker.store import errors, records
from worker.store.calls import kind_of, shown_job
from worker.store.model import AccountId, Job, JobId, JobState, ServerId, ServerView
from worker.store.operators import waiting
from worker.store.operators.waiting import Waiting


@dataclass(frozen=True, kw_only=True)
class AccountLimits:
    account_id: AccountId
    snapshots_max: int  # the limit of each of its servers
    is_default: bool
    servers: int


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
    """A claim of a node that contradicts the service's records: a fault of its worker, or someone else has its
    credential."""

    node: str
    call: str  # the name of the script of `NodeStore`: begin, publish, ...
    reason: str
    about: str  # the object of the latest claim, such as "server:12345"; "": none that can be shown
    count: int
    first_at: datetime
    at: datetime  # time of the latest claim


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Who repairs a stranded server."""

    by: str  # name of the operator's token
    at: datetime


@dataclass(frozen=True, kw_only=True)
class OpsServer:
    view: ServerView
    power: str  # as last reported
    missing: bool  # its node no longer reports it
    stranded_by: JobId | None
    taken: Taken | None  # only for a stranded server
    findings: tuple[Finding, ...]
    job_state: JobState | None = None  # state of the job that holds it
    off_since: datetime | None = None  # when a job asked the running guest to stop; None: it is not off for a job
    is_silent: bool = False  # its node does not respond: all this is as it was
    silent_since: datetime | None = None  # time of a silent node's last heartbeat; None: never


@dataclass(frozen=True, kw_only=True)
class StepTaken:
    """An attempt at a step of a job."""

    step: str
    started_at: datetime
    seconds: float | None  # None: running
    attempt: int
    failed: bool = False  # it was retried, or is the last failure in the log


@dataclass(frozen=True, kw_only=True)
class Resolution:
    at: datetime
    by: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Whether a job can be retried. `refusal`: why not, or why it needs force; None: it can be retried."""

    job: Job
    refusal: errors.Refused | None

    @property
    def needs_force(self) -> bool:
        return isinstance(self.refusal, errors.RetryNeedsForce)

    @property
    def is_possible(self) -> bool:
        """Whether the job can be retried, possibly with force."""
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
    waiting: Waiting | None  # for a queued job
    taken: Taken | None  # for a job that stranded its server
    cause: str | None  # the hypervisor's message for the failure, with paths of the host; never shown to customers

    @property
    def job(self) -> Job:
        return self.retry.job


@dataclass(frozen=True, kw_only=True)
class UnreadableRecord:
    """`key` in Redis; for a stream or hash, followed by a space and the entry. `at`: when it was last read."""

    key: str
    reason: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    id: str
    at: datetime
    fields: Mapping[str, str]
    notes: tuple[str, ...] = ()  # codes of the job's notes


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
    server_id, flat, holding, state, counted, found, off_ms, snapshots_max, silence = shown
    record = records.pairs(flat)
    known = records.server(ServerId(int(server_id)), record, kind_of(holding))
    return OpsServer(
        view=ServerView(
            server=known,
            counted=counted,
            snapshots_max=snapshots_max,
            reachable=not (silence or record.keys() & {"missing", "unpublished"}),
        ),
        power=record["power"],
        missing="missing" in record,
        stranded_by=JobId(record["stranded"]) if "stranded" in record else None,
        taken=_taken(record),
        findings=records.part(_findings, found, key=f"node:{known.node}:findings {known.id}", otherwise=()),
        job_state=JobState(state.decode()) if state else None,
        off_since=records.moment(off_ms) if off_ms else None,
        is_silent=bool(silence),
        silent_since=records.silent_since(silence, node=known.node),
    )


def _taken(server: records.Hash) -> Taken | None:
    by = server.get("taken_by")
    return Taken(by=by, at=records.moment(server["taken_ms"])) if by else None


def job(shown: list[Any], *, waiting_seconds: float) -> OpsJob:
    """`waiting_seconds`: how long a job waits for a silent node."""
    job_id, row, steps, lines, power_now, refused, waits = shown
    key = f"job:{job_id.decode()}"
    record = records.pairs(row[1])
    resolved = record.get("resolved_ms")
    server_now = records.pairs(row[3])
    log = tuple(map(_line, lines))
    return OpsJob(
        retry=retry([row, refused]),
        power_found=record.get("power_found") or None,
        power_now=records.text(power_now) or None,
        steps=_marked(records.part(_steps, steps, key=f"{key}:steps", otherwise=()), log),
        log=log,
        resolution=Resolution(at=records.moment(resolved), by=record["resolved_by"], reason=record["resolved_reason"])
        if resolved
        else None,
        waiting=waiting.waiting(record["node"], waits, waiting_seconds) if waits else None,
        taken=_taken(server_now) if server_now.get("stranded") == job_id.decode() else None,
        cause=record.get("failure_cause"),
    )


def retry(shown: list[Any]) -> Retry:
    row, refused = shown
    _, *found = map(records.text, refused) if refused else [""]
    return Retry(job=shown_job(row), refusal=errors.refusal(*found) if found else None)


def _steps(texts: Sequence[bytes]) -> tuple[StepTaken, ...]:
    """The steps of a job. A step lasts until the next one starts; the end of the job is reported as a step without a
    name."""
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


def _marked(steps: tuple[StepTaken, ...], log: Sequence[Mapping[str, Any]]) -> tuple[StepTaken, ...]:
    """Mark the failed attempts: those of a step that was retried, and the last failure in the log."""
    failed = {line.get("step") for line in log if line.get("event") == "step.failed"}
    names = [taken.step for taken in steps]
    marked = []
    for place, taken in enumerate(steps):
        rest = names[place + 1 :]
        is_tried_again = bool(rest) and rest[0] == taken.step
        marked.append(replace(taken, failed=is_tried_again or (taken.step in failed and taken.step not in rest)))
    return tuple(marked)


def _line(text: bytes) -> Mapping[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):  # the line was cut because it was too long
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
