"""What those that run the service ask, without a token."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import hdrs, web
from prometheus_client.exposition import choose_encoder

from api.http import addresses
from api.http.addresses import Network
from api.measures.metrics import Metrics


def exposition(metrics: Metrics, networks: Sequence[Network]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Answers Prometheus. To all others there is nothing at this path, whatever the method."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if not addresses.is_from(request, networks):
            raise web.HTTPNotFound
        if request.method not in {hdrs.METH_GET, hdrs.METH_HEAD}:
            raise web.HTTPMethodNotAllowed(request.method, [hdrs.METH_GET, hdrs.METH_HEAD])
        encode, kind = choose_encoder(",".join(request.headers.getall(hdrs.ACCEPT, [])))
        # in a thread: with a thousand nodes it takes a tenth of a second
        response = web.Response(
            body=await asyncio.to_thread(encode, metrics.registry), headers={hdrs.CONTENT_TYPE: kind}
        )
        response.enable_compression()
        return response

    return handler
