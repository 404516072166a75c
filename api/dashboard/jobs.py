"""The jobs: the list, one with all that is known of it, and what can be done to one."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from api.dashboard import desk as at
from api.dashboard.desk import Desk, Pages
from api.dashboard.rendering import Question
from api.dashboard.session import Visit
from api.http.fields import JOB_ID
from api.http.marks import REQUEST_ID
from api.http.reading import in_path
from api.jobs.bodies import OpsJobsQuery
from worker.store.model import STEPS, Job, JobKind, JobState, Step
from worker.store.operators.records import OpsJob, StepTaken

JOBS = "/ops/jobs/"
JOB = f"{JOBS}{{job_id}}/"
SHOWN = 50
RARE = frozenset({Step.CLEARING, Step.ADAPTING, Step.UNDOING, Step.CLEANING})
DONE_TO = {"retry": "failed", "cancel": "queued"}  # to jobs in this state alone


async def show_all(desk: Desk, visit: Visit) -> web.Response:
    query = at.query(visit, OpsJobsQuery, limit=SHOWN)
    part = await desk.operators.jobs(query.filter, query.cursor)
    filters = at.filters(visit, query)
    return desk.rendering.page(visit.request, "jobs.html", filters=filters, part=part, bulk=_bulk(filters), query=query)


def _bulk(filters: Mapping[str, str]) -> list[str]:
    """What can be done to all that the filters match."""
    return [action for action, state in DONE_TO.items() if filters.get("state") == state]


async def show_one(desk: Desk, visit: Visit) -> web.Response:
    found = await desk.operators.job(in_path(visit.request, JOB_ID))
    steps = _steps(found)
    return desk.rendering.page(
        visit.request,
        "job.html",
        found=found,
        job=found.job,
        steps=steps,
        longest=max((step.seconds for step in steps), default=0) or 1,
        actions=[name for name, offered in ACTIONS_ON_ONE.items() if offered.is_for(found)],
        to_come=_to_come(found),
        lines=[_line(line) for line in found.log],
        runbook_url=desk.runbook_url,
    )


@dataclass(frozen=True, kw_only=True)
class ShownStep:
    """`tone`: past, bad where it failed, now. `seconds`: so far, of what is under way."""

    taken: StepTaken
    tone: str
    seconds: float


def _steps(found: OpsJob) -> list[ShownStep]:
    """What was tried again has failed before; which step failed for good is said by the log."""
    failed = {line.get("step") for line in found.log if line.get("event") == "step.failed"}
    names = [taken.step for taken in found.steps]
    shown = []
    for place, taken in enumerate(found.steps):
        rest = names[place + 1 :]
        is_tried_again = bool(rest) and rest[0] == taken.step
        is_bad = is_tried_again or (taken.step in failed and taken.step not in rest)
        tone = "now" if taken.seconds is None else "bad" if is_bad else "past"
        so_far = (datetime.now(UTC) - taken.started_at).total_seconds() if taken.seconds is None else taken.seconds
        shown.append(ShownStep(taken=taken, tone=tone, seconds=max(0.0, so_far)))
    return shown


def _to_come(found: OpsJob) -> list[str]:
    """The steps that an unfinished job may still take; those that few jobs need are left out."""
    if found.job.state.is_final:
        return []
    steps = [step for step in STEPS[found.job.kind] if step not in RARE]
    taken = {step.step for step in found.steps}
    last = max((place for place, step in enumerate(steps) if step in taken), default=-1)
    return [str(step) for step in steps[last + 1 :]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the worker's log. `level`: '' where it is nothing out of the ordinary."""

    clock: str
    level: str
    event: str
    tone: str
    fields: Mapping[str, str]


def _line(said: Mapping[str, Any]) -> Line:
    words = {name: text if isinstance(text, str) else json.dumps(text) for name, text in said.items()}
    level = words.pop("level", "info")
    return Line(
        clock=words.pop("timestamp", "")[11:19],
        level="" if level in {"info", "debug"} else level,
        event=words.pop("event", ""),
        tone={"warning": "warn", "error": "bad", "critical": "bad"}.get(level, ""),
        fields=words,
    )


