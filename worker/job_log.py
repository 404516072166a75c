"""Buffers each job's log lines until they are sent to the store with the job's next step or its end."""

import json
from collections import OrderedDict, deque

from structlog.typing import EventDict, WrappedLogger

MAX_LINES, MAX_CHARACTERS = 200, 2000  # per job, per line
MAX_JOBS = 1000  # jobs with buffered lines; beyond that, the lines of the oldest job are dropped


class JobLog:
    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[str]] = OrderedDict()

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """structlog processor: buffer the line if it has a `job_id`, and return it unchanged."""
        if job_id := event.get("job_id"):
            fields = {name: value for name, value in event.items() if name not in {"job_id", "exc_info"}}
            lines = self._lines.setdefault(job_id, deque(maxlen=MAX_LINES))
            lines.append(json.dumps(fields, default=str)[:MAX_CHARACTERS])
            if len(self._lines) > MAX_JOBS:
                self._lines.popitem(last=False)
        return event

    def taken(self, job_id: str) -> tuple[str, ...]:
        """Remove and return the job's lines, oldest first, each a JSON object."""
        return tuple(self._lines.pop(job_id, ()))
