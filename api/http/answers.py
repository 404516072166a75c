"""Responses: base classes of bodies, the conversion of records to bodies, and links between pages."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from yarl import URL

from api.http.fields import PageQuery
from worker.store.calls import CursorPage, Page
from worker.store.model import JobKind, ServerState, Step

_JSON = "application/json; charset=utf-8"

Body = TypeVar("Body", bound=BaseModel)
Item = TypeVar("Item")


def rfc3339(moment: datetime) -> str:
    """UTC, in whole seconds."""
    return f"{moment.astimezone(UTC).isoformat()[:19]}Z"


Timestamp = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "UTC, RFC 3339, whole seconds"}),
]
Total = Annotated[int, Field(description="the number of results on all pages")]
After = Annotated[
    str | None, Field(description="the cursor of the next page, for `after`; null: this is the last page")
]
TotalIfKnown = Annotated[int | None, Field(description="the number of results on all pages; null if unknown")]


def more_may_come(words: type[StrEnum]) -> WithJsonSchema:
    """The schema of an open enumeration in a response. A client that is generated from a closed one would reject a
    whole list because of one new value."""
    listed = ", ".join(f"`{word}`" for word in words)
    schema: dict[str, Any] = {"type": "string", "description": f"{listed}; more may be added"}
    return WithJsonSchema(schema | {"x-extensible-enum": [str(word) for word in words]})


KindOfJob = Annotated[JobKind, more_may_come(JobKind)]
StepOfJob = Annotated[Step, more_may_come(Step)]
StatusOfServer = Annotated[ServerState, more_may_come(ServerState)]


class Closed(BaseModel):
    """A body of the public contract: its keys never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class Open(BaseModel):
    """A body outside the public contract: keys may be added, and clients ignore unknown keys."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class ServerName(Closed):
    """A server by its ID and name."""

    id: int
    name: str


class SnapshotName(Closed):
    """A snapshot by its ID and name."""

    id: int
    name: str


class Health(Open):
    """The response of a health check."""

    status: Literal["ok"]


class Readiness(Health):
    """Which calls the front end can serve."""

    reads: Literal[True]
    writes: Annotated[bool, Field(description="false: calls that change something are refused with `store_read_only`")]


def from_record(body: type[Body], record: object, **others: object) -> Body:
    """Create a body from the record's fields of the same names and `others`."""
    fields = body.__pydantic_fields__
    return body(**others, **{name: getattr(record, name) for name in fields if name not in others})


Json = Mapping[str, object]


def answer(body: BaseModel | Json, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    # json's own spacing: some users grep for `"state": "completed"`
    raw = json.dumps(_as_json(body)).encode()
    return web.Response(body=raw, status=status, headers={"Content-Type": _JSON} | (headers or {}))


def _as_json(body: BaseModel | Json) -> Json:
    return body.model_dump(mode="json") if isinstance(body, BaseModel) else body


def page_answer(
    request: web.Request, query: PageQuery, page: Page[Item], one: Callable[[Item], BaseModel | Json]
) -> web.Response:
    """A page of a customer's list, with links to the pages around it. `one` makes the body of an item."""
    listed = {"count": page.count, "results": [_as_json(one(item)) for item in page.results]}
    return answer(listed, headers=page_links(request.rel_url, query, page.count))


def cursor_answer(
    request: web.Request,
    page: CursorPage[Item],
    body: type[BaseModel],
    one: Callable[[Item], BaseModel],
    **others: object,
) -> web.Response:
    """A page of an operators' list, with a link to the next. `one` makes the body of an item; `others` are further
    fields of the list."""
    url = request.rel_url.update_query(after=page.after or "")  # keeps the other query parameters
    headers = {"Link": f'<{url}>; rel="next"'} if page.after else {}
    return answer(from_record(body, page, results=tuple(map(one, page.results)), **others), headers=headers)


def page_links(url: URL, query: PageQuery, count: int) -> dict[str, str]:
    """The Link header (RFC 8288) with the neighboring pages; keeps the other query parameters."""
    last = max(1, -(-count // query.page_size))
    pages = {"first": 1, "last": last}
    if query.page > 1:
        pages["prev"] = min(query.page - 1, last)
    if query.page < last:
        pages["next"] = query.page + 1
    # The query is validated, so it contains nothing that must be quoted.
    parts = [part for part in url.raw_query_string.split("&") if part]
    place = next((n for n, part in enumerate(parts) if part.startswith("page=")), len(parts))

    def path(number: int) -> str:
        return f"{url.raw_path}?{'&'.join([*parts[:place], f'page={number}', *parts[place + 1 :]])}"

    return {"Link": ", ".join(f'<{path(number)}>; rel="{name}"' for name, number in pages.items())}
