"""Examples of the operators' calls, for the document."""

from api.jobs.examples import ASKED, JOB_ID, OPS_COMPLETED, REASON, SERVER_NAME
from api.operators import bodies
from api.operators.overview import Chart, Durations, Ended, NodeCounts, Oldest, Overview, Point
from api.servers.examples import FINDINGS as SERVERS_FINDINGS
from worker.store.model import AccountId, JobKind

AUDIT_CHECK = bodies.AuditCheck(
    checked=1204, unchained=0, faults=(), seq=5120, chain="t-N3W3iHqtb8BxYzP1vFgIUZo61E5tca9t72yZgYOyU", after=None
)
NODE = bodies.OpsNode(
    name="node-17",
    alive=True,
    heartbeat_at=ASKED,
    worker_at="pid 812 on node-17",
    paused=None,
    versions={"worker": "1.0.0", "hypervisor": "libvirt 9.0.0", "emulator": "QEMU 7.2.0"},
    pools=({"path": "/var/lib/libvirt/images", "free_bytes": 107_374_182_400, "total_bytes": 1_099_511_627_776},),
    slots=4,
    slots_max=4,
    queued=2,
    running=1,
    servers=48,
    findings=0,
    last_hour=bodies.EndedLately(completed=7, failed=1, stranded=0),
    failing=False,
)
PAUSED = NODE.model_copy(
    update={"paused": bodies.Pause(since=ASKED, reason=REASON.reason, by="alice", until=None, until_back=True)}
)
PAUSE = bodies.PauseBody(reason="kernel upgrade", until_back=True)
NODE_DETAILS = bodies.OpsNodeDetails(**dict(NODE), jobs=(OPS_COMPLETED,))
NODES = bodies.OpsNodeList(after=None, results=(NODE,))
FINDINGS = bodies.FindingsList(
    count=1,
    after=None,
    results=(bodies.ServerFindings(server=SERVER_NAME, account_id=77, node="node-17", findings=SERVERS_FINDINGS),),
    refused_claims=(
        bodies.RefusedClaim(
            node="node-18",
            call="report",
            reason="other_node",
            about="server:12345",
            count=12,
            first_at=ASKED,
            at=ASKED,
        ),
    ),
    unreadable_records=(bodies.UnreadableRecord(key="snapshot:801", reason="created_ms cannot be read", at=ASKED),),
)
_ENTRY = {"token_name": "alice", "method": "POST", "path": "/api/v1/ops/nodes/node-17/pause/", "status": "200"}
_IN_WORDS = "token alice paused node-17"
AUDIT = bodies.AuditList(
    after=None, results=(bodies.AuditEntry(id="1737044100000-0", at=ASKED, text=_IN_WORDS, fields=_ENTRY, notes=()),)
)
LIMITS = bodies.LimitsBody(snapshots_max=20)
ACCOUNT = bodies.AccountLimits(account_id=77, snapshots_max=20, is_default=False, servers=3)
CREATE_TOKEN = bodies.TokenBody(name="billing", permissions=["snapshots:read"], account_id=AccountId(77))
TOKEN_ID = "0a1b2c3d4e5f"  # noqa: S105 - an ID, not a secret
_TOKEN = bodies.OpsToken(
    id=TOKEN_ID,
    name=CREATE_TOKEN.name,
    account_id=77,
    permissions=("snapshots:read",),
    created_at=ASKED,
    expires_at=None,
)
NEW_TOKEN = bodies.NewOpsToken(**dict(_TOKEN), secret="vps_…")  # noqa: S106 - an example
TOKENS = bodies.TokenList(results=(bodies.ListedToken(**dict(_TOKEN), last_used_at=ASKED),))
_SECONDS = Durations(p50=41.2, p95=88.9)
OVERVIEW = Overview(
    at=ASKED,
    queued=3,
    in_progress=2,
    oldest_queued=Oldest(id=JOB_ID, queued_at=ASKED),
    completed=Ended(hour=31, day=702),
    failed=Ended(hour=0, day=2),
    stranded_servers=0,
    servers_off=1,
    nodes=NodeCounts(alive=47, silent=1, paused=1),
    servers_with_findings=1,
    unreadable_records=1,
    charts=(
        Chart(
            kind=JobKind.CREATE,
            points=(Point(at=ASKED, completed=8, failed=0, seconds=_SECONDS, downtime_seconds=_SECONDS),),
        ),
    ),
)
