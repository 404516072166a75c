"""The names and the wire format of the queues: arq's, with JSON instead of pickle."""

import json
from typing import Any

QUEUE_PREFIX = "arq:queue:"  # + the node's name
FUNCTION = "run"  # the only function of a worker; its only argument is the job's ID


def queue_name(node: str) -> str:
    return f"{QUEUE_PREFIX}{node}"


def wake_key(queue: str) -> str:
    """The list that a worker waits on. It has at most one entry, which is added with each job."""
    return f"{queue}:wake"


def serialize(data: dict[str, Any]) -> bytes:
    """Serialize to JSON. With pickle, arq's default, anyone who can write to Redis could run code on every node."""
    return json.dumps(data, separators=(",", ":"), default=repr).encode()


def deserialize(data: bytes) -> dict[str, Any]:
    """Raises ValueError if it is not a record of arq; arq itself would crash on it later."""
    match record := json.loads(data):
        case {"t": int() | None, "f": str(), "a": list(), "k": dict(), "et": int(at)} if 0 <= at < 1 << 47:
            return dict(record)
    raise ValueError("not the record of a job")


def payload(job_id: str, enqueued_ms: int) -> bytes:
    """arq's own record of a job: tries, function, its arguments, and when it was queued."""
    return serialize({"t": None, "f": FUNCTION, "a": [job_id], "k": {}, "et": enqueued_ms})
