"""What the tables of calls are made of."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from aiohttp import web
from pydantic import BaseModel

from worker.store import errors
from worker.store.access.tokens import Permission

Side = TypeVar("Side")
By = TypeVar("By")


@dataclass(frozen=True, kw_only=True)
class Link:
    """From an answer to the call that goes on from it; `parameters` in OpenAPI's runtime expressions."""

    to: str
    text: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer to a call that is done. `examples` are instances of the models of its body; none: no body."""

    text: str
    examples: Mapping[str, BaseModel] = field(default_factory=dict)
    media: str = "application/json"
    headers: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Side, By]):
    """A call: a method of `Side`, made by a `By`. Its id in the document is the name of its handler."""

    method: str
    path: str
    tag: str
    summary: str
    text: str
    handle: Callable[[Side, web.Request, By], Awaitable[web.StreamResponse]]
    permission: Permission
    replies: Mapping[int, Reply]
    refusals: tuple[type[errors.Refused], ...] = ()
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    headers: tuple[str, ...] = ()  # that are its own
    body_examples: Mapping[str, BaseModel] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.handle.__name__

    @property
    def changes(self) -> bool:
        """Is made to change something."""
        return self.method != "GET"

    @property
    def takes_key(self) -> bool:
        """Takes an Idempotency-Key."""
        return self.method == "POST"

    @property
    def has_an_end(self) -> bool:
        """Is no stream of events."""
        return all(reply.media == "application/json" for reply in self.replies.values())

    @property
    def is_cacheable(self) -> bool:
        """Has an ETag: see api.http.caching."""
        return self.method == "GET" and self.has_an_end


@dataclass(frozen=True, kw_only=True)
class Probe(Generic[Side]):
    """A call for those that run the service: without a token."""

    path: str
    summary: str
    text: str
    handle: Callable[[Side, web.Request], Awaitable[web.StreamResponse]]
    refusals: tuple[type[errors.Refused], ...] = ()

    @property
    def id(self) -> str:
        return self.handle.__name__
