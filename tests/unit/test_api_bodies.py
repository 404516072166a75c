"""The contract's own examples, key by key."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request
from pydantic import BaseModel
from yarl import URL

from api.http.answers import answer, page_answer, page_links
from api.jobs.bodies import job as job_body
from api.jobs.bodies import job_model
from api.snapshots import bodies
from api.snapshots.bodies import ListQuery
from worker.store.calls import Page
from worker.store.customers.customer_store import Admitted, AdmittedJob, BriefSnapshot
from worker.store.model import (
    AccountId,
    Contents,
    Failure,
    HeldDisk,
    Job,
    JobId,
    JobKind,
    JobState,
    Note,
    NoteCode,
    ServerId,
    ServerState,
    Snapshot,
    SnapshotId,
    SnapshotStatus,
    Step,
)

JOB_ID = JobId("0123456789abcdef0123456789abcdef")

BEFORE_MIGRATION = Snapshot(
    id=SnapshotId(801),
    server_id=ServerId(12345),
    server_name="web-server-01",
    account_id=AccountId(77),
    name="pre-migration-snapshot",
    description="Before major migration",
    status=SnapshotStatus.COMPLETED,
    size_mb=5120,
    created_at=datetime(2025, 1, 15, 18, 30, 0, 999_000, UTC),
    labels={},
    protected=False,
    expires_at=None,
    schedule_id=None,
)
WEEKLY = replace(
    BEFORE_MIGRATION,
    id=SnapshotId(798),
    name="weekly-snapshot-2025-01-08",
    description="Weekly snapshot",
    size_mb=4856,
    created_at=datetime(2025, 1, 8, 12, tzinfo=UTC),
)
JOB = Job(
    id=JOB_ID,
    kind=JobKind.RESTORE,
    state=JobState.QUEUED,
    server_id=ServerId(12345),
    server_name="web-server-01",
    account_id=AccountId(77),
    node="n1",
    snapshot_id=BEFORE_MIGRATION.id,
    snapshot_name=BEFORE_MIGRATION.name,
    snapshot_description=BEFORE_MIGRATION.description,
    snapshot_created_at=BEFORE_MIGRATION.created_at,
    request_id="r1",
    server_state=ServerState.RESTORING,
    queued_at=datetime(2025, 1, 16, 16, 15, tzinfo=UTC),
)

ADMITTED = AdmittedJob(id=JOB_ID)


def sent(body: BaseModel | Mapping[str, object]) -> Any:
    """The body as it is sent."""
    return json.loads(bytes(cast("bytes", answer(body).body)))


def test_the_list_is_the_contracts_example() -> None:
    request = make_mocked_request("GET", "/api/v1/snapshots/")
    page = Page(count=2, results=(BEFORE_MIGRATION, WEEKLY))
    listed = page_answer(request, ListQuery(), page, bodies.snapshot)
    assert json.loads(bytes(cast("bytes", listed.body))) == {
        "count": 2,
        "results": [
            {
                "id": 801,
                "server": {"id": 12345, "name": "web-server-01"},
                "name": "pre-migration-snapshot",
                "status": "completed",
                "size_mb": 5120,
                "created_at": "2025-01-15T18:30:00Z",
                "description": "Before major migration",
            },
            {
                "id": 798,
                "server": {"id": 12345, "name": "web-server-01"},
                "name": "weekly-snapshot-2025-01-08",
                "status": "completed",
                "size_mb": 4856,
                "created_at": "2025-01-08T12:00:00Z",
                "description": "Weekly snapshot",
            },
        ],
    }


def brief(snapshot: Snapshot) -> BriefSnapshot:
    return BriefSnapshot(**{field: getattr(snapshot, field) for field in BriefSnapshot._fields})


def test_the_answer_to_a_create_is_the_contracts_example() -> None:
    snapshot = replace(
        BEFORE_MIGRATION,
        id=SnapshotId(802),
        name="before-update-snapshot",
        description="Snapshot before system update",
        status=SnapshotStatus.IN_PROGRESS,
        size_mb=None,
        created_at=datetime(2025, 1, 16, 16, 15, tzinfo=UTC),
    )
    admitted = Admitted(job=ADMITTED, snapshot=brief(snapshot))

    assert sent(bodies.created(admitted)) == {
        "id": 802,
        "server": {"id": 12345, "name": "web-server-01"},
        "name": "before-update-snapshot",
        "status": "in_progress",
        "size_mb": None,
        "created_at": "2025-01-16T16:15:00Z",
        "description": "Snapshot before system update",
        "message": "Snapshot is being created. This may take 3-10 minutes depending on server size.",
    }
    assert bodies.admitted_headers(admitted) == {
        "Location": "/api/v1/snapshots/802/",
        "Operation-Location": f"/api/v1/jobs/{JOB_ID}/",
        "X-Job-Id": JOB_ID,
    }


def test_the_answer_to_a_restore_is_the_contracts_example() -> None:
    assert sent(bodies.restoring(Admitted(job=ADMITTED, snapshot=brief(BEFORE_MIGRATION)))) == {
        "status": "success",
        "message": "Server is being restored from snapshot. This may take 5-15 minutes.",
        "snapshot": {"id": 801, "name": "pre-migration-snapshot", "created_at": "2025-01-15T18:30:00Z"},
        "server": {"id": 12345, "name": "web-server-01", "status": "restoring"},
    }


def test_what_is_sent_is_what_the_document_says() -> None:
    """They are written without their models, from which the document is generated."""
    admitted = Admitted(job=ADMITTED, snapshot=brief(replace(WEEKLY, size_mb=None)))
    documented: dict[type[BaseModel], Mapping[str, object]] = {
        bodies.Snapshot: bodies.snapshot(BEFORE_MIGRATION),
        bodies.SnapshotCreated: bodies.created(admitted),
        bodies.RestoreStarted: bodies.restoring(admitted),
        bodies.SnapshotDetails: bodies.details(BEFORE_MIGRATION),
        bodies.SnapshotList: {"count": 1, "results": [bodies.snapshot(WEEKLY)]},
    }
    for model, body in documented.items():
        assert list(sent(body)) == list(model.model_fields)
        assert sent(model.model_validate(sent(body))) == sent(body)


def test_times_are_utc_whatever_zone_they_come_in() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    moved = replace(BEFORE_MIGRATION, created_at=BEFORE_MIGRATION.created_at.astimezone(east))

    assert sent(bodies.snapshot(moved))["created_at"] == "2025-01-15T18:30:00Z"


def test_a_job_that_waits_has_no_step_no_times_and_no_error() -> None:
    assert sent(job_body(JOB)) == {
        "id": JOB_ID,
        "kind": "restore",
        "state": "queued",
        "step": None,
        "percent": 0,
        "server": {"id": 12345, "name": "web-server-01", "status": "restoring"},
        "snapshot": {"id": 801, "name": "pre-migration-snapshot"},
        "attempts": 0,
        "queued_at": "2025-01-16T16:15:00Z",
        "started_at": None,
        "finished_at": None,
        "estimated_seconds": None,
        "downtime_seconds": None,
        "error": None,
        "disks": "all",
        "notes": [],
        "contents": None,
        "consistency": None,
        "retried_by": None,
    }


def test_a_failed_job_says_why_and_whether_it_needs_an_operator() -> None:
    failed = replace(
        JOB,
        state=JobState.FAILED,
        step=Step.UNDOING,
        attempts=2,
        started_at=JOB.queued_at,
        finished_at=JOB.queued_at + timedelta(seconds=9),
        estimated_seconds=7,
        downtime_seconds=4.25,
        failure=Failure(code="disk_failed", detail="vdb refused.", stranded=True),
    )

    body = sent(job_body(failed))

    assert (body["state"], body["step"], body["percent"], body["attempts"]) == ("failed", "undoing", 70, 2)
    assert (body["started_at"], body["finished_at"]) == ("2025-01-16T16:15:00Z", "2025-01-16T16:15:09Z")
    assert (body["estimated_seconds"], body["downtime_seconds"]) == (7, 4.25)
    assert body["error"] == {"code": "disk_failed", "detail": "vdb refused.", "stranded": True}


def test_a_job_has_the_fields_of_its_model() -> None:
    held = Contents(disks=(HeldDisk(target="vda", path="/srv/vda.qcow2", virtual_bytes=1 << 30),), consistency="live")
    note = Note(code=NoteCode.LEFT_OUT, detail="The snapshot does not hold sda.", disks=("sda",))
    ended: dict[str, Any] = {
        "state": JobState.FAILED,
        "started_at": JOB.queued_at,
        "finished_at": JOB.queued_at,
        "attempts": 1,
    }
    jobs = [
        JOB,
        replace(JOB, **ended, failure=Failure(code="disk_failed", detail="vdb"), notes=(note,), contents=held),
        replace(
            JOB,
            server_state=None,
            snapshot_id=SnapshotId(0),
            present_only=True,
            retried_by=JOB_ID,
            downtime_seconds=0.5,
        ),
    ]
    for job in jobs:
        assert sent(job_body(job)) == job_model(job).model_dump(mode="json")


@pytest.mark.parametrize(
    ("page", "count", "expected"),
    [
        (1, 0, {"first": 1, "last": 1}),
        (1, 2, {"first": 1, "last": 1}),
        (1, 3, {"first": 1, "last": 2, "next": 2}),
        (2, 5, {"first": 1, "last": 3, "prev": 1, "next": 3}),
        (3, 5, {"first": 1, "last": 3, "prev": 2}),
        (9, 5, {"first": 1, "last": 3, "prev": 3}),
    ],
)
def test_links_lead_to_the_pages_that_there_are(page: int, count: int, expected: dict[str, int]) -> None:
    url = URL(f"/api/v1/snapshots/?page={page}&page_size=2&server_id=12345&theirs=a%20b")

    query = ListQuery.model_validate({"page": str(page), "page_size": "2"})

    links = re.findall(r'<([^>]+)>; rel="([a-z]+)"', page_links(url, query, count)["Link"])

    assert {name: target for target, name in links} == {
        name: f"/api/v1/snapshots/?page={number}&page_size=2&server_id=12345&theirs=a%20b"
        for name, number in expected.items()
    }
