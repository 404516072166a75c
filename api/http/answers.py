"""What callers get: the bases of bodies, how a record becomes one, and the headers that lead on."""

import json
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from yarl import URL

from api.http.fields import PageQuery

Body = TypeVar("Body", bound=BaseModel)


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Timestamp = Annotated[
    datetime,
    PlainSerializer(_rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "UTC, RFC 3339, whole seconds"}),
]
Total = Annotated[int, Field(description="the total over all pages")]
After = Annotated[str | None, Field(description="the cursor of the next page, for `after`; null: this is the last")]
TotalIfKnown = Annotated[int | None, Field(description="the total over all pages; null if it is not known")]


class Closed(BaseModel):
    """A body of the contract: exactly these keys, today and later."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class Open(BaseModel):
    """A body of our own: keys may be added, and a client ignores those that it does not know."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class ServerName(Closed):
    """A server by its number and name."""

    id: int
    name: str


class SnapshotName(Closed):
    """A snapshot by its number and name."""

    id: int
    name: str


class Health(Open):
    """The answer of a probe."""

    status: Literal["ok"]


class Readiness(Health):
    """What the front end can serve."""

    reads: Literal[True]
    writes: Annotated[bool, Field(description="false: calls that change something are refused with `store_read_only`")]


def from_record(body: type[Body], record: object, **others: object) -> Body:
    """A body with the record's fields of the same names, and with `others`."""
    fields = body.__pydantic_fields__
    return body(**others, **{name: getattr(record, name) for name in fields if name not in others})


def answer(body: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    # json's own spacing: there are people who grep for `"state": "completed"`
    raw = json.dumps(body.model_dump(mode="json")).encode()
    return web.Response(body=raw, status=status, headers=headers, content_type="application/json", charset="utf-8")


def page_links(url: URL, query: PageQuery, count: int) -> dict[str, str]:
    """The header with the pages around this one, after RFC 8288; other parameters of the query are kept."""
    last = max(1, -(-count // query.page_size))
    pages = {"first": 1, "last": last}
    if query.page > 1:
        pages["prev"] = min(query.page - 1, last)
    if query.page < last:
        pages["next"] = query.page + 1
    here = url.relative() if url.absolute else url
    return {"Link": ", ".join(f'<{here.update_query(page=page)}>; rel="{name}"' for name, page in pages.items())}


def next_link(url: URL, after: str | None) -> dict[str, str]:
    """The header with the next page; other parameters of the query are kept."""
    here = url.relative() if url.absolute else url
    return {"Link": f'<{here.update_query(after=after)}>; rel="next"'} if after else {}
