"""The client and its resources."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Self, TypeVar, cast

from .following import Following, ensure_completed, events
from .models import (
    CoveredServer,
    Delivery,
    EditBody,
    Job,
    Redelivery,
    RestoreStarted,
    Schedule,
    ScheduleEditBody,
    Server,
    Snapshot,
    SnapshotCreated,
    SnapshotDetails,
    Webhook,
    WebhookEditBody,
    WebhookWithSecret,
)
from .wire import Answer, Clock, Wire

PAGE_SIZE = 500
Consistency = Literal["stop", "live"]
Disks = Literal["all", "present"]
Body = TypeVar("Body")


@dataclass(frozen=True, kw_only=True)
class Accepted(Generic[Body]):
    """A request that was accepted. `job_id`: the job that does the work; None for a delete whose server is gone."""

    body: Body
    job_id: str | None

    @property
    def job(self) -> str:
        """The job's ID. Raises ValueError without a job."""
        if self.job_id is None:
            raise ValueError("The request has no job.")
        return self.job_id


class Client:
    """Every call may raise ApiError, or a subclass, and Unreachable.

    `account_id`: the account that a service token acts for. `retry_seconds`: how long a call is retried after a lost
    connection, a 429 or a 503. Not thread-safe.
    """

    def __init__(
        self, url: str, token: str, *, account_id: int | None = None, retry_seconds: float = 60.0, clock: Clock = time
    ) -> None:
        self._clock = clock
        self._wire = Wire(url, token, account_id=account_id, retry_seconds=retry_seconds, clock=clock)
        self.snapshots = Snapshots(self._wire)
        self.jobs = Jobs(self._wire)
        self.servers = Servers(self._wire)
        self.schedules = Schedules(self._wire)
        self.webhooks = Webhooks(self._wire)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._wire.close()

    def wait_for_job(self, job_id: str | None, *, timeout_seconds: float | None = None, check: bool = True) -> Job:
        """Waits until the job has ended, and returns it. Raises JobFailed if it failed, unless `check` is false, and
        StillRunning after `timeout_seconds`."""
        if job_id is None:
            raise ValueError("The request has no job.")
        job = Following(self._wire, job_id, timeout_seconds=timeout_seconds, clock=self._clock).end()
        return ensure_completed(job) if check else job

    def events(self, *, after: str | None = None) -> Iterator[dict[str, Any]]:
        """The changes of the account's jobs from now on, or after the event with this ID: `event`, `id` and `data`. It
        ends when the stream ends."""
        with self._wire.stream("events/", {} if after is None else {"Last-Event-ID": after}) as lines:
            yield from (event for event in events(lines) if event["event"] != "alive")


class _Resource:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def _pages(self, path: str, query: Mapping[str, Any]) -> Iterator[Any]:
        page = 1
        while True:
            body = self._wire.call("GET", path, query={**query, "page": page, "page_size": PAGE_SIZE}).body
            yield from body["results"]
            if page * PAGE_SIZE >= body["count"] or not body["results"]:
                return
            page += 1


class Snapshots(_Resource):
    def list(
        self,
        *,
        server_id: int | None = None,
        status: Literal["in_progress", "completed", "failed"] | None = None,
        name: str | None = None,
        sort: str | None = None,
    ) -> Iterator[Snapshot]:
        """All snapshots of the account, newest first unless `sort` is given."""
        return self._pages("snapshots/", {"server_id": server_id, "status": status, "name": name, "sort": sort})

    def find(self, *, server_id: int, name: str) -> Snapshot | None:
        """The server's snapshot of this name, without failed ones; None if there is none."""
        found = self.list(server_id=server_id, name=name)
        return next((snapshot for snapshot in found if snapshot["status"] != "failed"), None)

    def get(self, snapshot_id: int) -> SnapshotDetails:
        return cast("SnapshotDetails", self._wire.call("GET", f"snapshots/{snapshot_id}/").body)

    def create(
        self, *, server_id: int, name: str, description: str = "", consistency: Consistency | None = None
    ) -> Accepted[SnapshotCreated]:
        body = {"server_id": server_id, "name": name, "description": description}
        body |= {} if consistency is None else {"consistency": consistency}
        return _accepted(self._wire.call("POST", "snapshots/", body=body))

    def check_create(self, *, server_id: int, name: str, consistency: Consistency | None = None) -> Job:
        """A dry run of a create. Returns its job, which has ended unless the node is busy."""
        body = {"server_id": server_id, "name": name}
        body |= {} if consistency is None else {"consistency": consistency}
        return cast("Job", self._wire.call("POST", "snapshots/", body=body, query={"dry_run": True}).body)

    def edit(self, snapshot_id: int, changes: EditBody) -> SnapshotDetails:
        return cast("SnapshotDetails", self._wire.call("PATCH", f"snapshots/{snapshot_id}/", body=changes).body)

    def restore(self, snapshot_id: int, *, disks: Disks = "all") -> Accepted[RestoreStarted]:
        """Overwrites all data of the server."""
        return _accepted(self._wire.call("POST", f"snapshots/{snapshot_id}/restore/", query={"disks": disks}))

    def check_restore(self, snapshot_id: int, *, disks: Disks = "all") -> Job:
        """A dry run of a restore. Returns its job, which has ended unless the node is busy."""
        query = {"disks": disks, "dry_run": True}
        return cast("Job", self._wire.call("POST", f"snapshots/{snapshot_id}/restore/", query=query).body)

    def delete(self, snapshot_id: int) -> Accepted[None]:
        return _accepted(self._wire.call("DELETE", f"snapshots/{snapshot_id}/"))


