"""What the handlers of all pages and actions share."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, TypeVar

from aiohttp import web
from pydantic import BaseModel, BeforeValidator

from api.dashboard.rendering import Rendering
from api.dashboard.session import OperatorRequest, SessionGuard
from api.events.streams import Streams
from api.http import reading
from api.http.fields import Moment, ReasonBody
from api.http.marks import REASON
from worker.store.access.tokens import Tokens
from worker.store.access.usage import TokenUses
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
Pages = Mapping[str, Handler]  # by path


_DATETIME_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")


def as_utc(text: object) -> object:
    """A `datetime-local` input sends no zone, and no seconds if they are 0."""
    if isinstance(text, str) and _DATETIME_LOCAL.fullmatch(text):
        return f"{datetime.fromisoformat(text).isoformat()}Z"
    return text


LocalMoment = Annotated[Moment, BeforeValidator(as_utc)]  # as a browser sends it


def read_reason(request: OperatorRequest) -> str:
    """The form's reason; it is recorded in the audit log too. Raises Problem."""
    given = reading.validated({"reason": " ".join(request.form.get("reason", [""])).strip()}, ReasonBody).reason
    request.http[REASON] = given
    return given


def read_filters(request: OperatorRequest, query: BaseModel) -> dict[str, str]:
    """The parameters that other pages of the same list need."""
    given = request.http.query
    return {name: given[name] for name in type(query).model_fields if given.get(name) and name != "after"}


def read_query(request: OperatorRequest, model: type[Query], *, limit: int) -> Query:
    """The query of a list, without the fields that a form left empty. `limit` is the default. Raises Problem."""
    found = reading.query(request.http, model, skip_empty=True)
    return found if "limit" in found.model_fields_set else found.model_copy(update={"limit": limit})
