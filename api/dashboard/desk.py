"""What every page and every action of the dashboard has at hand."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel

from api.dashboard.rendering import Rendering
from api.dashboard.session import Door, Visit
from api.events.streams import Streams
from api.http import reading
from api.http.fields import ReasonBody
from api.http.marks import REASON
from worker.store.access.tokens import Tokens
from worker.store.customers.customer_store import CustomerStore
from worker.store.operators.operator_store import OperatorStore


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The objects behind the operators' calls. `runbook_url`: of the page that the errors of jobs point into."""

    operators: OperatorStore
    store: CustomerStore
    tokens: Tokens
    streams: Streams
    rendering: Rendering
    door: Door
    runbook_url: str


Handler = Callable[[Desk, Visit], Awaitable[web.StreamResponse]]
Part = TypeVar("Part", bound=BaseModel)
Pages = Mapping[str, Handler]  # by path


def reason(visit: Visit) -> str:
    """Why it is done, for the audit too. Raises Problem."""
    given = reading.validated({"reason": " ".join(visit.form.get("reason", [""])).strip()}, ReasonBody).reason
    visit.request[REASON] = given
    return given


def filters(visit: Visit, query: BaseModel) -> dict[str, str]:
    """What the query asks for, to lead on to other parts of the same list."""
    given = visit.request.query
    return {name: given[name] for name in type(query).model_fields if given.get(name) and name != "after"}


def query(visit: Visit, model: type[Part], *, limit: int) -> Part:
    """Which part of a list is asked for, `limit` long where the address says nothing. What a form has left empty is
    left out. Raises Problem."""
    found = reading.query(visit.request, model, but_empty=True)
    return found if "limit" in found.model_fields_set else found.model_copy(update={"limit": limit})
