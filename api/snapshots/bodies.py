"""The bodies of snapshots; the contract fixes their keys."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter

from api.http import fields
from api.http.answers import Closed, ServerName, SnapshotName, StatusOfServer, Timestamp, Total, rfc3339
from api.http.calls import API
from api.http.consistency import Asked, Label
from api.jobs.bodies import Contents, DisksQuery, contents, job_headers, label
from worker.store import errors, model
from worker.store.customers.customer_store import Admitted, BriefSnapshot, Edit, SnapshotFilter
from worker.store.model import NAME_MAX, ServerState, SnapshotId, SnapshotStatus

CREATE_MESSAGE = "Snapshot is being created. This may take 3-10 minutes depending on server size."
RESTORE_MESSAGE = "Server is being restored from snapshot. This may take 5-15 minutes."

SnapshotIdInPath = Annotated[
    SnapshotId,
    Field(ge=1, le=fields.ID_MAX, description="ID of a snapshot", examples=[801]),
    BeforeValidator(fields.id_text),
]
SNAPSHOT_ID: fields.PathId[SnapshotId] = fields.PathId(
    name="snapshot_id", adapter=TypeAdapter(SnapshotIdInPath), not_found=errors.SnapshotNotFound
)


class ListQuery(fields.PageQuery):
    """The query of the list of snapshots."""

    server_id: fields.OfServer | None = None
    status: Literal["in_progress", "completed", "failed"] | None = None
    name: Annotated[fields.Name, Field(description="exactly this name")] | None = None
    created_from: Annotated[fields.Moment, Field(description="at this time or later")] | None = None
    created_before: Annotated[fields.Moment, Field(description="before this time")] | None = None
    sort: Annotated[
        Literal["created_at", "-created_at", "name", "-name", "size_mb", "-size_mb"],
        Field(description="ascending, or descending with `-`"),
    ] = "-created_at"

    @property
    def filter(self) -> SnapshotFilter:
        return SnapshotFilter(
            server_id=self.server_id,
            status=self.status and SnapshotStatus(self.status),
            name=self.name,
            created_from=self.created_from,
            created_before=self.created_before,
            sort=self.sort,
        )


class DryRunQuery(fields.Query):
    """The query of a create."""

    dry_run: Annotated[
        bool, Field(description="only run the checks; change nothing"), BeforeValidator(fields.truth)
    ] = False


class RestoreQuery(DryRunQuery, DisksQuery):
    """The query of a restore."""


class CreateBody(fields.RequestBody):
    """The snapshot to create."""

    server_id: fields.ServerIdInBody
    name: Annotated[
        fields.Name,
        Field(description=f"letters, digits, hyphens, underscores; at most {NAME_MAX}; unique on its server"),
    ]
    description: fields.DescriptionIfAny = ""
    consistency: Asked = None


class EditBody(fields.RequestBody):
    """The fields to change; omitted fields keep their values."""

    description: Annotated[fields.Description | None, *fields.NOT_NULL] = None
    labels: Annotated[
        fields.Labels | None,
        *fields.NOT_NULL,
        Field(description=f"at most {fields.LABELS_MAX}; replaces all labels of the snapshot"),
    ] = None
    expires_at: Annotated[
        fields.ExpiresAt | None,
        fields.LEFT_OUT,
        Field(description="when it is deleted, unless it is protected; null: never"),
    ] = None
    protected: Annotated[bool | None, *fields.NOT_NULL, Field(description="whether deletes are refused")] = None

    @property
    def edit(self) -> Edit:
        never = "expires_at" in self.model_fields_set and self.expires_at is None
        return Edit(
            description=self.description,
            labels=self.labels,
            protected=self.protected,
            expires_at="never" if never else self.expires_at,
        )


class Snapshot(Closed):
    """All disks of one server at one point in time."""

    id: int
    server: ServerName
    name: str
    status: SnapshotStatus
    size_mb: Annotated[int | None, Field(description="MiB of guest data over all disks; null until completed")]
    created_at: Timestamp
    description: str


class SnapshotDetails(Snapshot):
    """A snapshot with its contents and its owner's settings."""

    model_config = ConfigDict(extra="ignore")

    labels: dict[str, str]
    protected: Annotated[bool, Field(description="deletes are refused")]
    expires_at: Annotated[Timestamp | None, Field(description="when it is deleted, unless it is protected")]
    schedule_id: Annotated[str | None, Field(description="the schedule that created it")]
    contents: Annotated[
        Contents | None, Field(description="null until completed, and for snapshots that an earlier version created")
    ]
    consistency: Label


class SnapshotCreated(Snapshot):
    """The snapshot that is being created."""

    message: str


class SnapshotList(Closed):
    """One page of the list, newest first."""

    count: Total
    results: tuple[Snapshot, ...]


class RestoredSnapshot(SnapshotName):
    """The snapshot that the server is restored from."""

    created_at: Timestamp


class RestoredServer(ServerName):
    """The server that is being restored."""

    status: StatusOfServer


class RestoreStarted(Closed):
    """The restore that was accepted."""

    status: Literal["success"] = Field(description="the restore was accepted")
    message: str
    snapshot: RestoredSnapshot
    server: RestoredServer


def snapshot(record: model.Snapshot | BriefSnapshot) -> dict[str, object]:
    """A `Snapshot` as JSON, without the model: for a list of 500, creating models would take most of the time."""
    return {
        "id": record.id,
        "server": {"id": record.server_id, "name": record.server_name},
        "name": record.name,
        "status": record.status,
        "size_mb": record.size_mb,
        "created_at": rfc3339(record.created_at),
        "description": record.description,
    }


def details(record: model.Snapshot) -> dict[str, object]:
    """A `SnapshotDetails`, as JSON."""
    held = contents(record.contents)
    return snapshot(record) | {
        "labels": dict(record.labels),
        "protected": record.protected,
        "expires_at": record.expires_at and rfc3339(record.expires_at),
        "schedule_id": record.schedule_id,
        "contents": held and held.model_dump(mode="json"),
        "consistency": label(record.contents),
    }


def created(admitted: Admitted) -> dict[str, object]:
    """A `SnapshotCreated`, as JSON."""
    return snapshot(admitted.snapshot) | {"message": CREATE_MESSAGE}


def restoring(admitted: Admitted) -> dict[str, object]:
    """A `RestoreStarted`, as JSON."""
    of = admitted.snapshot
    return {
        "status": "success",
        "message": RESTORE_MESSAGE,
        "snapshot": {"id": of.id, "name": of.name, "created_at": rfc3339(of.created_at)},
        "server": {"id": of.server_id, "name": of.server_name, "status": ServerState.RESTORING},
    }


def admitted_headers(admitted: Admitted) -> dict[str, str]:
    """The headers with the paths of the snapshot and of the job."""
    return {"Location": f"{API}snapshots/{admitted.snapshot.id}/"} | job_headers(admitted.job.id)
