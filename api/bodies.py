"""What callers get: the contract's bodies, key for key, and the headers beside them."""

import json
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from yarl import URL

from api.requests import ListQuery
from worker.jobs.model import Job, Snapshot
from worker.jobs.store import Admitted, SnapshotPage

CREATE_MESSAGE = "Snapshot is being created. This may take 3-10 minutes depending on server size."
RESTORE_MESSAGE = "Server is being restored from snapshot. This may take 5-15 minutes."

Body = dict[str, Any]


def answer(body: Body, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=json.dumps(body).encode(), status=status, headers=headers, content_type="application/json", charset="utf-8"
    )


def snapshot(record: Snapshot) -> Body:
    return {
        "id": record.id,
        "server": {"id": record.server_id, "name": record.server_name},
        "name": record.name,
        "status": record.status,
        "size_mb": record.size_mb,
        "created_at": _moment(record.created_at),
        "description": record.description,
    }


def snapshots(page: SnapshotPage) -> Body:
    return {"count": page.count, "results": [snapshot(record) for record in page.results]}


def created(admitted: Admitted) -> Body:
    return snapshot(admitted.snapshot) | {"message": CREATE_MESSAGE}


def restoring(admitted: Admitted) -> Body:
    record, server = admitted.snapshot, admitted.server
    return {
        "status": "success",
        "message": RESTORE_MESSAGE,
        "snapshot": {"id": record.id, "name": record.name, "created_at": _moment(record.created_at)},
        "server": {"id": server.id, "name": server.name, "status": server.state},
    }


def job(record: Job) -> Body:
    failure = record.failure
    return {
        "id": record.id,
        "kind": record.kind,
        "state": record.state,
        "step": record.step,
        "server": {"id": record.server_id, "name": record.server_name},
        # a dry run of a create is about none
        "snapshot": {"id": record.snapshot_id, "name": record.snapshot_name} if record.snapshot_id else None,
        "attempts": record.attempts,
        "queued_at": _moment(record.queued_at),
        "started_at": _moment(record.started_at) if record.started_at else None,
        "finished_at": _moment(record.finished_at) if record.finished_at else None,
        "estimated_seconds": record.estimated_seconds,
        "downtime_seconds": record.downtime_seconds,
        "error": {"code": failure.code, "detail": failure.detail, "stranded": failure.stranded} if failure else None,
    }


def places(admitted: Admitted) -> dict[str, str]:
    """Where to follow what was accepted."""
    return {"Location": f"/api/v1/snapshots/{admitted.snapshot.id}/"} | place(admitted.job)


def place(record: Job) -> dict[str, str]:
    """Where to follow a job."""
    return {"Operation-Location": f"/api/v1/jobs/{record.id}/"}


def link(url: URL, query: ListQuery, count: int) -> str:
    """The pages around this one as RFC 8288 wants them, with all other parameters of the query kept."""
    last = max(1, -(-count // query.page_size))
    pages = {"first": 1, "last": last}
    if query.page > 1:
        pages["prev"] = min(query.page - 1, last)
    if query.page < last:
        pages["next"] = query.page + 1
    here = url.relative() if url.absolute else url
    return ", ".join(f'<{here.update_query(page=page)}>; rel="{name}"' for name, page in pages.items())


def _moment(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
