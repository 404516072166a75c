"""The bodies of servers, for customers and for operators."""

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field

from api.http.answers import After, KindOfJob, Open, StatusOfServer, Timestamp, TotalIfKnown, from_record
from api.http.consistency import Choice
from api.http.fields import (
    LABELS_MAX,
    LEFT_OUT,
    NOT_NULL,
    AccountIdInBody,
    CursorQuery,
    Labels,
    NodeInPath,
    NodeName,
    OfAccount,
    RequestBody,
    digits,
    truth,
)
from api.jobs.bodies import OffSince, OpsJobSummary, ops_job_summary
from api.snapshots.bodies import SnapshotDetails, details
from worker.store import model
from worker.store.calls import CursorPage, Page
from worker.store.model import Job, JobState, Snapshot
from worker.store.operators import records


class OpsServersQuery(CursorQuery):
    """The query of the list of all servers."""

    node: NodeInPath | None = None
    account_id: OfAccount | None = None
    stranded: Annotated[bool, Field(description="only stranded servers"), BeforeValidator(truth)] = False
    off: Annotated[bool, Field(description="only servers whose guest is off for a job"), BeforeValidator(truth)] = False
    no_snapshot_days: (
        Annotated[
            int,
            Field(ge=1, le=366, description="only servers without a completed snapshot in the last N days"),
            BeforeValidator(digits),
        ]
        | None
    ) = None

    @property
    def without_snapshot_of(self) -> timedelta | None:
        return None if self.no_snapshot_days is None else timedelta(days=self.no_snapshot_days)


class NodeBody(RequestBody):
    """The node that a server is on."""

    node: NodeName


class AccountBody(RequestBody):
    """The account that owns a server."""

    account_id: AccountIdInBody


class PlacementBody(RequestBody):
    """The node that a server is on, and the account that owns it."""

    node: NodeName
    account_id: AccountIdInBody


class BusyJob(Open):
    """The job that is using a server."""

    id: str
    kind: KindOfJob


class OpsBusyJob(BusyJob):
    """The running or queued job of a server."""

    state: JobState


class Server(Open):
    """A server, and whether it accepts new jobs."""

    id: int
    name: str
    status: StatusOfServer
    snapshots: Annotated[int, Field(description="how many snapshots it has; failed ones do not count")]
    snapshots_max: Annotated[int, Field(description="how many it may have: 5, unless the provider sets another limit")]
    job: Annotated[BusyJob | None, Field(description="its running job")]
    reachable: Annotated[bool, Field(description="whether its node responds, so that new jobs are accepted")]
    consistency: Annotated[
        str | None,
        Field(
            description="the default of its creates: `stop` or `live`; more may be added. null: the provider's default"
        ),
    ]
    labels: Annotated[dict[str, str], Field(description="set with `PATCH`")]


class ServerEdit(RequestBody):
    """The fields to change; fields that are left out stay."""

    consistency: Annotated[
        Choice | None,
        LEFT_OUT,
        Field(
            description="the default of its creates: `stop`, `live` (if the provider allows it), or null for the"
            " provider's default"
        ),
    ] = None
    labels: Annotated[
        Labels | None,
        *NOT_NULL,
        Field(
            description=f"at most {LABELS_MAX}; replaces all labels of the server. Schedules can select servers by them"
        ),
    ] = None


class Finding(Open):
    """A difference that reconciliation found on a server."""

    kind: str
    tag: str
    at: Timestamp


class Taken(Open):
    """Who repairs a stranded server."""

    by: Annotated[str, Field(description="the name of the token")]
    at: Timestamp


class OpsServer(Server):
    """A server of any account."""

    job: Annotated[OpsBusyJob | None, Field(description="its running or queued job")]
    account_id: int
    node: str
    power: str
    off_since: OffSince
    missing: Annotated[bool, Field(description="its node no longer reports it")]
    stranded_by: Annotated[str | None, Field(description="the job that stranded it")]
    taken: Annotated[Taken | None, Field(description="for a stranded server: who repairs it")]
    findings: tuple[Finding, ...]


class OpsServerDetails(OpsServer):
    """A server with its snapshots and its latest jobs."""

    snapshot_list: tuple[SnapshotDetails, ...]
    jobs: Annotated[tuple[OpsJobSummary, ...], Field(description="the newest 100")]


class OpsServerList(Open):
    """One page of the list."""

    count: TotalIfKnown
    after: After
    results: tuple[OpsServer, ...]


def _parts(view: model.ServerView) -> dict[str, object]:
    """The fields of a server's body that the record lacks or names differently."""
    record = view.server
    return {
        "status": record.state,
        "snapshots": view.counted,
        "snapshots_max": view.snapshots_max,
        "job": BusyJob(id=record.job_id, kind=record.job_kind) if record.job_id and record.job_kind else None,
        "reachable": view.reachable,
        "consistency": record.consistency,
        "labels": dict(record.labels),
    }


def server(view: model.ServerView) -> Server:
    return from_record(Server, view.server, **_parts(view))


def ops_server(record: records.OpsServer) -> OpsServer:
    known = record.view.server
    job = None
    if known.job_id and known.job_kind and record.job_state:
        job = OpsBusyJob(id=known.job_id, kind=known.job_kind, state=record.job_state)
    return from_record(
        OpsServer,
        record,
        **_parts(record.view) | {"job": job},
        id=known.id,
        name=known.name,
        account_id=known.account_id,
        node=known.node,
    )


def ops_server_details(
    record: records.OpsServer, snapshots: Page[Snapshot], latest: CursorPage[Job]
) -> OpsServerDetails:
    return OpsServerDetails(
        **dict(ops_server(record)),
        snapshot_list=tuple(SnapshotDetails.model_validate(details(one)) for one in snapshots.results),
        jobs=tuple(map(ops_job_summary, latest.results)),
    )
