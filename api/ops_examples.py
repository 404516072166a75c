"""The examples of the operators' calls."""

from datetime import UTC, datetime, timedelta

from api import bodies, ops_bodies
from api.examples import DETAILS, JOB_CANCELLED, JOB_COMPLETED, JOB_FAILED, JOB_ID, REQUEST_ID, SERVER, UNDO_WAITS
from api.examples import EVENT as CUSTOMERS_EVENT
from api.ops_requests import BulkBody, ReasonBody, TokenBody
from worker.store.model import AccountId, JobId, JobKind

_AT = datetime(2025, 1, 16, 16, 15, tzinfo=UTC)


def _job(job: bodies.Job) -> ops_bodies.OpsJobSummary:
    return ops_bodies.OpsJobSummary(**dict(job), account_id=77, node="node-17", request_id=REQUEST_ID)


REASON = ReasonBody(reason="a disk of the storage is to be changed")
RESOLVED_BY = ops_bodies.Resolution(at=_AT + timedelta(hours=1), by="alice", reason="started by hand")
FAILED = ops_bodies.OpsJob(
    **dict(_job(JOB_FAILED)),
    power_found="on",
    power_now="on",
    runbook="/ops/runbook/#not_enough_space",
    resolution=None,
    steps=(ops_bodies.StepTaken(step="preflight", started_at=_AT, seconds=0.021, attempt=1),),
    log=({"event": "job.failed", "level": "warning", "code": "not_enough_space"},),
)
RESOLVED = FAILED.model_copy(update={"resolution": RESOLVED_BY})
RETRIED = _job(UNDO_WAITS)
CANCELLED = _job(JOB_CANCELLED)
JOBS = ops_bodies.OpsJobList(count=1, after=None, results=(_job(JOB_COMPLETED),))
BULK = BulkBody(action="retry", ids=[JobId(JOB_ID)])
BULK_RESULTS = ops_bodies.BulkResults(
    results=(
        ops_bodies.BulkResult(
            id=JOB_ID, done=False, job_id=None, code="job_not_retryable", detail="The job is completed."
        ),
    )
)
NODE = ops_bodies.OpsNode(
    name="node-17",
    alive=True,
    heartbeat_at=_AT,
    worker_at="pid 812 on node-17",
    paused=None,
    versions={"worker": "0.1.0", "hypervisor": "libvirt 9.0.0", "emulator": "QEMU 7.2.0"},
    pools=({"path": "/var/lib/libvirt/images", "free_bytes": 107_374_182_400, "total_bytes": 1_099_511_627_776},),
    queued=2,
    running=1,
    servers=48,
    findings=0,
)
PAUSED = NODE.model_copy(update={"paused": ops_bodies.Pause(since=_AT, reason=REASON.reason, by="alice")})
NODE_DETAILS = ops_bodies.OpsNodeDetails(**dict(NODE), jobs=(_job(JOB_COMPLETED),))
NODES = ops_bodies.OpsNodeList(after=None, results=(NODE,))
_FINDINGS = (ops_bodies.Finding(kind="torn_snapshot", tag="vps-801", at=_AT),)
_SERVER = ops_bodies.OpsServer(
    **dict(SERVER), account_id=77, node="node-17", power="on", missing=False, stranded_by=None, findings=_FINDINGS
)
SERVERS = ops_bodies.OpsServerList(count=1, after=None, results=(_SERVER,))
SERVER_DETAILS = ops_bodies.OpsServerDetails(**dict(_SERVER), snapshot_list=(DETAILS,), jobs=(_job(JOB_COMPLETED),))
FINDINGS = ops_bodies.FindingsList(
    count=1,
    after=None,
    results=(
        ops_bodies.ServerFindings(
            server=bodies.ServerName(id=12345, name="web-server-01"), account_id=77, node="node-17", findings=_FINDINGS
        ),
    ),
)
AUDIT = ops_bodies.AuditList(
    after=None,
    results=(
        ops_bodies.AuditEntry(
            id="1737044100000-0",
            at=_AT,
            fields={
                "token_name": "alice",
                "method": "POST",
                "path": "/api/v1/ops/nodes/node-17/pause/",
                "status": "200",
            },
            notes=(),
        ),
    ),
)
TOKEN = TokenBody(name="billing", permissions=["snapshots:read"], account_id=AccountId(77))
_TOKEN = ops_bodies.OpsToken(
    id="0a1b2c3d4e5f",
    name=TOKEN.name,
    account_id=77,
    permissions=("snapshots:read",),
    created_at=_AT,
    expires_at=None,
)
NEW_TOKEN = ops_bodies.NewOpsToken(**dict(_TOKEN), secret="vps_…")  # noqa: S106 - none, an example
TOKENS = ops_bodies.TokenList(results=(_TOKEN,))
EVENT = ops_bodies.OpsEvent(**dict(CUSTOMERS_EVENT), account_id=77)
_SECONDS = ops_bodies.Durations(p50=41.2, p95=88.9)
OVERVIEW = ops_bodies.Overview(
    at=_AT,
    queued=3,
    in_progress=2,
    oldest_queued=ops_bodies.Oldest(id=JOB_ID, queued_at=_AT),
    completed=ops_bodies.Ended(hour=31, day=702),
    failed=ops_bodies.Ended(hour=0, day=2),
    stranded_servers=0,
    nodes=ops_bodies.NodeCounts(alive=47, silent=1, paused=1),
    servers_with_findings=1,
    charts=(
        ops_bodies.Chart(
            kind=JobKind.CREATE,
            points=(ops_bodies.Point(at=_AT, completed=8, failed=0, seconds=_SECONDS, downtime_seconds=_SECONDS),),
        ),
    ),
)
