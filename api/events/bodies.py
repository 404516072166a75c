"""The data of the events of a stream."""

from typing import Annotated, Literal

from pydantic import Field

from api.http.answers import KindOfJob, Open, StepOfJob
from worker.store.model import JobState


class Event(Open):
    """The data of one event: a job has changed."""

    job_id: str
    kind: KindOfJob
    state: JobState
    step: StepOfJob | None
    server_id: int
    snapshot_id: Annotated[int | None, Field(description="null for the dry run of a create")]
    notes: Annotated[tuple[str, ...], Field(description="codes of the job's notes; empty until it ends")]


class NoData(Open):
    """An empty object."""


class JobChanged(Open):
    """A job has changed; send `id` as `Last-Event-ID` to resume."""

    event: Literal["job"]
    id: str
    data: Event


class EventsMissed(Open):
    """Events after the `Last-Event-ID` were lost: reload the lists."""

    event: Literal["missed"]
    id: str
    data: NoData


class OpsEvent(Event):
    """The data of one event: a job of any account has changed."""

    account_id: int


class OpsJobChanged(Open):
    """A job of any account has changed; send `id` as `Last-Event-ID` to resume."""

    event: Literal["job"]
    id: str
    data: OpsEvent
