"""The jobs: the list, the page of one job, and the actions on it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from api.dashboard import retries
from api.dashboard.cancels import is_cancellable
from api.dashboard.context import Context, LocalMoment, Section, read_filters, read_page, read_query, read_reason
from api.dashboard.rendering import Link, Question
from api.dashboard.session import OperatorRequest
from api.http.fields import JOB_ID
from api.http.marks import REASON, REQUEST_ID
from api.http.reading import in_path
from api.jobs import waiting
from api.jobs.bodies import OpsJobsQuery
from api.words import ago
from worker.store.model import Job, JobKind, JobState, Step
from worker.store.operators.operator_store import JobFilter
from worker.store.operators.records import OpsJob, StepTaken
from worker.store.operators.waiting import Waiting

JOBS = "/ops/jobs/"
JOB = f"{JOBS}{{job_id}}/"
LIMIT = 50
RARE = frozenset({Step.CLEARING, Step.ADAPTING, Step.UNDOING, Step.CLEANING})
NEEDED_STATE = {"retry": "failed", "cancel": "queued"}  # the state that a job needs for each action


class JobsQuery(OpsJobsQuery):
    """The API's query, with times as browsers send them."""

    since: LocalMoment | None = None
    until: LocalMoment | None = None
    ended_since: LocalMoment | None = None
    ended_until: LocalMoment | None = None


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    query = read_query(request, JobsQuery, limit=LIMIT)
    page = await read_page(request, lambda: context.operators.jobs(as_shown(query), query.cursor))
    filters = read_filters(request, query)
    return context.rendering.page(
        request.http, "jobs.html", filters=filters, page=page, bulk=_bulk(filters), query=query, kinds=tuple(JobKind)
    )


def as_shown(query: OpsJobsQuery) -> JobFilter:
    """The list's filter as shown to people: a cancelled job is not shown as failed."""
    wanted = query.filter
    is_failed = wanted.state is JobState.FAILED and wanted.cancelled is None
    return replace(wanted, cancelled=False) if is_failed else wanted


def _bulk(filters: Mapping[str, str]) -> list[str]:
    """The bulk actions that apply to all matching jobs."""
    return [action for action, state in NEEDED_STATE.items() if filters.get("state") == state]


async def show_one(context: Context, request: OperatorRequest) -> web.Response:
    found = await context.operators.job(in_path(request.http, JOB_ID))
    steps = _steps(found)
    return context.rendering.page(
        request.http,
        "job.html",
        found=found,
        job=found.job,
        steps=steps,
        longest=max((step.seconds for step in steps), default=0) or 1,
        actions=[action for action, applies in _APPLIES.items() if applies(found)],
        pending=_pending(found),
        waiting_text=_waiting_text(found.waiting) if found.waiting else None,
        lines=[_line(line) for line in found.log],
        runbook_url=context.runbook_url,
    )


@dataclass(frozen=True, kw_only=True)
class WaitingText:
    """Why a queued job has not started, in words."""

    waiting: Waiting
    why: str
    place: str
    given_up: str


def _waiting_text(found: Waiting) -> WaitingText:
    return WaitingText(
        waiting=found, why=waiting.why(found, when=ago), place=waiting.place(found), given_up=waiting.given_up(found)
    )


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """`tone`: "past", "bad" if the step failed, or "now". `seconds`: for the current step, until now.

    If the node is silent, until its last heartbeat.
    """

    taken: StepTaken
    tone: str
    seconds: float


def _steps(found: OpsJob) -> list[StepRow]:
    steps, until = [], found.job.silent_since or datetime.now(UTC)
    for taken in found.steps:
        tone = "now" if taken.seconds is None else "bad" if taken.failed else "past"
        so_far = (until - taken.started_at).total_seconds() if taken.seconds is None else taken.seconds
        steps.append(StepRow(taken=taken, tone=tone, seconds=max(0.0, so_far)))
    return steps


