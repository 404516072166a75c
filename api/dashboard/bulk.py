"""One action on many jobs: on selected ones, or on all that match a filter, up to a limit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from api.dashboard.context import Context, Pages
from api.dashboard.jobs import JOBS, NEEDED_STATE
from api.dashboard.rendering import Question
from api.dashboard.session import OperatorRequest
from api.http import reading
from api.http.fields import JobIdInPath
from api.http.problems import FieldError, invalid
from api.jobs import bulk
from api.jobs.bodies import BULK_MAX, BulkAction, OpsJobsQuery
from api.words import plain, plural
from worker.store.calls import Cursor
from worker.store.model import JobId

BULK = f"{JOBS}bulk/"
MATCHING_MAX = 500  # jobs of one request, which then takes seconds
REFUSED_LIMIT = 20
_PAGE = 100
_PAGES_MAX = 50  # that are searched: a page may have few that match a text


class Selected(BaseModel):
    """An action on these jobs."""

    model_config = ConfigDict(frozen=True)

    action: BulkAction
    ids: Annotated[tuple[JobIdInPath, ...], Field(min_length=1, max_length=BULK_MAX)]

    @property
    def fields(self) -> dict[str, str | list[str]]:
        return {"action": self.action, "ids": list(self.ids)}


class Matching(OpsJobsQuery):
    """An action on all jobs that match the filters."""

    action: BulkAction

    @property
    def filters(self) -> dict[str, str]:
        given = self.model_dump(exclude={"action", "limit", "after"}, exclude_none=True)
        return {name: str(value) for name, value in given.items()}

    @property
    def fields(self) -> dict[str, str | list[str]]:
        return {"action": self.action, "all": "true", **self.filters}


_TEXTS: Mapping[BulkAction, str] = {
    "retry": "New jobs will do the same again and may stop the VMs. Jobs that were cancelled or retried before, or"
    " whose server has had a later job, are refused.",
    "cancel": "Queued jobs end as cancelled; jobs that have started continue.",
}


async def ask(context: Context, request: OperatorRequest) -> web.Response:
    order = _order({name: request.http.query.getall(name) for name in request.http.query})
    if isinstance(order, Selected):
        jobs, subject = plural(len(order.ids), "job"), ""
    else:
        count = (await context.operators.jobs(order.filter, Cursor(limit=1))).count
        jobs = "all matching jobs" if count is None else plural(count, "matching job")
        filters = ", ".join(f"{plain(name)} {plain(value)}" for name, value in order.filters.items())
        subject = f"Jobs with {filters} (at most {MATCHING_MAX}, newest first)"
    question = Question(
        title=f"{order.action.capitalize()} {jobs}?",
        text=f"{_TEXTS[order.action]} Each job succeeds or fails on its own.",
        verb="Retry" if order.action == "retry" else "Cancel the jobs",
        dismiss="Cancel" if order.action == "retry" else "Keep the jobs",
        is_grave=order.action == "cancel",
        fields=order.fields,
    )
    return context.rendering.ask(request.http, question, back=JOBS, subject=subject)


async def do(context: Context, request: OperatorRequest) -> web.Response:
    order = _order(request.form)
    job_ids, has_more = (order.ids, False) if isinstance(order, Selected) else await _matching(context, order)
    results = await bulk.act(context.operators, request.http, order.action, job_ids)
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
        page = await context.operators.jobs(order.filter, Cursor(limit=_PAGE, after=after))
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


PAGES: Pages = {BULK: ask}
ACTIONS: Pages = {BULK: do}
