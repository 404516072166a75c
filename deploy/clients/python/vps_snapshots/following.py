"""Waits for a job: with the event stream, or else by polling."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

from .errors import ApiError, JobFailed, StillRunning, Unreachable
from .models import Job
from .wire import LONGEST_WAIT_SECONDS, Clock, Wire, calls_left

FIRST_POLL_SECONDS = 1.0
FEW_CALLS = 60  # of a token's 600 a minute; with fewer calls left, the longest poll interval is used
SURE_SECONDS = 30.0  # between two reads of the job while the stream is open: an event may be lost
ENDED = frozenset({"completed", "failed"})


class Following:
    """One wait for a job. `timeout_seconds` None: no limit."""

    def __init__(self, wire: Wire, job_id: str, *, timeout_seconds: float | None, clock: Clock) -> None:
        self._wire = wire
        self._job_id = job_id
        self._clock = clock
        self._deadline = None if timeout_seconds is None else clock.monotonic() + timeout_seconds
        self._left: int | None = None

    def end(self) -> Job:
        """Waits until the job is completed or failed, and returns it. Raises StillRunning, ApiError and
        Unreachable."""
        job = self._job()
        if job["state"] not in ENDED:
            # streams may be unavailable: too many streams, a proxy that buffers them, a connection that ends
            with suppress(ApiError, Unreachable):
                self._until_event()
            job = self._polled(self._job())
        return job

    def _job(self) -> Job:
        answer = self._wire.call("GET", f"jobs/{self._job_id}/")
        self._left = calls_left(answer.headers)
        return cast("Job", answer.body)

    def _until_event(self) -> None:
        """Returns when the job has ended, or when the stream or the time ends."""
        looked = self._clock.monotonic()
        with self._wire.stream("events/", {}, seconds=self._left_seconds()) as lines:
            if self._job()["state"] in ENDED:  # the job may have ended before the stream opened
                return
            for event in events(lines):
                data = event.get("data", {})
                if event["event"] == "missed" or self._is_late():
                    return
                if data.get("job_id") == self._job_id and data.get("state") in ENDED:
                    return
                if self._clock.monotonic() - looked >= SURE_SECONDS:
                    if self._job()["state"] in ENDED:
                        return
                    looked = self._clock.monotonic()

    def _polled(self, job: Job) -> Job:
        wait = FIRST_POLL_SECONDS
        while job["state"] not in ENDED:
            if self._left is not None and self._left < FEW_CALLS:
                wait = LONGEST_WAIT_SECONDS
            if self._is_late():
                raise StillRunning(job)
            if self._deadline is not None:
                wait = min(wait, max(0.0, self._deadline - self._clock.monotonic()))
            self._clock.sleep(wait)
            job = self._job()
            wait = min(1.5 * max(wait, FIRST_POLL_SECONDS), LONGEST_WAIT_SECONDS)
        return job

    def _left_seconds(self) -> float | None:
        return None if self._deadline is None else max(0.1, self._deadline - self._clock.monotonic())

    def _is_late(self) -> bool:
        return self._deadline is not None and self._clock.monotonic() >= self._deadline


def ensure_completed(job: Job) -> Job:
    """Raises JobFailed."""
    if job["state"] == "failed":
        raise JobFailed(job)
    return job


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The events of a stream: `event`, `id` and `data`. A comment, which keeps the stream open, is returned as an event
    `alive`."""
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif colon:
            yield {"event": "alive"}
        else:
            if "data" in fields:
                yield {"event": "message", **fields, "data": json.loads(fields["data"])}
            fields = {}