class Jobs(_Resource):
    def list(self, *, server_id: int | None = None, state: str | None = None) -> Iterator[Job]:
        """All jobs of the account, newest first."""
        return self._pages("jobs/", {"server_id": server_id, "state": state})

    def get(self, job_id: str) -> Job:
        return cast("Job", self._wire.call("GET", f"jobs/{job_id}/").body)

    def cancel(self, job_id: str) -> Job:
        return cast("Job", self._wire.call("POST", f"jobs/{job_id}/cancel/").body)

    def undo_restore(self, job_id: str, *, disks: Disks = "all") -> Accepted[Job]:
        """`job_id`: the restore's job."""
        return _accepted(self._wire.call("POST", f"restores/{job_id}/undo/", query={"disks": disks}))


class Servers(_Resource):
    def get(self, server_id: int) -> Server:
        return cast("Server", self._wire.call("GET", f"servers/{server_id}/").body)

    def set_consistency(self, server_id: int, consistency: Consistency | None) -> Server:
        """Sets the server's default for requests without `consistency`; None: the provider's default."""
        body = {"consistency": consistency}
        return cast("Server", self._wire.call("PATCH", f"servers/{server_id}/", body=body).body)

    def set_labels(self, server_id: int, labels: dict[str, str]) -> Server:
        """Replaces all labels of the server, by which schedules may find it."""
        return cast("Server", self._wire.call("PATCH", f"servers/{server_id}/", body={"labels": labels}).body)


class Schedules(_Resource):
    def list(self, *, server_id: int | None = None) -> Iterator[Schedule]:
        return self._pages("schedules/", {"server_id": server_id})

    def list_by_label(self) -> Iterator[Schedule]:
        return self._pages("schedules/", {"target": "labels"})

    def find(self, *, server_id: int, name: str) -> Schedule | None:
        return next((schedule for schedule in self.list(server_id=server_id) if schedule["name"] == name), None)

    def find_by_label(self, *, name: str) -> Schedule | None:
        return next((schedule for schedule in self.list_by_label() if schedule["name"] == name), None)

    def servers(self, schedule_id: str) -> Iterator[CoveredServer]:
        """The servers that it covers now, each with its run in the current or latest window."""
        path = f"schedules/{schedule_id}/servers/"
        query: dict[str, Any] = {"limit": PAGE_SIZE, "after": None}
        while True:
            page = self._wire.call("GET", path, query=query).body
            yield from page["results"]
            if page["after"] is None:
                return
            query["after"] = page["after"]

    def get(self, schedule_id: str) -> Schedule:
        return cast("Schedule", self._wire.call("GET", f"schedules/{schedule_id}/").body)

    def create(  # noqa: PLR0913 - a field is a parameter
        self,
        *,
        name: str,
        when: str,
        server_id: int | None = None,
        server_labels: dict[str, str] | None = None,
        time_zone: str | None = None,
        window_minutes: int | None = None,
        keep: int = 3,
        expire_after_hours: int | None = None,
        consistency: Consistency | None = None,
        enabled: bool = True,
    ) -> Schedule:
        """`server_id` or `server_labels`: of one server, or of all that have these labels."""
        body: dict[str, Any] = {"name": name, "when": when, "keep": keep, "enabled": enabled}
        given = {
            "server_id": server_id,
            "server_labels": server_labels,
            "time_zone": time_zone,
            "window_minutes": window_minutes,
            "expire_after_hours": expire_after_hours,
            "consistency": consistency,
        }
        body |= {field: value for field, value in given.items() if value is not None}
        return cast("Schedule", self._wire.call("POST", "schedules/", body=body).body)

    def edit(self, schedule_id: str, changes: ScheduleEditBody) -> Schedule:
        return cast("Schedule", self._wire.call("PATCH", f"schedules/{schedule_id}/", body=changes).body)

    def delete(self, schedule_id: str) -> None:
        self._wire.call("DELETE", f"schedules/{schedule_id}/")


class Webhooks(_Resource):
    def list(self) -> list[Webhook]:
        return cast("list[Webhook]", self._wire.call("GET", "webhooks/").body["results"])

    def get(self, webhook_id: str) -> Webhook:
        return cast("Webhook", self._wire.call("GET", f"webhooks/{webhook_id}/").body)

    def create(self, *, url: str, events: Sequence[str] | None = None, description: str = "") -> WebhookWithSecret:
        """The webhook with its secret, which is shown only once."""
        body: dict[str, Any] = {"url": url, "description": description}
        body |= {} if events is None else {"events": [*events]}
        return cast("WebhookWithSecret", self._wire.call("POST", "webhooks/", body=body).body)

    def edit(self, webhook_id: str, changes: WebhookEditBody) -> Webhook:
        return cast("Webhook", self._wire.call("PATCH", f"webhooks/{webhook_id}/", body=changes).body)

    def delete(self, webhook_id: str) -> None:
        self._wire.call("DELETE", f"webhooks/{webhook_id}/")

    def rotate_secret(self, webhook_id: str) -> WebhookWithSecret:
        return cast("WebhookWithSecret", self._wire.call("POST", f"webhooks/{webhook_id}/rotate-secret/").body)

    def test(self, webhook_id: str) -> Delivery:
        return cast("Delivery", self._wire.call("POST", f"webhooks/{webhook_id}/test/").body)

    def deliveries(self, webhook_id: str) -> Iterator[Delivery]:
        return self._pages(f"webhooks/{webhook_id}/deliveries/", {})

    def redeliver(self, webhook_id: str) -> Redelivery:
        """Sends all failed deliveries again."""
        return cast("Redelivery", self._wire.call("POST", f"webhooks/{webhook_id}/redeliver/").body)


def _accepted(answer: Answer) -> Accepted[Any]:
    return Accepted(body=answer.body, job_id=answer.headers.get("X-Job-Id"))
