"""Every call of the API, once: its route, who may call it, what comes in and what goes out.

The routes are made from this table, and so is the API's document.
"""

from api import examples
from api.callers import Caller
from api.calls import Call, Link, Probe, Reply
from api.handlers import Handlers
from api.requests import (
    LAST_EVENT_HEADER,
    CreateBody,
    DryRunQuery,
    EditBody,
    JobsQuery,
    ListQuery,
    PageQuery,
    RestoreQuery,
    ScheduleBody,
    ScheduleEditBody,
    SchedulesQuery,
    UndoQuery,
)
from api.webhooks import WebhookBody, WebhookEditBody
from worker.store import errors
from worker.store.access.tokens import Permission

READ, WRITE = Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE


Operation = Call[Handlers, Caller]
Probing = Probe[Handlers]

SNAPSHOTS = "/api/v1/snapshots/"
ONE_SNAPSHOT = "/api/v1/snapshots/{snapshot_id}/"
EVENTS = "/api/v1/events/"
SCHEDULES = "/api/v1/schedules/"
ONE_SCHEDULE = "/api/v1/schedules/{schedule_id}/"
WEBHOOKS = "/api/v1/webhooks/"
ONE_WEBHOOK = "/api/v1/webhooks/{webhook_id}/"

JOB_OF_HEADER = {"job_id": "$response.header.X-Job-Id"}
SNAPSHOT_OF_BODY = {"snapshot_id": "$response.body#/id"}

FOLLOW = Link(to="show_job", text="Follow the work.", parameters=JOB_OF_HEADER)
SHOW = Link(to="show_snapshot", text="Look at the snapshot.", parameters=SNAPSHOT_OF_BODY)
RESTORE = Link(to="restore_snapshot", text="Restore it, once completed.", parameters=SNAPSHOT_OF_BODY)
DELETE = Link(to="delete_snapshot", text="Delete it.", parameters=SNAPSHOT_OF_BODY)
UNDO = Link(to="undo_restore", text="Take the restore back, once completed.", parameters=JOB_OF_HEADER)
OWN = tuple(
    Link(to=to, text=text, parameters={"schedule_id": "$response.body#/id"})
    for to, text in (("show_schedule", "Look at it."), ("edit_schedule", "Change it."), ("delete_schedule", "End it."))
)
OWN_WEBHOOK = tuple(
    Link(to=to, text=text, parameters={"webhook_id": "$response.body#/id"})
    for to, text in (
        ("show_webhook", "Look at it."),
        ("edit_webhook", "Change it."),
        ("test_webhook", "Have a test sent."),
        ("list_deliveries", "See what was sent."),
        ("rotate_webhook_secret", "Give it a new secret."),
        ("delete_webhook", "End it."),
    )
)

