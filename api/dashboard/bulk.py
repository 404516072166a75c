"""One action on many jobs: on selected ones, or on all that match a filter, up to a limit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.dashboard import cancels, retries
from api.dashboard.context import Context, Section
from api.dashboard.jobs import JOBS, NEEDED_STATE, JobsQuery, as_shown
from api.dashboard.rendering import Question, address
from api.dashboard.session import OperatorRequest
from api.http import reading
from api.http.fields import JobIdInPath, truth
from api.http.problems import FieldError, invalid
from api.jobs import bulk
from api.jobs.bodies import BulkAction
from api.words import machine, plain
from worker.store.model import JobId
from worker.store.operators.records import Retry

BULK = f"{JOBS}bulk/"
MATCHING_MAX = 500  # jobs per request; a request with that many takes seconds
REFUSED_LIMIT = 20
_PAGE = 100
Force = Annotated[bool, BeforeValidator(truth)]
_PAGES_MAX = 50  # pages that are searched: a page may have few jobs that match a text


class Selected(BaseModel):
    """An action on these jobs."""

    model_config = ConfigDict(frozen=True)

    action: BulkAction
    ids: Annotated[tuple[JobIdInPath, ...], Field(min_length=1, max_length=MATCHING_MAX)]
    force: Force = False

    @property
    def fields(self) -> dict[str, str | list[str]]:
        return {"action": self.action, "ids": list(self.ids)}


class Matching(JobsQuery):
    """An action on all jobs that match the filters."""

    action: BulkAction
    force: Force = False

    @property
    def filters(self) -> dict[str, str]:
        given = self.model_dump(exclude={"action", "force", "limit", "after"}, exclude_none=True)
        return {name: machine(value) if isinstance(value, datetime) else str(value) for name, value in given.items()}

    @property
    def fields(self) -> dict[str, str | list[str]]:
        return {"action": self.action, "all": "true", **self.filters}


async def ask(context: Context, request: OperatorRequest) -> web.Response:
    order = _order({name: request.http.query.getall(name) for name in request.http.query})
    question = await _question(context, order)
    subject = ""
    if isinstance(order, Matching):
        filters = ", ".join(f"{plain(name)} {plain(value)}" for name, value in order.filters.items())
        subject = f"Jobs with {filters} (at most {MATCHING_MAX}, newest first)"
    return context.rendering.ask(request.http, question, back=JOBS, subject=subject)


async def _question(context: Context, order: Selected | Matching) -> Question:
    """Its form sends only the jobs that the question names, and no jobs that match later."""
    job_ids, _ = (order.ids, False) if isinstance(order, Selected) else await _matching(context, order)
    found: list[Retry] = []
    for n in range(0, len(job_ids), _PAGE):
        found += await context.operators.retries(job_ids[n : n + _PAGE], force=order.force)
    known = {one.job.id for one in found}
    missing = [job_id for job_id in job_ids if job_id not in known]
    if order.action == "cancel":
        return cancels.for_many([one.job for one in found], missing=missing)
    wider = address(BULK, order.fields, force="true")
    return retries.for_many(found, missing=missing, force=order.force, wider=wider)


async def do(context: Context, request: OperatorRequest) -> web.Response:
    order = _order(request.form)
    if order.force:
        if isinstance(order, Matching):
            raise invalid(FieldError(field="ids", detail="Only named jobs are forced."))
        retries.ensure_typed(request.form, str(len(order.ids)))
    job_ids, has_more = (order.ids, False) if isinstance(order, Selected) else await _matching(context, order)
    results = await bulk.act(context.operators, request.http, order.action, job_ids, force=order.force)
    refused = [result for result in results if not result.done]
    return context.rendering.page(
        request.http,
        "bulk.html",
        action=order.action,
        done=len(results) - len(refused),
        refused=refused,
        codes=Counter(result.code for result in refused),
        limit=REFUSED_LIMIT,
        has_more=has_more,
        back=JOBS,
    )


async def _matching(context: Context, order: Matching) -> tuple[Sequence[JobId], bool]:
    """The jobs, and whether there may be more."""
    found: list[JobId] = []
    after: str | None = None
    for _ in range(_PAGES_MAX):
        page = await context.operators.jobs(as_shown(order), replace(order.cursor, limit=_PAGE, after=after))
        found += [job.id for job in page.results]
        after = page.after
        if after is None or len(found) >= MATCHING_MAX:
            break
    return found[:MATCHING_MAX], after is not None


def _order(given: Mapping[str, Sequence[str]]) -> Selected | Matching:
    """Raises Problem."""
    values: dict[str, Any] = {name: values[0] for name, values in given.items() if values[0]}
    if "all" not in values:
        if "ids" not in values:
            raise invalid(FieldError(field="ids", detail="Select some jobs first."))
        return reading.validated(values | {"ids": tuple(given["ids"])}, Selected)
    order = reading.validated({name: value for name, value in values.items() if name != "after"}, Matching)
    if order.state != NEEDED_STATE[order.action]:
        raise invalid(FieldError(field="state", detail=f'Filter by state "{NEEDED_STATE[order.action]}" first.'))
    return order


SECTION = Section(questions={BULK: ask}, actions={BULK: do})
