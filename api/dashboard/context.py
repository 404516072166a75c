"""What the handlers of all pages and actions share."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ValidationInfo

from api.dashboard import zones
from api.dashboard.rendering import WRONG, Link, Rendering
from api.dashboard.session import OperatorRequest, SessionGuard
from api.events.streams import Streams
from api.http import reading
from api.http.fields import Moment, ReasonBody
from api.http.marks import REASON
from api.http.problems import Problem
from api.words import machine
from worker.store.access.tokens import Tokens
from worker.store.access.usage import TokenUses
from worker.store.calls import CursorPage
from worker.store.customers.customer_store import CustomerStore
from worker.store.operators.operator_store import OperatorStore


@dataclass(frozen=True, kw_only=True)
class Context:
    """The objects that handlers use. `runbook_url`: an error's section is `#CODE` on that page."""

    operators: OperatorStore
    store: CustomerStore
    tokens: Tokens
    uses: TokenUses
    streams: Streams
    rendering: Rendering
    guard: SessionGuard
    runbook_url: str


Handler = Callable[[Context, OperatorRequest], Awaitable[web.StreamResponse]]
Query = TypeVar("Query", bound=BaseModel)
Item = TypeVar("Item")
Pages = Mapping[str, Handler]  # by path


@dataclass(frozen=True, kw_only=True)
class Section:
    """The routes of a module: pages and questions (GET), actions (POST), and its link in the header of each page."""

    pages: Pages = field(default_factory=dict)
    questions: Pages = field(default_factory=dict)
    actions: Pages = field(default_factory=dict)
    link: Link | None = None


ZONE = "zone"  # the key in a validation's context


def in_zone(text: object, info: ValidationInfo) -> object:
    """A time from a form, in the time zone of the validation's context."""
    return zones.with_zone(text, (info.context or {}).get(ZONE, UTC))


LocalMoment = Annotated[Moment, BeforeValidator(in_zone)]  # as a browser sends it


def read_reason(request: OperatorRequest) -> str:
    """The form's reason; it is recorded in the audit log too. Raises Problem."""
    given = reading.validated({"reason": " ".join(request.form.get("reason", [""])).strip()}, ReasonBody).reason
    request.http[REASON] = given
    return given


def read_filters(request: OperatorRequest, query: BaseModel) -> dict[str, str]:
    """The parameters for other pages of the same list, with times in UTC. An invalid parameter is kept as it was
    given."""
    given = request.http.query
    names = [name for name in type(query).model_fields if given.get(name) and name != "after"]
    values = {name: getattr(query, name) for name in names}
    return {name: machine(value) if isinstance(value := values[name], datetime) else given[name] for name in names}


def read_query(request: OperatorRequest, model: type[Query], *, limit: int) -> Query:
    """The query of a list, without empty and invalid fields. The page shows an invalid field with its error. `limit`
    is the default."""
    http, context = request.http, {ZONE: zones.of(request.http)}
    try:
        found = reading.query(http, model, skip_empty=True, context=context)
    except Problem as problem:
        http[WRONG] = {error.field: error.detail for error in problem.fields}
        right = {
            name: http.query[name] for name in model.model_fields if http.query.get(name) and name not in http[WRONG]
        }
        found = reading.validated(right, model, context=context)
    return found if "limit" in found.model_fields_set else found.model_copy(update={"limit": limit})


async def read_page(request: OperatorRequest, read: Callable[[], Awaitable[CursorPage[Item]]]) -> CursorPage[Item]:
    """The page of the list; empty if the query has an error."""
    return CursorPage(count=None, results=(), after=None) if request.http.get(WRONG) else await read()
