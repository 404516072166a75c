"""The log lines of each job, held back until they are told to the store with the job's next step or its end."""

import json
from collections import OrderedDict, deque

from structlog.typing import EventDict, WrappedLogger

MOST_LINES, MOST_CHARACTERS = 200, 2000  # of a job, of a line
MOST_JOBS = 1000  # whose lines nobody has asked for: of the oldest they go


class JobLog:
    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[str]] = OrderedDict()

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """As a processor of structlog: hold the line if it is a job's, and hand it on unchanged."""
        if job_id := event.get("job_id"):
            fields = {name: value for name, value in event.items() if name not in {"job_id", "exc_info"}}
            lines = self._lines.setdefault(job_id, deque(maxlen=MOST_LINES))
            lines.append(json.dumps(fields, default=str)[:MOST_CHARACTERS])
            if len(self._lines) > MOST_JOBS:
                self._lines.popitem(last=False)
        return event

    def taken(self, job_id: str) -> tuple[str, ...]:
        """The lines since they were taken last."""
        return tuple(self._lines.pop(job_id, ()))
