"""A customer's Python program with the client generated from the document: create, follow, restore, undo, delete."""

import json
import sys
import time
from typing import Any

from vps_snapshots_client import AuthenticatedClient
from vps_snapshots_client.api.jobs import show_job, undo_restore
from vps_snapshots_client.api.snapshots import (
    create_snapshot,
    delete_snapshot,
    list_snapshots,
    restore_snapshot,
    show_snapshot,
)
from vps_snapshots_client.models import CreateBody, Job, JobState, ProblemDocument, RestoreStarted, SnapshotCreated


def ended(api: Any, response: Any) -> Any:
    while True:
        job = show_job.sync(response.headers["X-Job-Id"], client=api)
        assert isinstance(job, Job), job
        if job.state in (JobState.COMPLETED, JobState.FAILED):
            return job
        time.sleep(0.05)


def run(url: str, token: str, server_id: int) -> dict[str, Any]:
    with AuthenticatedClient(base_url=url, token=token, raise_on_unexpected_status=True) as api:
        body = CreateBody(server_id=server_id, name="from-python")
        created = create_snapshot.sync_detailed(client=api, body=body)
        assert isinstance(created.parsed, SnapshotCreated), created
        snapshot_id = created.parsed.id
        create = ended(api, created)

        refused = create_snapshot.sync(client=api, body=body)
        assert isinstance(refused, ProblemDocument), refused
        shown = show_snapshot.sync(snapshot_id, client=api)
        listed = list_snapshots.sync(client=api, server_id=server_id)

        restored = restore_snapshot.sync_detailed(snapshot_id, client=api)
        assert isinstance(restored.parsed, RestoreStarted), restored
        restore = ended(api, restored)
        undo = ended(api, undo_restore.sync_detailed(restore.id, client=api))
        deleted = delete_snapshot.sync_detailed(snapshot_id, client=api)
    return {
        "jobs": [f"{job.kind} {job.state}" for job in (create, restore, undo)],
        "refused": refused.code,
        "status": shown.status,
        "count": listed.count,
        "deleted": deleted.status_code,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
