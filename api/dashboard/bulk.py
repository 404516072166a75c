"""One thing done to many jobs: to those that were ticked, or to all that a filter matches, up to a bound."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from api.dashboard.desk import Desk, Pages
from api.dashboard.jobs import DONE_TO, JOBS
from api.dashboard.rendering import Question
from api.dashboard.session import Visit
from api.http import reading
from api.http.fields import JobIdInPath
from api.http.marks import EACH, REQUEST_ID
from api.http.problems import FieldError, invalid
from api.jobs.bodies import BULK_MAX, OpsJobsQuery
from worker.store import errors
from worker.store.model import JobId
from worker.store.operators.operator_store import Cursor

BULK = f"{JOBS}bulk/"
MATCHING_MAX = 500  # jobs that one request does: in seconds, not in minutes
REFUSED_SHOWN = 20
_PART = 100
_PARTS_MAX = 50  # of the list that are looked through for them: with a text, each may have few

Action = Literal["retry", "cancel"]


class Ticked(BaseModel):
    """What is to be done to which jobs."""

    model_config = ConfigDict(frozen=True)

    action: Action
    ids: Annotated[tuple[JobIdInPath, ...], Field(min_length=1, max_length=BULK_MAX)]

    @property
    def words(self) -> str:
        return "the job" if len(self.ids) == 1 else f"{len(self.ids)} jobs"

    @property
    def fields(self) -> dict[str, str | list[str]]:
        return {"action": self.action, "ids": list(self.ids)}


class Matching(OpsJobsQuery):
    """What is to be done to all that match."""

    action: Action

    @property
    def filters(self) -> dict[str, str]:
        given = self.model_dump(exclude={"action", "limit", "after"}, exclude_none=True)
        return {name: str(value) for name, value in given.items()}

    @property
    def words(self) -> str:
        told = ", ".join(f"{name.replace('_', ' ')} {value.replace('_', ' ')}" for name, value in self.filters.items())
        return f"all jobs that match ({told}), the newest {MATCHING_MAX} at most"

    @property
    def fields(self) -> dict[str, str | list[str]]:
        return {"action": self.action, "all": "true", **self.filters}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of each of them. `done`: to the new job of a retry, or the one that was cancelled."""

    action: str
    done: dict[JobId, JobId] = field(default_factory=dict)
    refused: dict[JobId, errors.Refused] = field(default_factory=dict)

    @property
    def codes(self) -> Mapping[str, int]:
        return Counter(refusal.code for refusal in self.refused.values())


async def ask(desk: Desk, visit: Visit) -> web.Response:
    wanted = _wanted({name: visit.request.query.getall(name) for name in visit.request.query})
    if wanted.action == "retry":
        text = (
            "New jobs will do the same again and may stop the VMs. Jobs that were cancelled or retried before, or whose"
            " server has had a later job, are refused."
        )
    else:
        text = "Those that have not begun end as failed, cancelled. Others are left alone."
    question = Question(
        title=f"{wanted.action.capitalize()} {wanted.words}?",
        text=f"{text} Each job succeeds or fails on its own.",
        verb="Retry" if wanted.action == "retry" else "Cancel them",
        back=JOBS,
        is_grave=wanted.action == "cancel",
        fields=wanted.fields,
    )
    return desk.rendering.ask(visit.request, question)


async def do(desk: Desk, visit: Visit) -> web.Response:
    wanted = _wanted(visit.form)
    job_ids, has_more = (wanted.ids, False) if isinstance(wanted, Ticked) else await _matching(desk, wanted)
    outcome = Outcome(action=wanted.action)
    each = visit.request[EACH] = []  # as it goes: it may be broken off
    for job_id in job_ids:
        code = await _do_one(desk, visit, outcome, job_id)
        told = {"job": job_id, "reason": wanted.action, "code": code}
        if wanted.action == "retry" and not code:
            told["made"] = f"job {outcome.done[job_id]}"
        each.append(told)
    return desk.rendering.page(
        visit.request, "bulk.html", outcome=outcome, shown=REFUSED_SHOWN, has_more=has_more, back=JOBS
    )


async def _do_one(desk: Desk, visit: Visit, outcome: Outcome, job_id: JobId) -> str:
    """The code of its refusal, if it was refused."""
    try:
        if outcome.action == "retry":
            request_id = visit.request[REQUEST_ID]
            job = await desk.operators.retry(job_id, request_id=request_id, in_bulk=True)
        else:
            job = await desk.operators.cancel(job_id)
    except errors.Refused as refusal:
        outcome.refused[job_id] = refusal
        return refusal.code
    outcome.done[job_id] = job.id
    return ""


async def _matching(desk: Desk, wanted: Matching) -> tuple[Sequence[JobId], bool]:
    """The jobs, and whether there may be more of them."""
    found: list[JobId] = []
    after: str | None = None
    for _ in range(_PARTS_MAX):
        part = await desk.operators.jobs(wanted.filter, Cursor(limit=_PART, after=after))
        found += [job.id for job in part.results]
        after = part.after
        if after is None or len(found) >= MATCHING_MAX:
            break
    return found[:MATCHING_MAX], after is not None


def _wanted(given: Mapping[str, Sequence[str]]) -> Ticked | Matching:
    """Raises Problem."""
    values: dict[str, Any] = {name: values[0] for name, values in given.items() if values[0]}
    if "all" not in values:
        if "ids" not in values:
            raise invalid(FieldError(field="ids", detail="Tick the jobs first."))
        return reading.validated(values | {"ids": tuple(given["ids"])}, Ticked)
    wanted = reading.validated({name: value for name, value in values.items() if name != "after"}, Matching)
    if wanted.state != DONE_TO[wanted.action]:
        detail = f"Filter for the state {DONE_TO[wanted.action]} first: nothing else can be done to the others."
        raise invalid(FieldError(field="state", detail=detail))
    return wanted


PAGES: Pages = {BULK: ask}
ACTIONS: Pages = {BULK: do}
