"""What both peers do in Redis: one Lua script per call. Needs only redis-py."""

import hashlib
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

HERE = Path(__file__).parent
CREATING = "Snapshot is being created. This may take 3-10 minutes depending on server size."
RESTORING = "Server is being restored from snapshot. This may take 5-15 minutes."

Body = dict[str, Any]


class Refused(Exception):
    """Has the code of the refusal."""


class PeerStore:
    def __init__(self, socket: str) -> None:
        self.redis = Redis(unix_socket_path=socket)
        self._change = self.redis.register_script((HERE / "change.lua").read_text())
        self._list = self.redis.register_script((HERE / "list.lua").read_text())
        self._jobs = self.redis.register_script((HERE / "jobs.lua").read_text())
        self._show = self.redis.register_script((HERE / "show.lua").read_text())

    async def account_of(self, secret: str) -> str | None:
        """The account of a token."""
        key = f"token:{hashlib.sha256(secret.encode()).hexdigest()}"
        found: bytes | None = await self.redis.hget(key, "account")  # type: ignore[misc]  # typed for both clients
        return found.decode() if found else None

    async def create(self, account: str, server: int, name: str, description: str) -> tuple[str, Body]:
        """Return the job and the body of the answer. Raises Refused."""
        job, made = await self._changed("create", account, str(server), name, description)
        body = _shown([*made[:2], made[3], b"in_progress", b"", made[4], made[5], made[2]])
        return job, body | {"message": CREATING}

    async def restore(self, account: str, snapshot: str) -> tuple[str, Body]:
        job, made = await self._changed("restore", account, snapshot)
        restored = {"id": int(made[0]), "name": made[3].decode(), "created_at": _moment(made[4])}
        server = {"id": int(made[1]), "name": made[2].decode(), "status": "restoring"}
        return job, {"status": "success", "message": RESTORING, "snapshot": restored, "server": server}

    async def delete(self, account: str, snapshot: str) -> str:
        return (await self._changed("delete", account, snapshot))[0]

    async def page(self, account: str, server: str, page: int, page_size: int) -> Body:
        count, *rows = await self._list(args=[account, server, (page - 1) * page_size, page_size])
        return {"count": count, "results": [_shown(row) for row in rows]}

    async def show(self, account: str, snapshot: str) -> Body:
        """Return the body of one snapshot, with all fields of ours. Raises Refused."""
        row = await self._show(args=[account, snapshot])
        if not row:
            raise Refused("snapshot_not_found")
        more = {"labels": {}, "protected": False, "expires_at": None, "schedule_id": None, "contents": None}
        return _shown(row) | more | {"consistency": None}

    async def job(self, account: str, job: str) -> Body:
        """Return the body of one job, with all fields of ours. Raises Refused."""
        _, *rows = await self._jobs(args=[account, job, 0, 1])
        if not rows:
            raise Refused("job_not_found")
        return _job(rows[0])

    async def jobs(self, account: str, page: int, page_size: int) -> Body:
        count, *rows = await self._jobs(args=[account, "", (page - 1) * page_size, page_size])
        return {"count": count, "results": [_job(row) for row in rows]}

    async def _changed(self, kind: str, account: str, target: str, *more: str) -> tuple[str, list[bytes]]:
        job = uuid4().hex
        verdict, *made = await self._change(args=[kind, account, target, job, *more])
        if verdict != b"ok":
            raise Refused(verdict.decode())
        return job, made


def _shown(row: list[bytes]) -> Body:
    snapshot, server, name, status, size_mb, created_ms, description, server_name = row
    return {
        "id": int(snapshot),
        "server": {"id": int(server), "name": server_name.decode()},
        "name": name.decode(),
        "status": status.decode(),
        "size_mb": int(size_mb) if size_mb else None,
        "created_at": _moment(created_ms),
        "description": description.decode(),
    }


def _job(row: list[Any]) -> Body:
    job, durations, power, *raw = row
    fields = [value.decode() if value else "" for value in raw]
    kind, state, step, server, server_name, snapshot, snapshot_name, attempts, *more = fields
    queued_ms, started_ms, finished_ms, downtime, code, detail, stranded, retried_by = more
    return {
        "id": job.decode(),
        "kind": kind,
        "state": state,
        "step": step or None,
        "percent": 100 if state == "completed" else 0,
        "server": {"id": int(server), "name": server_name, "status": "active" if power == b"on" else "off"},
        "snapshot": {"id": int(snapshot), "name": snapshot_name},
        "attempts": int(attempts),
        "queued_at": _moment(queued_ms),
        "started_at": _moment(started_ms) if started_ms else None,
        "finished_at": _moment(finished_ms) if finished_ms else None,
        "estimated_seconds": round(statistics.median(map(int, durations)) / 1000) if durations else None,
        "downtime_seconds": float(downtime) if downtime else None,
        "error": {"code": code, "detail": detail, "stranded": stranded == "1"} if code else None,
        "disks": "all",
        "notes": [],
        "contents": None,
        "consistency": None,
        "retried_by": retried_by or None,
    }


def _moment(milliseconds: bytes | str) -> str:
    return datetime.fromtimestamp(int(milliseconds) // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
