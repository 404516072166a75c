"""The data of the events of a stream."""

from typing import Annotated

from pydantic import Field

from api.http.answers import Open
from worker.store.model import JobKind, JobState, Step


class Event(Open):
    """A job has changed: the data of one event of the stream."""

    job_id: str
    kind: JobKind
    state: JobState
    step: Step | None
    server_id: int
    snapshot_id: Annotated[int | None, Field(description="null for the dry run of a create")]
    notes: Annotated[tuple[str, ...], Field(description="codes of the job's notes; empty until it ends")]


class OpsEvent(Event):
    """A job of any account has changed: the data of one event of the stream."""

    account_id: int
