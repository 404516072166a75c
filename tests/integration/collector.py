"""A trace collector: accepts OTLP over HTTP and keeps the spans, or hangs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

SEEN_SECONDS = 60.0  # far more than it needs


@dataclass(frozen=True, kw_only=True)
class SeenSpan:
    trace_id: str
    id: str
    parent: str
    name: str
    service: str
    begun: int
    failed: bool
    attributes: dict[str, object]


@dataclass(kw_only=True)
class Collector:
    url: str
    spans: list[SeenSpan] = field(default_factory=list)
    raw: bytes = b""
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw += body
        self.spans += _spans(ExportTraceServiceRequest.FromString(body))
        self._more.set()
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")

    async def seen(self, is_wanted: Callable[[SeenSpan], bool]) -> SeenSpan:
        """Return the first such span when it has arrived."""
        async with asyncio.timeout(SEEN_SECONDS):
            while True:
                self._more.clear()
                for span in self.spans:
                    if is_wanted(span):
                        return span
                await self._more.wait()

    def of_trace(self, trace_id: str) -> list[SeenSpan]:
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.begun)

    def children(self, span: SeenSpan) -> list[SeenSpan]:
        return [child for child in self.of_trace(span.trace_id) if child.parent == span.id]


def _spans(request: ExportTraceServiceRequest) -> list[SeenSpan]:
    return [
        SeenSpan(
            trace_id=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            name=span.name,
            service=next(item.value.string_value for item in of.resource.attributes if item.key == "service.name"),
            begun=span.start_time_unix_nano,
            failed=span.status.code == Status.STATUS_CODE_ERROR,
            attributes={
                item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value")
                for item in span.attributes
            },
        )
        for of in request.resource_spans
        for scope in of.scope_spans
        for span in scope.spans
    ]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector(url="")
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        collector.url = f"http://{host}:{port}"
        yield collector
    finally:
        await runner.cleanup()


@asynccontextmanager
async def hanging() -> AsyncIterator[str]:
    """The address of a collector that accepts every connection, reads, and never answers."""
    let_go = asyncio.Event()

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_go.wait()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
        let_go.set()
