"""Health checks and metrics, without a token."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import hdrs, web
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from api.http import addresses
from api.http.addresses import Network
from api.http.answers import Health, Readiness, answer
from worker.store import errors

METRICS = "/metrics"


class Probes:
    """`why_read_only` returns None if Redis accepts writes. It raises StoreUnavailable if Redis does not respond."""

    def __init__(self, why_read_only: Callable[[], Awaitable[str | None]]) -> None:
        self._why_read_only = why_read_only

    async def alive(self, _: web.Request) -> web.Response:
        """Check that the process runs.

        Does not check Redis: restarting the process would not help.
        """
        return answer(Health(status="ok"))

    async def ready(self, _: web.Request) -> web.Response:
        """Check that requests can be served.

        Checks that Redis responds. If Redis accepts no writes, `writes` is false and the status is still 200: reads are
        served, and another front end could not serve more.
        """
        return answer(Readiness(status="ok", reads=True, writes=await self._why_read_only() is None))


@dataclass(frozen=True, kw_only=True)
class Probe:
    path: str
    handle: Callable[[Probes, web.Request], Awaitable[web.StreamResponse]]
    example: Health
    refusals: tuple[type[errors.Refused], ...] = ()


PROBES = (
    Probe(path="/healthz", handle=Probes.alive, example=Health(status="ok")),
    Probe(
        path="/readyz",
        handle=Probes.ready,
        example=Readiness(status="ok", reads=True, writes=True),
        refusals=(errors.StoreUnavailable,),
    ),
)


def exposing(
    read: Callable[[], Awaitable[Collector]], networks: Sequence[Network]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Serve /metrics to Prometheus. For other networks the path does not exist, whatever the method."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if not addresses.is_from(request, networks):
            raise web.HTTPNotFound
        if request.method not in {hdrs.METH_GET, hdrs.METH_HEAD}:
            raise web.HTTPMethodNotAllowed(request.method, [hdrs.METH_GET, hdrs.METH_HEAD])
        encode, kind = choose_encoder(",".join(request.headers.getall(hdrs.ACCEPT, [])))
        # in a thread: with 1,000 nodes it takes 0.1 s
        response = web.Response(body=await asyncio.to_thread(encode, await read()), headers={hdrs.CONTENT_TYPE: kind})
        response.enable_compression()
        return response

    return handler
