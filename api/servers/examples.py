"""Examples of servers, for the document."""

from api.jobs.examples import ASKED, JOB_ID, OPS_COMPLETED, SERVER_NAME
from api.servers.bodies import (
    AccountBody,
    BusyJob,
    Finding,
    NodeBody,
    OpsBusyJob,
    OpsServer,
    OpsServerDetails,
    OpsServerList,
    PlacementBody,
    Server,
    ServerEdit,
    Taken,
)
from api.snapshots.examples import DETAILS
from worker.store.model import SNAPSHOTS_PER_SERVER, AccountId, JobKind, JobState, ServerState

SERVER = Server(
    **dict(SERVER_NAME),
    status=ServerState.RESTORING,
    snapshots=2,
    snapshots_max=SNAPSHOTS_PER_SERVER,
    job=BusyJob(id=JOB_ID, kind=JobKind.RESTORE),
    reachable=True,
    consistency=None,
    labels={"backup": "nightly"},
)
EDIT = ServerEdit(consistency="live", labels={"backup": "nightly"})
FINDINGS = (Finding(kind="torn_snapshot", tag="vps-801", at=ASKED),)
OPS_SERVER = OpsServer(
    **dict(SERVER) | {"job": OpsBusyJob(id=JOB_ID, kind=JobKind.RESTORE, state=JobState.IN_PROGRESS)},
    account_id=77,
    node="node-17",
    power="off",
    off_since=ASKED,
    missing=False,
    stranded_by=None,
    taken=None,
    findings=FINDINGS,
)
TAKEN = OPS_SERVER.model_copy(
    update={"job": None, "off_since": ASKED, "stranded_by": JOB_ID, "taken": Taken(by="alice", at=ASKED)}
)
OPS_SERVERS = OpsServerList(count=1, after=None, results=(OPS_SERVER,))
OPS_DETAILS = OpsServerDetails(**dict(OPS_SERVER), snapshot_list=(DETAILS,), jobs=(OPS_COMPLETED,))
TO_NODE = NodeBody(node="node-18")
TO_ACCOUNT = AccountBody(account_id=AccountId(78))
PLACEMENT = PlacementBody(node="node-17", account_id=AccountId(77))
