"""The body of the overview of the cell."""

from typing import Annotated

from pydantic import Field

from api.http.answers import KindOfJob, Open, Timestamp, from_record
from worker.store.operators import overview as records


class Durations(Open):
    """Durations in seconds, accurate to 5 percent; null if no job ended."""

    p50: float | None
    p95: float | None


class Point(Open):
    """The jobs that ended within 15 minutes."""

    at: Timestamp
    completed: int
    failed: int
    seconds: Durations
    downtime_seconds: Annotated[Durations, Field(description="downtime of guests")]


class Chart(Open):
    """The last 24 hours of one kind of job."""

    kind: KindOfJob
    points: Annotated[tuple[Point, ...], Field(description="one for each 15 minutes in which a job ended")]


class Ended(Open):
    """Jobs that ended in the last hour and the last day, to within five minutes."""

    hour: int
    day: int


class Oldest(Open):
    """The job that has been waiting longest."""

    id: str
    queued_at: Timestamp


class NodeCounts(Open):
    """Numbers of nodes; a paused one is also alive or silent."""

    alive: int
    silent: int
    paused: int


class Overview(Open):
    """The cell at a glance."""

    at: Timestamp
    queued: int
    in_progress: int
    oldest_queued: Oldest | None
    completed: Ended
    failed: Ended
    stranded_servers: int
    servers_off: Annotated[
        int, Field(description="servers whose guest is off for a job; see the list of servers with `off`")
    ]
    nodes: NodeCounts
    servers_with_findings: int
    unreadable_records: Annotated[int, Field(description="unreadable records of the last 24 hours; see the findings")]
    charts: Annotated[tuple[Chart, ...], Field(description="one for each job kind of which a job ended")]


def overview(record: records.Overview) -> Overview:
    oldest = record.oldest
    return from_record(
        Overview,
        record,
        oldest_queued=Oldest(id=oldest.job_id, queued_at=oldest.queued_at) if oldest else None,
        completed=Ended(hour=record.completed_hour, day=record.completed_day),
        failed=Ended(hour=record.failed_hour, day=record.failed_day),
        nodes=NodeCounts(
            alive=record.nodes_alive, silent=record.nodes - record.nodes_alive, paused=record.nodes_paused
        ),
        charts=tuple({"kind": kind, "points": points} for kind, points in record.charts.items()),
    )