OF_THE_JOB = ("Operation-Location", "X-Job-Id")
DRY_RUN_WAITS = "Dry run: the node is busy and looks later; follow the job."
DRY_RUN_DONE = "`completed`, or `failed` with the error that the real job would end with."
TO_CHANGE = (errors.NodeUnavailable, errors.ServerBusy, errors.ServerNotReady)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path=SNAPSHOTS,
        tag="snapshots",
        summary="List snapshots",
        text="The account's snapshots, of one server or of all; newest first where `sort` does not say otherwise.",
        handle=Handlers.list_snapshots,
        permission=READ,
        query=ListQuery,
        replies={
            200: Reply(
                text="One page of the list.",
                examples={"two_snapshots": examples.SNAPSHOTS},
                headers=("Link",),
                links=(
                    Link(
                        to="show_snapshot",
                        text="Look at the newest.",
                        parameters={"snapshot_id": "$response.body#/results/0/id"},
                    ),
                ),
            )
        },
    ),
    Operation(
        method="POST",
        path=SNAPSHOTS,
        tag="snapshots",
        summary="Create a snapshot",
        text=(
            "The server is stopped, its disks are snapshotted, and it is started again if it was running."
            " A server keeps at most 5 snapshots; failed ones do not count."
        ),
        handle=Handlers.create_snapshot,
        permission=WRITE,
        query=DryRunQuery,
        body=CreateBody,
        body_examples={"before_update": examples.CREATE},
        replies={
            201: Reply(
                text="The snapshot is being made; follow the job.",
                examples={"in_progress": examples.CREATED},
                headers=("Location", *OF_THE_JOB),
                links=(FOLLOW, SHOW, RESTORE, DELETE),
            ),
            200: Reply(
                text=f"Dry run: the job of the checks, {DRY_RUN_DONE}",
                examples={"checked": examples.CHECKED},
                headers=OF_THE_JOB,
                links=(FOLLOW,),
            ),
            202: Reply(
                text=DRY_RUN_WAITS, examples={"waits": examples.CHECK_WAITS}, headers=OF_THE_JOB, links=(FOLLOW,)
            ),
        },
        refusals=(errors.ServerNotFound, errors.SnapshotLimitReached, errors.NameTaken, *TO_CHANGE),
    ),
    Operation(
        method="GET",
        path=ONE_SNAPSHOT,
        tag="snapshots",
        summary="Show a snapshot",
        text="One snapshot; a failed one stays for 7 days or until it is deleted.",
        handle=Handlers.show_snapshot,
        permission=READ,
        replies={200: Reply(text="The snapshot.", examples={"completed": examples.DETAILS}, links=(RESTORE, DELETE))},
        refusals=(errors.SnapshotNotFound,),
    ),
    Operation(
        method="PATCH",
        path=ONE_SNAPSHOT,
        tag="snapshots",
        summary="Edit a snapshot",
        text="Changes what its owner says about it: its description, its labels, and whether it may be deleted.",
        handle=Handlers.edit_snapshot,
        permission=WRITE,
        body=EditBody,
        body_examples={"protect": examples.EDIT},
        replies={200: Reply(text="The snapshot as it is now.", examples={"edited": examples.DETAILS})},
        refusals=(errors.SnapshotNotFound,),
    ),
    Operation(
        method="DELETE",
        path=ONE_SNAPSHOT,
        tag="snapshots",
        summary="Delete a snapshot",
        text="For good. Its slot is free at once; its node frees the space next. A running server is not stopped.",
        handle=Handlers.delete_snapshot,
        permission=WRITE,
        replies={
            204: Reply(
                text="The snapshot is gone. The headers name the job that frees its space, where its server still is.",
                headers=OF_THE_JOB,
            )
        },
        refusals=(errors.SnapshotNotFound, errors.SnapshotProtected, errors.NodeUnavailable, errors.ServerBusy),
    ),
    Operation(
        method="POST",
        path=f"{ONE_SNAPSHOT}restore/",
        tag="snapshots",
        summary="Restore a server from a snapshot",
        text=(
            "Overwrites all current data of the server. The server is stopped first, and started again if it was"
            " running. What is overwritten is kept for 24 hours, for an undo. Where the server's disks are not those of"
            " the snapshot, the job fails with `disks_differ` before it stops the server; `disks=present` restores the"
            " disks that are there. No body, or `{}`."
        ),
        handle=Handlers.restore_snapshot,
        permission=WRITE,
        query=RestoreQuery,
        replies={
            200: Reply(
                text=f"The server is being restored; follow the job. Dry run: the job of the checks, {DRY_RUN_DONE}",
                examples={"restoring": examples.RESTORING, "checked": examples.CHECKED_RESTORE},
                headers=("Location", *OF_THE_JOB),
                links=(FOLLOW, UNDO),
            ),
            202: Reply(
                text=DRY_RUN_WAITS,
                examples={"waits": examples.CHECK_RESTORE_WAITS},
                headers=OF_THE_JOB,
                links=(FOLLOW,),
            ),
        },
        refusals=(errors.SnapshotNotFound, errors.SnapshotNotReady, *TO_CHANGE),
    ),
    Operation(
        method="POST",
        path="/api/v1/restores/{job_id}/undo/",
        tag="jobs",
        summary="Undo a restore",
        text=(
            "Brings back what the restore of that job has overwritten. It is kept for 24 hours, one for each server."
            " An undo is a restore too, and can be undone. No body, or `{}`."
        ),
        handle=Handlers.undo_restore,
        permission=WRITE,
        query=UndoQuery,
        replies={
            202: Reply(
                text="The undo is under way; follow the new job.",
                examples={"undo": examples.UNDO_WAITS},
                headers=OF_THE_JOB,
                links=(FOLLOW,),
            )
        },
        refusals=(errors.JobNotFound, errors.UndoUnavailable, *TO_CHANGE),
    ),
    Operation(
        method="GET",
        path="/api/v1/jobs/",
        tag="jobs",
        summary="List jobs",
        text="The account's jobs of the last 30 days, newest first, of one server or of all, in one state or in any.",
        handle=Handlers.list_jobs,
        permission=READ,
        query=JobsQuery,
        replies={200: Reply(text="One page of the list.", examples={"one_job": examples.JOBS}, headers=("Link",))},
    ),
    Operation(
        method="GET",
        path="/api/v1/jobs/{job_id}/",
        tag="jobs",
        summary="Show a job",
        text="How far the work is. `state` goes from `queued` over `in_progress` to `completed` or `failed`.",
        handle=Handlers.show_job,
        permission=READ,
        replies={
            200: Reply(
                text="The job.",
                examples={"completed": examples.JOB_COMPLETED, "failed": examples.JOB_FAILED},
                links=(
                    Link(
                        to="undo_restore",
                        text="Take it back, where it is a completed restore.",
                        parameters={"job_id": "$response.body#/id"},
                    ),
                    Link(
                        to="show_snapshot",
                        text="Look at its snapshot.",
                        parameters={"snapshot_id": "$response.body#/snapshot/id"},
                    ),
                ),
            )
        },
        refusals=(errors.JobNotFound,),
    ),
    Operation(
        method="POST",
        path="/api/v1/jobs/{job_id}/cancel/",
        tag="jobs",
        summary="Cancel a job",
        text="Ends a job that its node has not begun; it is then `failed` with the code `cancelled`. No body, or `{}`.",
        handle=Handlers.cancel_job,
        permission=WRITE,
        replies={200: Reply(text="The job, ended.", examples={"cancelled": examples.JOB_CANCELLED})},
        refusals=(errors.JobNotFound, errors.JobNotCancellable),
    ),
    Operation(
        method="GET",
        path=EVENTS,
        tag="jobs",
        summary="Follow all jobs",
        text=(
            "A stream of server-sent events, one for each change of a job of the account, from now on or after the"
            " `Last-Event-ID`. An event `missed` says that the stream does not reach back so far: look at the lists."
        ),
        handle=Handlers.follow_events,
        permission=READ,
        headers=(LAST_EVENT_HEADER,),
        replies={
            200: Reply(
                text="Events without an end. The schema is that of the `data` of each event `job`.",
                examples={"stopping": examples.EVENT},
                media="text/event-stream",
            )
        },
        refusals=(errors.TooManyStreams,),
    ),
    Operation(
        method="GET",
        path="/api/v1/servers/{server_id}/",
        tag="servers",
        summary="Show a server",
        text="What the server does now, how many snapshots it has, and whether new work would be taken.",
        handle=Handlers.show_server,
        permission=READ,
        replies={200: Reply(text="The server.", examples={"restoring": examples.SERVER})},
        refusals=(errors.ServerNotFound,),
    ),
    Operation(
        method="GET",
        path=SCHEDULES,
        tag="schedules",
        summary="List schedules",
        text="The account's schedules, newest first, of one server or of all.",
        handle=Handlers.list_schedules,
        permission=READ,
        query=SchedulesQuery,
        replies={200: Reply(text="One page of the list.", examples={"nightly": examples.SCHEDULES}, headers=("Link",))},
    ),
    Operation(
        method="POST",
        path=SCHEDULES,
        tag="schedules",
        summary="Create a schedule",
        text=(
            "Each run makes a snapshot, as a create does. Where the server has its 5, the oldest that a schedule made"
            " goes first; one that was made by hand never does, nor a protected one. Of its own the newest `keep` stay."
        ),
        handle=Handlers.create_schedule,
        permission=WRITE,
        body=ScheduleBody,
        body_examples={"nightly": examples.NIGHTLY},
        replies={
            201: Reply(text="The schedule.", examples={"nightly": examples.SCHEDULE}, headers=("Location",), links=OWN)
        },
        refusals=(errors.ServerNotFound, errors.ScheduleLimitReached),
    ),
    Operation(
        method="GET",
        path=ONE_SCHEDULE,
        tag="schedules",
        summary="Show a schedule",
        text="One schedule, with its next run and what became of the last.",
        handle=Handlers.show_schedule,
        permission=READ,
        replies={200: Reply(text="The schedule.", examples={"nightly": examples.SCHEDULE})},
        refusals=(errors.ScheduleNotFound, errors.RecordUnreadable),
    ),
    Operation(
        method="PATCH",
        path=ONE_SCHEDULE,
        tag="schedules",
        summary="Edit a schedule",
        text="What is left out stays.",
        handle=Handlers.edit_schedule,
        permission=WRITE,
        body=ScheduleEditBody,
        body_examples={"keep_less": examples.LESS},
        replies={200: Reply(text="The schedule as it is now.", examples={"nightly": examples.SCHEDULE})},
        refusals=(errors.ScheduleNotFound, errors.RecordUnreadable),
    ),
    Operation(
        method="DELETE",
        path=ONE_SCHEDULE,
        tag="schedules",
        summary="Delete a schedule",
        text="The snapshots that it made stay.",
        handle=Handlers.delete_schedule,
        permission=WRITE,
        replies={204: Reply(text="The schedule is gone.")},
        refusals=(errors.ScheduleNotFound,),
    ),
    Operation(
        method="GET",
        path=WEBHOOKS,
        tag="webhooks",
        summary="List webhooks",
        text="The account's webhooks, newest first, without their secrets.",
        handle=Handlers.list_webhooks,
        permission=READ,
        replies={200: Reply(text="All of them.", examples={"one": examples.WEBHOOKS})},
    ),
    Operation(
        method="POST",
        path=WEBHOOKS,
        tag="webhooks",
        summary="Create a webhook",
        text=(
            "From now on each of these events is sent to the URL, signed as the Standard Webhooks specification says."
            " The secret is shown this once. An account has at most 10 webhooks."
        ),
        handle=Handlers.create_webhook,
        permission=WRITE,
        body=WebhookBody,
        body_examples={"terminal": examples.WEBHOOK_ASKED},
        replies={
            201: Reply(
                text="The webhook, with its secret.",
                examples={"terminal": examples.WEBHOOK_SECRET},
                headers=("Location",),
                links=OWN_WEBHOOK,
            )
        },
        refusals=(errors.WebhookLimitReached,),
    ),
    Operation(
        method="GET",
        path=ONE_WEBHOOK,
        tag="webhooks",
        summary="Show a webhook",
        text="One webhook, without its secret.",
        handle=Handlers.show_webhook,
        permission=READ,
        replies={200: Reply(text="The webhook.", examples={"terminal": examples.WEBHOOK})},
        refusals=(errors.WebhookNotFound, errors.RecordUnreadable),
    ),
    Operation(
        method="PATCH",
        path=ONE_WEBHOOK,
        tag="webhooks",
        summary="Edit a webhook",
        text="What is left out stays. While it is disabled nothing is sent; what waits is sent afterwards.",
        handle=Handlers.edit_webhook,
        permission=WRITE,
        body=WebhookEditBody,
        body_examples={"off": examples.WEBHOOK_OFF},
        replies={
            200: Reply(
                text="The webhook as it is now.",
                examples={"off": examples.WEBHOOK.model_copy(update={"enabled": False})},
            )
        },
        refusals=(errors.WebhookNotFound, errors.RecordUnreadable),
    ),
    Operation(
        method="DELETE",
        path=ONE_WEBHOOK,
        tag="webhooks",
        summary="Delete a webhook",
        text="With all that it was to send, and its log.",
        handle=Handlers.delete_webhook,
        permission=WRITE,
        replies={204: Reply(text="The webhook is gone.")},
        refusals=(errors.WebhookNotFound,),
    ),
    Operation(
        method="POST",
        path=f"{ONE_WEBHOOK}rotate-secret/",
        tag="webhooks",
        summary="Rotate a webhook's secret",
        text="A new secret, shown this once. For 24 hours the one before signs beside it. No body, or `{}`.",
        handle=Handlers.rotate_webhook_secret,
        permission=WRITE,
        replies={200: Reply(text="The webhook, with its new secret.", examples={"new": examples.WEBHOOK_SECRET})},
        refusals=(errors.WebhookNotFound, errors.RecordUnreadable),
    ),
    Operation(
        method="POST",
        path=f"{ONE_WEBHOOK}test/",
        tag="webhooks",
        summary="Test a webhook",
        text=(
            "Sends an event `webhook.test`, whose data has `webhook_id`; its log tells what came of it."
            " No body, or `{}`."
        ),
        handle=Handlers.test_webhook,
        permission=WRITE,
        replies={202: Reply(text="It is on its way.", examples={"waits": examples.TEST_WAITS})},
        refusals=(errors.WebhookNotFound, errors.WebhookNotReady),
    ),
    Operation(
        method="GET",
        path=f"{ONE_WEBHOOK}deliveries/",
        tag="webhooks",
        summary="List a webhook's deliveries",
        text="What was and is to be sent in the last 7 days, newest first, at most 1,000.",
        handle=Handlers.list_deliveries,
        permission=READ,
        query=PageQuery,
        replies={200: Reply(text="One page of the list.", examples={"one": examples.DELIVERIES}, headers=("Link",))},
        refusals=(errors.WebhookNotFound,),
    ),
)

PROBES: tuple[Probing, ...] = (
    Probing(
        path="/healthz",
        summary="Is the process alive?",
        text="Says nothing about the store: a restart of the process would not mend that.",
        handle=Handlers.alive,
    ),
    Probing(
        path="/readyz",
        summary="Would a request be served?",
        text="The store answers.",
        handle=Handlers.ready,
        refusals=(errors.StoreUnavailable,),
    ),
)
