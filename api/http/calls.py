"""The decorator of each handler, from which its route and its documentation are generated."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from inspect import cleandoc
from typing import Any, Generic, TypeVar

from aiohttp import web
from pydantic import BaseModel

from api.http.fields import CursorQuery, PageQuery, PathId
from worker.store import errors
from worker.store.access.tokens import Permission

READ, WRITE = Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE
API = "/api/v1/"
OPS = f"{API}ops/"
JOB_HEADERS = ("Operation-Location", "X-Job-Id")
EVENT_STREAM = "text/event-stream"

Resource = TypeVar("Resource")
By = TypeVar("By")
Handler = Callable[[Resource, web.Request, By], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Link:
    """A link from a response to a possible next call; `parameters` are OpenAPI runtime expressions."""

    to: str
    parameters: Mapping[str, str]
    text: str = "A possible next call."


def links(*calls: str, **parameters: str) -> tuple[Link, ...]:
    """Links to these calls, all with the same parameters."""
    return tuple(Link(call, parameters) for call in calls)


@dataclass(frozen=True)
class Reply:
    """A successful response. `examples` are instances of its body's models; without examples, it has no body."""

    status: int
    examples: Mapping[str, BaseModel] = field(default_factory=dict)
    text: str = ""
    headers: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    media: str = "application/json"

    @property
    def description(self) -> str:
        return self.text or f"{HTTPStatus(self.status).phrase}."


@dataclass(frozen=True)
class Phrase:
    """A call in the words of the audit log: `past` if it succeeded, `infinitive` if it was refused. {snapshot} stands
    for the ID {snapshot_id} of the path, any other name for a field of the entry."""

    past: str
    infinitive: str


@dataclass(frozen=True, kw_only=True)
class Call(Generic[By]):
    """A call of the API. Its ID in the document is the name of its handler."""

    method: str
    path: str
    tag: str
    permission: Permission
    handle: Handler[Any, By]
    replies: tuple[Reply, ...]
    query: type[BaseModel] | None
    examples: Mapping[str, BaseModel]  # examples of its body; without examples, it takes no body
    refusals: tuple[type[errors.Refused], ...]
    audit: Phrase | None  # for a call that changes something

    @property
    def id(self) -> str:
        return self.handle.__name__

    @property
    def summary(self) -> str:
        return prose(self.handle)[0]

    @property
    def text(self) -> str:
        return prose(self.handle)[1]

    @property
    def body(self) -> type[BaseModel] | None:
        return next((type(example) for example in self.examples.values()), None)

    @property
    def changes(self) -> bool:
        """Whether it may change something."""
        return self.method != "GET"

    @property
    def takes_key(self) -> bool:
        """Whether it takes an Idempotency-Key."""
        return self.method == "POST"

    @property
    def is_stream(self) -> bool:
        """Whether the response is an event stream."""
        return any(reply.media == EVENT_STREAM for reply in self.replies)

    @property
    def is_cacheable(self) -> bool:
        """Whether the response has an ETag: see api.http.caching."""
        return self.method == "GET" and not self.is_stream

    @property
    def is_paged(self) -> bool:
        """Whether the response has a Link header to other pages."""
        return self.query is not None and issubclass(self.query, PageQuery | CursorQuery)


FOR_OPERATORS = {"reads": Permission.OPERATOR_READ, "writes": Permission.OPERATOR}


class Table(Generic[By]):
    """The calls of a resource, in order. A row stands above its handler: `@call("GET /path/", Reply(...))`.

    The handler's docstring is the document's text; its first line is the summary. `body` has examples of the request's
    body, which also name its model. `path_ids` are all ids in the paths. A GET needs the permission `reads`, any other
    call `writes` or the `permission` of its row. `about` describes the tag, in the first table that has it.
    """

    def __init__(
        self,
        tag: str,
        *path_ids: PathId[Any],
        about: str = "",
        reads: Permission = READ,
        writes: Permission = WRITE,
    ) -> None:
        self.tag = tag
        self.about = about
        self.path_ids = path_ids
        self.calls: list[Call[By]] = []
        self._reads = reads
        self._writes = writes

    def __call__(
        self,
        route: str,
        *replies: Reply,
        query: type[BaseModel] | None = None,
        body: Mapping[str, BaseModel] | None = None,
        refusals: tuple[type[errors.Refused], ...] = (),
        permission: Permission | None = None,
        audit: Phrase | None = None,
    ) -> Callable[[Handler[Resource, By]], Handler[Resource, By]]:
        method, path = route.split(" ")

        def decorate(handle: Handler[Resource, By]) -> Handler[Resource, By]:
            self.calls.append(
                Call(
                    method=method,
                    path=path,
                    tag=self.tag,
                    permission=permission or (self._reads if method == "GET" else self._writes),
                    handle=handle,
                    replies=replies,
                    query=query,
                    examples=body or {},
                    refusals=refusals,
                    audit=audit,
                )
            )
            return handle

        return decorate


def prose(handle: Callable[..., object]) -> tuple[str, str]:
    """The summary and the text of a handler's docstring, for the document."""
    summary, _, text = cleandoc(handle.__doc__ or "").partition("\n\n")
    return summary.removesuffix("."), " ".join(text.split())
