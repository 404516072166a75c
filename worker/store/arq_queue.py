"""The names and the wire format of the queues: arq's, with JSON instead of pickle."""

import json
from typing import Any

from arq.jobs import serialize_job

QUEUE_PREFIX = "arq:queue:"  # + the node's name
ARQ_RECORD_KEPT_SECONDS = 30 * 86_400  # longer than any node may be away with a job waiting
FUNCTION = "run"  # the one function that a worker knows; its one argument is the job's id


def queue_name(node: str) -> str:
    return f"{QUEUE_PREFIX}{node}"


def wake_key(queue: str) -> str:
    """The list on which a worker waits: at most one entry, put there with each job."""
    return f"{queue}:wake"


def serialize(data: dict[str, Any]) -> bytes:
    """JSON. With arq's default, pickle, anyone who can write to Redis could run code on every node."""
    return json.dumps(data, separators=(",", ":"), default=repr).encode()


def deserialize(data: bytes) -> dict[str, Any]:
    """Raises ValueError where it is not a record of arq's: arq itself would find out too late to survive it."""
    match record := json.loads(data):
        case {"t": int() | None, "f": str(), "a": list(), "k": dict(), "et": int(at)} if 0 <= at < 1 << 47:
            return dict(record)
    raise ValueError("not the record of a job")


def payload(job_id: str, enqueued_ms: int) -> bytes:
    """A job as arq finds it in Redis."""
    return serialize_job(FUNCTION, (job_id,), {}, None, enqueued_ms, serializer=serialize)


def queue_parameters() -> dict[str, Any]:
    """What the scripts need to put a job where arq finds it. They fill in the job's id and the moment."""
    return {
        "prefix": QUEUE_PREFIX,
        "payload": payload("JOB_ID", 0).decode(),
        "expires_ms": ARQ_RECORD_KEPT_SECONDS * 1000,
    }
