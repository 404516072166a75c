"""Every call of the operators, once: they see all accounts, with a token that belongs to none."""

from collections.abc import Mapping

from api import ops_examples
from api.http.calls import Call, Link, Reply
from api.http.reading import LAST_EVENT_HEADER
from api.ops_handlers import OpsHandlers
from api.ops_requests import (
    AuditQuery,
    BulkBody,
    CursorQuery,
    OpsJobsQuery,
    OpsNodesQuery,
    OpsServersQuery,
    ReasonBody,
    TokenBody,
    TokensQuery,
)
from worker.store import errors
from worker.store.access.tokens import Permission, Token

OpsOperation = Call[OpsHandlers, Token]

OPS = "/api/v1/ops/"
OPS_EVENTS = f"{OPS}events/"
TAG = "operators"


def _links(*calls: str, given: Mapping[str, str]) -> tuple[Link, ...]:
    return tuple(Link(to=call, text="Go on with that one.", parameters=given) for call in calls)


OF_JOB = ("ops_retry_job", "ops_cancel_job", "ops_resolve_job")
OF_NODE = ("ops_pause_node", "ops_resume_node", "ops_reconcile_node")

# what the admission of a retry may refuse
RETRY = (
    *(errors.JobNotFound, errors.JobNotRetryable, errors.ServerNotFound, errors.SnapshotNotFound),
    *(errors.SnapshotNotReady, errors.SnapshotProtected, errors.SnapshotLimitReached, errors.NameTaken),
    *(errors.UndoUnavailable, errors.NodeUnavailable, errors.ServerBusy, errors.ServerNotReady),
)

