"""The data of the events of a stream."""

from typing import Annotated, Literal

from pydantic import Field

from api.http.answers import KindOfJob, Open, StepOfJob
from worker.store.model import JobState


class Event(Open):
    """A job has changed: the data of one event of the stream."""

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
    """A job has changed; `id` is for `Last-Event-ID`."""

    event: Literal["job"]
    id: str
    data: Event


class EventsMissed(Open):
    """Events between the `Last-Event-ID` and this one are gone: reload the lists."""

    event: Literal["missed"]
    id: str
    data: NoData


class OpsEvent(Event):
    """A job of any account has changed: the data of one event of the stream."""

    account_id: int


class OpsJobChanged(Open):
    """A job of any account has changed; `id` is for `Last-Event-ID`."""

    event: Literal["job"]
    id: str
    data: OpsEvent