def _pending(found: OpsJob) -> list[str]:
    """The steps that an unfinished job may still take, without rare ones."""
    if found.job.state.is_final:
        return []
    steps = [step for step in found.job.steps if step not in RARE]
    taken = {step.step for step in found.steps}
    last = max((place for place, step in enumerate(steps) if step in taken), default=-1)
    return [str(step) for step in steps[last + 1 :]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the worker's log. `at`: None if the line has no time. `level`: '' below warning."""

    at: datetime | None
    level: str
    event: str
    tone: str
    fields: Mapping[str, str]


def _line(record: Mapping[str, Any]) -> Line:
    words = {name: text if isinstance(text, str) else json.dumps(text) for name, text in record.items()}
    level = words.pop("level", "info")
    return Line(
        at=_moment(words.pop("timestamp", "")),
        level="" if level in {"info", "debug"} else level,
        event=words.pop("event", ""),
        tone={"warning": "warn", "error": "bad", "critical": "bad"}.get(level, ""),
        fields=words,
    )


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_APPLIES: Mapping[str, Callable[[OpsJob], bool]] = {
    # comes first: until it is done, the other actions do not help the server
    "resolve": lambda found: found.job.needs_person,
    "retry": lambda found: found.retry.is_possible,
    "cancel": lambda found: is_cancellable(found.job),
}
_QUESTIONS: Mapping[str, Question] = {
    "cancel": Question(
        title="Cancel this job?",
        text="It has not started. The customer sees it as failed (cancelled). A create's snapshot is marked as failed.",
        verb="Cancel the job",
        dismiss="Keep the job",
        is_grave=True,
    ),
    "resolve": Question(
        title="Is the server repaired?",
        text="Confirm this after you have repaired the server by hand. It changes nothing on the node.",
        verb="Mark as resolved",
        wants_reason=True,
    ),
}


async def ask(context: Context, request: OperatorRequest) -> web.Response:
    found, action = await context.operators.job(in_path(request.http, JOB_ID)), request.http.match_info["action"]
    job, question = found.job, retries.for_one(found) if action == "retry" else _QUESTIONS[action]
    return context.rendering.ask(request.http, question, back=f"{JOBS}{job.id}/", subject=_named(job))


def _named(job: Job) -> str:
    snapshot = f", snapshot {job.snapshot_name}" if job.snapshot_name else ""
    kind = job.kind.replace("_", " ").capitalize()
    return f"{kind} for server {job.server_id} ({job.server_name}){snapshot}, job {job.id[:8]}"


async def retry(context: Context, request: OperatorRequest) -> web.Response:
    job_id, force = in_path(request.http, JOB_ID), "force" in request.form
    if force:
        retries.ensure_typed(request.form, str((await context.operators.job(job_id)).job.server_id))
        request.http[REASON] = "forced"
    new = await context.operators.retry(
        job_id, request_id=request.http[REQUEST_ID], force=force, by=request.token.actor
    )
    text = f"Job {job_id[:8]} retried as job {new.id[:8]}."
    response = context.rendering.done(request.http, text, back=f"{JOBS}{job_id}/", link=f"{JOBS}{new.id}/")
    response.headers["X-Job-Id"] = new.id
    return response


async def cancel(context: Context, request: OperatorRequest) -> web.Response:
    job_id = in_path(request.http, JOB_ID)
    await context.operators.cancel(job_id)
    return context.rendering.done(request.http, f"Job {job_id[:8]} cancelled.", back=f"{JOBS}{job_id}/")


async def resolve(context: Context, request: OperatorRequest) -> web.Response:
    job_id, reason = in_path(request.http, JOB_ID), read_reason(request)
    found = await context.operators.resolve(job_id, by=request.token.name, reason=reason)
    text = f"Server {found.job.server_id} marked as resolved."
    return context.rendering.done(request.http, text, back=f"{JOBS}{job_id}/")


SECTION = Section(
    pages={JOBS: show_all, JOB: show_one},
    questions={f"{JOB}{{action:retry|cancel|resolve}}/": ask},
    actions={f"{JOB}retry/": retry, f"{JOB}cancel/": cancel, f"{JOB}resolve/": resolve},
    link=Link(href=JOBS, name="Jobs", key="j"),
)