OPS_OPERATIONS: tuple[OpsOperation, ...] = (
    OpsOperation(
        method="GET",
        path=f"{OPS}overview/",
        tag=TAG,
        summary="Look at the cell",
        text="What happens now, and the last 24 hours in quarters of an hour.",
        handle=OpsHandlers.ops_overview,
        permission=Permission.OPERATOR,
        replies={200: Reply(text="Here it is.", examples={"overview": ops_examples.OVERVIEW})},
    ),
    OpsOperation(
        method="GET",
        path=f"{OPS}nodes/",
        tag=TAG,
        summary="List nodes",
        text="By name where `sort` does not say otherwise.",
        handle=OpsHandlers.ops_list_nodes,
        permission=Permission.OPERATOR,
        query=OpsNodesQuery,
        replies={
            200: Reply(
                text="Here it is.",
                examples={"nodes": ops_examples.NODES},
                headers=("Link",),
                links=_links("ops_show_node", given={"node": "$response.body#/results/0/name"}),
            )
        },
    ),
    OpsOperation(
        method="GET",
        path=f"{OPS}nodes/{{node}}/",
        tag=TAG,
        summary="Show a node",
        text="A node with the jobs that run on it.",
        handle=OpsHandlers.ops_show_node,
        permission=Permission.OPERATOR,
        replies={
            200: Reply(
                text="Here it is.",
                examples={"node_details": ops_examples.NODE_DETAILS},
                links=_links(*OF_NODE, given={"node": "$response.body#/name"}),
            )
        },
        refusals=(errors.NodeNotFound,),
    ),
    OpsOperation(
        method="POST",
        path=f"{OPS}nodes/{{node}}/pause/",
        tag=TAG,
        summary="Pause a node",
        text="It takes no new job; those that run end. Jobs are still admitted and wait, `queued`.",
        handle=OpsHandlers.ops_pause_node,
        permission=Permission.OPERATOR,
        body=ReasonBody,
        body_examples={"reason": ops_examples.REASON},
        replies={200: Reply(text="Done.", examples={"paused": ops_examples.PAUSED})},
        refusals=(errors.NodeNotFound,),
    ),
    OpsOperation(
        method="POST",
        path=f"{OPS}nodes/{{node}}/resume/",
        tag=TAG,
        summary="Let a node go on",
        text="It takes the jobs that wait at once.",
        handle=OpsHandlers.ops_resume_node,
        permission=Permission.OPERATOR,
        body=ReasonBody,
        body_examples={"reason": ops_examples.REASON},
        replies={200: Reply(text="Done.", examples={"node": ops_examples.NODE})},
        refusals=(errors.NodeNotFound,),
    ),
    OpsOperation(
        method="POST",
        path=f"{OPS}nodes/{{node}}/reconcile/",
        tag=TAG,
        summary="Reconcile a node",
        text="Its worker compares all its servers with the store; it hears of it within seconds. No body, or `{}`.",
        handle=OpsHandlers.ops_reconcile_node,
        permission=Permission.OPERATOR,
        replies={202: Reply(text="Done.", examples={"node": ops_examples.NODE})},
        refusals=(errors.NodeNotFound,),
    ),
    OpsOperation(
        method="GET",
        path=f"{OPS}jobs/",
        tag=TAG,
        summary="List all jobs",
        text="The jobs of the last 30 days, newest first. With several filters a part may be short and yet go on.",
        handle=OpsHandlers.ops_list_jobs,
        permission=Permission.OPERATOR,
        query=OpsJobsQuery,
        replies={
            200: Reply(
                text="Here it is.",
                examples={"jobs": ops_examples.JOBS},
                headers=("Link",),
                links=_links("ops_show_job", *OF_JOB, given={"job_id": "$response.body#/results/0/id"}),
            )
        },
    ),
    OpsOperation(
        method="POST",
        path=f"{OPS}jobs/bulk/",
        tag=TAG,
        summary="Do one thing to many jobs",
        text=(
            "Each job succeeds or fails on its own. A retry is refused, `job_not_retryable`, also for a job that was"
            " cancelled or whose server has had a later job: look at such a job and retry it alone."
        ),
        handle=OpsHandlers.ops_bulk_jobs,
        permission=Permission.OPERATOR,
        body=BulkBody,
        body_examples={"bulk": ops_examples.BULK},
        replies={200: Reply(text="Done.", examples={"bulk_results": ops_examples.BULK_RESULTS})},
    ),
    OpsOperation(
        method="GET",
        path=f"{OPS}jobs/{{job_id}}/",
        tag=TAG,
        summary="Show any job",
        text="With the times of its steps and its last log lines.",
        handle=OpsHandlers.ops_show_job,
        permission=Permission.OPERATOR,
        replies={
            200: Reply(
                text="Here it is.",
                examples={"failed": ops_examples.FAILED},
                links=_links(*OF_JOB, given={"job_id": "$response.body#/id"}),
            )
        },
        refusals=(errors.JobNotFound,),
    ),
    OpsOperation(
        method="POST",
        path=f"{OPS}jobs/{{job_id}}/retry/",
        tag=TAG,
        summary="Try a failed job again",
        text=(
            "A new job does the same again, where the rules permit. A job is retried once: then `retried_by` names the"
            " new job. No body, or `{}`."
        ),
        handle=OpsHandlers.ops_retry_job,
        permission=Permission.OPERATOR,
        replies={
            202: Reply(
                text="Done.",
                examples={"retried": ops_examples.RETRIED},
                headers=("Operation-Location", "X-Job-Id"),
                links=_links("ops_show_job", given={"job_id": "$response.header.X-Job-Id"}),
            )
        },
        refusals=RETRY,
    ),
    OpsOperation(
        method="POST",
        path=f"{OPS}jobs/{{job_id}}/cancel/",
        tag=TAG,
        summary="Cancel any job",
        text="As its owner could. No body, or `{}`.",
        handle=OpsHandlers.ops_cancel_job,
        permission=Permission.OPERATOR,
        replies={200: Reply(text="Done.", examples={"cancelled": ops_examples.CANCELLED})},
        refusals=(
            errors.JobNotFound,
            errors.JobNotCancellable,
        ),
    ),
    OpsOperation(
        method="POST",
        path=f"{OPS}jobs/{{job_id}}/resolve/",
        tag=TAG,
        summary="Resolve a stranded server",
        text="Says that a person has put the server right which the job had stranded.",
        handle=OpsHandlers.ops_resolve_job,
        permission=Permission.OPERATOR,
        body=ReasonBody,
        body_examples={"reason": ops_examples.REASON},
        replies={200: Reply(text="Done.", examples={"resolved": ops_examples.RESOLVED})},
        refusals=(
            errors.JobNotFound,
            errors.JobNotStranded,
        ),
    ),
    OpsOperation(
        method="GET",
        path=f"{OPS}servers/",
        tag=TAG,
        summary="List all servers",
        text="By id; the stranded ones in the order in which they were.",
        handle=OpsHandlers.ops_list_servers,
        permission=Permission.OPERATOR,
        query=OpsServersQuery,
        replies={
            200: Reply(
                text="Here it is.",
                examples={"servers": ops_examples.SERVERS},
                headers=("Link",),
                links=_links("ops_show_server", given={"server_id": "$response.body#/results/0/id"}),
            )
        },
    ),
    OpsOperation(
        method="GET",
        path=f"{OPS}servers/{{server_id}}/",
        tag=TAG,
        summary="Show any server",
        text="With its snapshots and its latest jobs, of former owners too.",
        handle=OpsHandlers.ops_show_server,
        permission=Permission.OPERATOR,
        replies={200: Reply(text="Here it is.", examples={"server_details": ops_examples.SERVER_DETAILS})},
        refusals=(errors.ServerNotFound,),
    ),
    OpsOperation(
        method="GET",
        path=f"{OPS}findings/",
        tag=TAG,
        summary="List findings",
        text="What reconciliation has found, by server, newest first.",
        handle=OpsHandlers.ops_list_findings,
        permission=Permission.OPERATOR,
        query=CursorQuery,
        replies={200: Reply(text="Here it is.", examples={"findings": ops_examples.FINDINGS}, headers=("Link",))},
    ),
    OpsOperation(
        method="GET",
        path=f"{OPS}audit/",
        tag=TAG,
        summary="List the audit",
        text="Who did what, newest first. Where filters are given, a part may be short and yet go on.",
        handle=OpsHandlers.ops_list_audit,
        permission=Permission.OPERATOR,
        query=AuditQuery,
        replies={200: Reply(text="Here it is.", examples={"audit": ops_examples.AUDIT}, headers=("Link",))},
    ),
    OpsOperation(
        method="GET",
        path=f"{OPS}tokens/",
        tag=TAG,
        summary="List tokens",
        text="The valid ones, never their secrets.",
        handle=OpsHandlers.ops_list_tokens,
        permission=Permission.OPERATOR,
        query=TokensQuery,
        replies={200: Reply(text="Here it is.", examples={"tokens": ops_examples.TOKENS})},
    ),
    OpsOperation(
        method="POST",
        path=f"{OPS}tokens/",
        tag=TAG,
        summary="Create a token",
        text="Its secret is shown in this answer and never again.",
        handle=OpsHandlers.ops_create_token,
        permission=Permission.OPERATOR,
        body=TokenBody,
        body_examples={"token": ops_examples.TOKEN},
        replies={
            201: Reply(
                text="Done.",
                examples={"new_token": ops_examples.NEW_TOKEN},
                links=_links("ops_revoke_token", given={"token_id": "$response.body#/id"}),
            )
        },
    ),
    OpsOperation(
        method="DELETE",
        path=f"{OPS}tokens/{{token_id}}/",
        tag=TAG,
        summary="Revoke a token",
        text="At once.",
        handle=OpsHandlers.ops_revoke_token,
        permission=Permission.OPERATOR,
        replies={204: Reply(text="The token is gone.")},
        refusals=(errors.TokenNotFound,),
    ),
    OpsOperation(
        method="GET",
        path=OPS_EVENTS,
        tag=TAG,
        summary="Follow the jobs of all accounts",
        text="As an account's stream of events does; about 10,000 events are kept.",
        handle=OpsHandlers.ops_follow_events,
        permission=Permission.OPERATOR,
        headers=(LAST_EVENT_HEADER,),
        replies={
            200: Reply(
                text="Events without an end. The schema is that of the `data` of each event `job`.",
                examples={"stopping": ops_examples.EVENT},
                media="text/event-stream",
            )
        },
        refusals=(errors.TooManyStreams,),
    ),
)
