"""What operators get."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field
from yarl import URL

from api import bodies
from api.bodies import Moment, Open
from worker.store.access.tokens import NewToken, Token
from worker.store.calls import Page
from worker.store.customers import events
from worker.store.model import Job, JobKind, Snapshot
from worker.store.operators import overview
from worker.store.operators import records as ops_records
from worker.store.operators.records import CursorPage
from worker.store.reports import NodeFacts

After = Annotated[str | None, Field(description="the cursor of what follows, for `after`; null: this was the end")]
Count = Annotated[int | None, Field(description="all of the list; null where it can't be told without counting")]


class OpsJobSummary(bodies.Job):
    """A job of any account."""

    account_id: int
    node: str
    request_id: str


class OpsJobList(Open):
    """Part of the list, newest first."""

    count: Count
    after: After
    results: tuple[OpsJobSummary, ...]


class StepTaken(Open):
    """A step of a job, or one more try of it."""

    step: str
    started_at: Annotated[datetime, Field(description="by the node's clock")]
    seconds: Annotated[float | None, Field(description="null: it is under way")]
    attempt: int


class Resolution(Open):
    """That a stranded server was put right."""

    at: Moment
    by: str
    reason: str


class OpsJob(OpsJobSummary):
    """A job with all that is known of it."""

    power_found: Annotated[str | None, Field(description="`on`, `off` or `paused`, when its node began it")]
    power_now: str | None
    runbook: Annotated[str | None, Field(description="where the runbook tells what to do about its error")]
    resolution: Resolution | None
    steps: tuple[StepTaken, ...]
    log: Annotated[tuple[dict[str, Any], ...], Field(description="its last lines: 200, 32 KiB, for 7 days")]


class BulkResult(Open):
    """What became of one of them."""

    id: str
    done: bool
    job_id: Annotated[str | None, Field(description="the new job of a retry")]
    code: Annotated[str | None, Field(description="why it was refused")]
    detail: str | None


class BulkResults(Open):
    """One for each, in their order."""

    results: tuple[BulkResult, ...]


class Pause(Open):
    """Why a node takes no new job."""

    since: Moment
    reason: str
    by: Annotated[str, Field(description="name of the token")]


class OpsNode(Open):
    """A node, as it reported last."""

    name: str
    alive: Annotated[bool, Field(description="its heart beat within the last minute")]
    heartbeat_at: Moment
    worker_at: Annotated[str, Field(description="its worker's process")]
    paused: Annotated[Pause | None, Field(description="it takes no new job")]
    versions: Annotated[dict[str, str], Field(description="of `worker`, `hypervisor` and `emulator`")]
    pools: tuple[dict[str, Any], ...]
    queued: int
    running: int
    servers: int
    findings: Annotated[int, Field(description="servers on which reconciliation has found something")]


class OpsNodeDetails(OpsNode):
    """A node with what it is doing."""

    jobs: Annotated[tuple[OpsJobSummary, ...], Field(description="those that run, at most 100")]


class OpsNodeList(Open):
    """Part of the list."""

    after: After
    results: tuple[OpsNode, ...]


class Finding(Open):
    """What reconciliation has found on a server."""

    kind: str
    tag: str
    at: Moment


class OpsServer(bodies.Server):
    """A server of any account."""

    account_id: int
    node: str
    power: str
    missing: Annotated[bool, Field(description="its node does not have it any more")]
    stranded_by: Annotated[str | None, Field(description="the job that left it other than it was found")]
    findings: tuple[Finding, ...]


class OpsServerDetails(OpsServer):
    """A server with its snapshots and its latest jobs."""

    snapshot_list: tuple[bodies.SnapshotDetails, ...]
    jobs: Annotated[tuple[OpsJobSummary, ...], Field(description="the newest 100")]


class OpsServerList(Open):
    """Part of the list."""

    count: Count
    after: After
    results: tuple[OpsServer, ...]


class ServerFindings(Open):
    """A server on which reconciliation has found something."""

    server: bodies.ServerName
    account_id: int
    node: str
    findings: tuple[Finding, ...]


class FindingsList(Open):
    """Part of the list, newest first."""

    count: Count
    after: After
    results: tuple[ServerFindings, ...]


class AuditEntry(Open):
    """Who did what, and what came of it."""

    id: str
    at: Moment
    fields: dict[str, str]
    notes: Annotated[
        tuple[str, ...],
        Field(description="codes of what its job noted, for 90 days; what a snapshot leaves out is in its `contents`"),
    ]


class AuditList(Open):
    """Part of the audit, newest first."""

    after: After
    results: tuple[AuditEntry, ...]


class OpsToken(Open):
    """A token; never its secret."""

    id: str
    name: str
    account_id: Annotated[int | None, Field(description="null: a service's or an operator's")]
    permissions: tuple[str, ...]
    created_at: Moment
    expires_at: Moment | None


class NewOpsToken(OpsToken):
    """A token that was made."""

    secret: Annotated[str, Field(description="shown now and never again")]


class TokenList(Open):
    """The valid tokens, oldest first."""

    results: tuple[OpsToken, ...]


class OpsEvent(bodies.Event):
    """A job of any account has changed: the data of one event of the stream."""

    account_id: int


class Durations(Open):
    """In seconds, to a twentieth; null where nothing was counted."""

    p50: float | None
    p95: float | None


class Point(Open):
    """What came to its end within 15 minutes."""

    at: Moment
    completed: int
    failed: int
    seconds: Durations
    downtime_seconds: Annotated[Durations, Field(description="how long guests were kept off")]


class Chart(Open):
    """The last 24 hours of one kind of job."""

    kind: JobKind
    points: Annotated[tuple[Point, ...], Field(description="a quarter of an hour in which none ended is left out")]


class Ended(Open):
    """Jobs that came to their end, to within five minutes."""

    hour: int
    day: int


class Oldest(Open):
    """The job that has waited for longest."""

    id: str
    queued_at: Moment


class NodeCounts(Open):
    """Nodes; a paused one is alive or silent too."""

    alive: int
    silent: int
    paused: int


class Overview(Open):
    """The cell at a glance."""

    at: Moment
    queued: int
    in_progress: int
    oldest_queued: Oldest | None
    completed: Ended
    failed: Ended
    stranded_servers: int
    nodes: NodeCounts
    servers_with_findings: int
    charts: Annotated[tuple[Chart, ...], Field(description="of the kinds of which any ended")]


def job_summary(record: Job) -> OpsJobSummary:
    return OpsJobSummary(
        **dict(bodies.job(record)), account_id=record.account_id, node=record.node, request_id=record.request_id
    )


def jobs(part: CursorPage[Job]) -> OpsJobList:
    return OpsJobList(count=part.count, after=part.after, results=tuple(map(job_summary, part.results)))


def job(record: ops_records.OpsJob, *, runbook_url: str) -> OpsJob:
    failure, resolution = record.job.failure, record.resolution
    return OpsJob(
        **dict(job_summary(record.job)),
        power_found=record.power_found,
        power_now=record.power_now,
        runbook=f"{runbook_url}#{failure.code}" if failure else None,
        resolution=Resolution(at=resolution.at, by=resolution.by, reason=resolution.reason) if resolution else None,
        steps=tuple(
            StepTaken(step=s.step, started_at=s.started_at, seconds=s.seconds, attempt=s.attempt) for s in record.steps
        ),
        log=tuple(dict(line) for line in record.log),
    )


def node(record: ops_records.Node) -> OpsNode:
    pause, facts = record.pause, record.facts or NodeFacts(worker="", hypervisor="", emulator="", pools=())
    versions = facts.model_dump(exclude={"pools"})
    return OpsNode(
        name=record.name,
        alive=record.alive,
        heartbeat_at=record.heartbeat_at,
        worker_at=record.worker_at,
        paused=Pause(since=pause.since, reason=pause.reason, by=pause.by) if pause else None,
        versions={part: version for part, version in versions.items() if version},
        pools=tuple(pool.model_dump() for pool in facts.pools),
        queued=record.queued,
        running=record.running,
        servers=record.servers,
        findings=record.findings,
    )


def node_details(record: ops_records.Node, running: CursorPage[Job]) -> OpsNodeDetails:
    return OpsNodeDetails(**dict(node(record)), jobs=tuple(map(job_summary, running.results)))


def nodes(part: CursorPage[ops_records.Node]) -> OpsNodeList:
    return OpsNodeList(after=part.after, results=tuple(map(node, part.results)))


def _findings(found: tuple[ops_records.Finding, ...]) -> tuple[Finding, ...]:
    return tuple(Finding(kind=one.kind, tag=one.tag, at=one.at) for one in found)


def server(record: ops_records.OpsServer) -> OpsServer:
    return OpsServer(
        **dict(bodies.server(record.view)),
        account_id=record.view.server.account_id,
        node=record.view.server.node,
        power=record.power,
        missing=record.missing,
        stranded_by=record.stranded_by,
        findings=_findings(record.findings),
    )


def server_details(
    record: ops_records.OpsServer, snapshots: Page[Snapshot], latest: CursorPage[Job]
) -> OpsServerDetails:
    return OpsServerDetails(
        **dict(server(record)),
        snapshot_list=tuple(map(bodies.details, snapshots.results)),
        jobs=tuple(map(job_summary, latest.results)),
    )


def servers(part: CursorPage[ops_records.OpsServer]) -> OpsServerList:
    return OpsServerList(count=part.count, after=part.after, results=tuple(map(server, part.results)))


def findings(part: CursorPage[ops_records.ServerFindings]) -> FindingsList:
    results = tuple(
        ServerFindings(
            server=bodies.ServerName(id=one.server_id, name=one.server_name),
            account_id=one.account_id,
            node=one.node,
            findings=_findings(one.findings),
        )
        for one in part.results
    )
    return FindingsList(count=part.count, after=part.after, results=results)


def audit(part: CursorPage[ops_records.AuditEntry]) -> AuditList:
    entries = tuple(AuditEntry(id=one.id, at=one.at, fields=dict(one.fields), notes=one.notes) for one in part.results)
    return AuditList(after=part.after, results=entries)


def token(record: Token) -> OpsToken:
    return OpsToken(
        id=record.id,
        name=record.name,
        account_id=record.account_id,
        permissions=tuple(sorted(record.permissions)),
        created_at=record.created_at,
        expires_at=record.expires_at,
    )


def new_token(new: NewToken) -> NewOpsToken:
    return NewOpsToken(**dict(token(new.token)), secret=new.secret)


def event(record: events.Event) -> OpsEvent:
    return OpsEvent(**dict(bodies.event(record)), account_id=record.account_id)


def _durations(record: overview.Durations) -> Durations:
    return Durations(p50=record.p50, p95=record.p95)


def _point(record: overview.Point) -> Point:
    return Point(
        at=record.at,
        completed=record.completed,
        failed=record.failed,
        seconds=_durations(record.seconds),
        downtime_seconds=_durations(record.downtime_seconds),
    )


def glance(record: overview.Overview) -> Overview:
    oldest = record.oldest
    return Overview(
        at=record.at,
        queued=record.queued,
        in_progress=record.in_progress,
        oldest_queued=Oldest(id=oldest.job_id, queued_at=oldest.queued_at) if oldest else None,
        completed=Ended(hour=record.completed_hour, day=record.completed_day),
        failed=Ended(hour=record.failed_hour, day=record.failed_day),
        stranded_servers=record.stranded_servers,
        nodes=NodeCounts(
            alive=record.nodes_alive, silent=record.nodes - record.nodes_alive, paused=record.nodes_paused
        ),
        servers_with_findings=record.servers_with_findings,
        charts=tuple(Chart(kind=kind, points=tuple(map(_point, points))) for kind, points in record.charts.items()),
    )


def place(record: Job) -> dict[str, str]:
    """Where to follow a job."""
    return {"Operation-Location": f"/api/v1/ops/jobs/{record.id}/", "X-Job-Id": record.id}


def follow(url: URL, after: str | None) -> dict[str, str]:
    """The header that leads to the next part, with all other parameters of the query kept."""
    here = url.relative() if url.absolute else url
    return {"Link": f'<{here.update_query(after=after)}>; rel="next"'} if after else {}
