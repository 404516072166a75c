"""The cost of a request's spans, compared with the whole request: `make bench-tracing`. Medians of the rounds.

The request lists the snapshots of an account that has none, the cheapest call with a token; its client is in the same
process. With the SDK, every span is recorded and queued, and sent to a port where nothing listens.
"""

import json
import logging
import statistics
import tempfile
import time
import timeit
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from opentelemetry.trace import SpanKind

from deploy.demo.service import free_port
from tests.conftest import RedisServer
from tests.integration.conftest import Cell, node_store
from tests.integration.front_end import serving
from tests.queueing import client
from worker.program import logs, tracing
from worker.program.span_export import TracingSettings, exporting
from worker.store.customers.customer_store import CustomerStore

ROUNDS, SPANS, REQUESTS = 7, 2000, 300
HEADERS = {"Authorization": "Bearer x", "Content-Type": "application/json"}


def request_and_admission() -> None:
    attributes = {"http.request.method": "POST", "url.scheme": "http", "http.route": "/x/", "url.path": "/x/"}
    with tracing.span("POST /x/", attributes, kind=SpanKind.SERVER, parent=HEADERS) as span:
        with tracing.span("admit create", {"vps_snapshots.job.kind": "create"}, kind=SpanKind.PRODUCER):
            tracing.carried()
        span.set_attribute("http.response.status_code", 201)
        span.set_attribute("vps_snapshots.request.id", "r1")


def spans_microseconds() -> float:
    return statistics.median(timeit.repeat(request_and_admission, repeat=ROUNDS, number=SPANS)) / SPANS * 1e6


async def request_microseconds() -> float:
    async with AsyncExitStack() as stack:
        server = RedisServer(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vps-bench-"))))
        stack.callback(server.kill)
        server.start()
        redis = await stack.enter_async_context(client(server.socket))
        cell = Cell(redis=redis, store=CustomerStore(redis), node=node_store(redis))
        front_end = await stack.enter_async_context(serving(cell, calls_per_minute=1_000_000))
        times = []
        for _ in range(ROUNDS):
            before = time.perf_counter()
            for _ in range(REQUESTS):
                assert (await front_end.call("GET")).status == 200
            times.append((time.perf_counter() - before) / REQUESTS)
        return statistics.median(times) * 1e6


def main() -> None:
    logs.configure(level=logging.CRITICAL)
    whole, without = uvloop.run(request_microseconds()), spans_microseconds()
    with exporting(
        TracingSettings.model_validate({"endpoint": f"http://127.0.0.1:{free_port()}"}), service="s", instance="i"
    ):
        within = spans_microseconds()
    print(f"{'a request':<52}{whole:>8.1f} us")
    print(f"{'spans of request and admission, no tracing':<52}{without:>8.1f} us {without / whole:>7.2%}")
    print(f"{'spans of request and admission, traced':<52}{within:>8.1f} us {within / whole:>7.2%}")
    print(json.dumps({"rounds": ROUNDS, "us": {"request": whole, "spans": without, "spans_traced": within}}))


if __name__ == "__main__":
    main()