@dataclass(frozen=True, kw_only=True)
class Offered:
    """An action on one job: what it asks, and for which jobs it makes sense."""

    title: str
    text: str
    verb: str
    wants_reason: bool = False
    is_grave: bool = False
    is_for: Callable[[OpsJob], bool]


def _is_retryable(found: OpsJob) -> bool:
    job = found.job
    return job.state is JobState.FAILED and not job.kind.only_looks and job.retried_by is None


def _is_cancellable(found: OpsJob) -> bool:
    return found.job.state is JobState.QUEUED and found.job.kind is not JobKind.DELETE


def _is_stranded(found: OpsJob) -> bool:
    return found.job.needs_person


ACTIONS_ON_ONE: Mapping[str, Offered] = {
    "retry": Offered(
        title="Try it again?",
        text="What it was to do is admitted anew, as a new job, where the rules permit. The VM may be stopped for it.",
        verb="Retry",
        is_for=_is_retryable,
    ),
    "cancel": Offered(
        title="Cancel the job?",
        text="It has not begun; its owner sees it as failed, cancelled. A create's snapshot is marked as failed.",
        verb="Cancel the job",
        is_grave=True,
        is_for=_is_cancellable,
    ),
    "resolve": Offered(
        title="Is the server right again?",
        text="Say so when a person has put right what the job had stranded. It changes nothing on the node.",
        verb="It is resolved",
        wants_reason=True,
        is_for=_is_stranded,
    ),
}


async def ask(desk: Desk, visit: Visit) -> web.Response:
    job = (await desk.operators.job(in_path(visit.request, JOB_ID))).job
    offered = ACTIONS_ON_ONE[visit.request.match_info["action"]]
    question = Question(
        title=offered.title,
        text=f"{_named(job)}. {offered.text}",
        verb=offered.verb,
        back=f"{JOBS}{job.id}/",
        wants_reason=offered.wants_reason,
        is_grave=offered.is_grave,
    )
    return desk.rendering.ask(visit.request, question)


def _named(job: Job) -> str:
    snapshot = f", snapshot {job.snapshot_name}" if job.snapshot_name else ""
    kind = job.kind.replace("_", " ").capitalize()
    return f"{kind} for server {job.server_id} ({job.server_name}){snapshot}, job {job.id[:8]}"


async def retry(desk: Desk, visit: Visit) -> web.Response:
    job_id = in_path(visit.request, JOB_ID)
    new = await desk.operators.retry(job_id, request_id=visit.request[REQUEST_ID])
    text = f"Job {job_id[:8]} is tried again, as job {new.id[:8]}."
    response = desk.rendering.done(visit.request, text, back=f"{JOBS}{job_id}/", link=f"{JOBS}{new.id}/")
    response.headers["X-Job-Id"] = new.id
    return response


async def cancel(desk: Desk, visit: Visit) -> web.Response:
    job_id = in_path(visit.request, JOB_ID)
    await desk.operators.cancel(job_id)
    return desk.rendering.done(visit.request, f"Job {job_id[:8]} is cancelled.", back=f"{JOBS}{job_id}/")


async def resolve(desk: Desk, visit: Visit) -> web.Response:
    job_id, reason = in_path(visit.request, JOB_ID), at.reason(visit)
    found = await desk.operators.resolve(job_id, by=visit.token.name, reason=reason)
    text = f"Server {found.job.server_id} is noted as put right."
    return desk.rendering.done(visit.request, text, back=f"{JOBS}{job_id}/")


PAGES: Pages = {JOBS: show_all, JOB: show_one, f"{JOB}{{action:retry|cancel|resolve}}/": ask}
ACTIONS: Pages = {f"{JOB}retry/": retry, f"{JOB}cancel/": cancel, f"{JOB}resolve/": resolve}
