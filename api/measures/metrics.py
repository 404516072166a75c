"""The metrics of one front end."""

from collections.abc import Callable

from aiohttp import hdrs, web
from prometheus_client import Histogram

from worker.program.redis_metrics import StoreMetrics
from worker.store.chores.cell_clock import ClockErrors

DELIVERED = "delivered"
# seconds; `request_seconds` ends a call
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LIMITED = (
    "rate_limited",
    "too_many_streams",
    "internal_error",
    "store_unavailable",
    "store_read_only",
    "outcome_unknown",
)

_METHODS = frozenset(hdrs.METH_ALL)


class Metrics(StoreMetrics):
    """The instruments of a front end. They can be read from another thread."""

    def __init__(self) -> None:
        super().__init__()
        text = "Answered requests by path pattern, without event streams."
        labels = ("method", "route", "status")
        self._requests = self._histogram("http_request_duration_seconds", text, REQUEST_BUCKETS, *labels)
        self._problems = self._counter("http_problems", "Refused requests by error code.", "code")
        self._attempts = self._counter("webhook_attempts", "Attempts at a delivery, by result.", "result")
        self._given_up = self._counter("webhook_deliveries_given_up", "Deliveries whose last attempt failed.")
        self.in_flight = 0
        in_flight = self._gauge("http_requests_in_flight", "Requests in progress, including event streams.")
        in_flight.set_function(lambda: self.in_flight)
        self._requests_of: dict[tuple[str, str, int], Histogram] = {}
        self._read_only = self._gauge("redis_read_only", "1 if Redis responds but refused the last trial write.")
        self._clocks = self._gauge("clock_error_seconds", "Wall clock minus the time of the cell.", "clock")
        self._streams = self._gauge("event_streams_open", "Open event streams.")
        for code in LIMITED:
            self._problems.labels(code)
        self._attempts.labels(DELIVERED)

    def follow(self, *, streams: Callable[[], int]) -> None:
        """Register a collector. It is called at each scrape, in the scrape's thread."""
        self._streams.set_function(streams)

    def request(self, request: web.Request, response: web.StreamResponse, *, route: str, seconds: float) -> None:
        """Count a request. Event streams are not counted, because the client determines their duration. The method may
        be any text."""
        if not isinstance(response, web.Response) and response.content_type == "text/event-stream":
            return
        labels = (request.method if request.method in _METHODS else "_OTHER", route, response.status // 100)
        if labels not in self._requests_of:
            self._requests_of[labels] = self._requests.labels(*labels[:2], f"{labels[2]}xx")
        self._requests_of[labels].observe(seconds)

    def problem(self, code: str) -> None:
        self._problems.labels(code).inc()

    def tried_to_write(self, refused: str | None) -> None:
        """Record a trial write. `refused`: why Redis refused it; None if Redis accepted it or did not respond."""
        self._read_only.set(refused is not None)

    def clocks(self, errors: ClockErrors) -> None:
        self._clocks.labels("redis").set(errors.redis)
        self._clocks.labels("process").set(errors.process)

    def attempted(self, error: str | None, *, given_up: bool) -> None:
        """Count an attempt at a delivery. `error`: the error code, None if it was delivered."""
        self._attempts.labels(error or DELIVERED).inc()
        if given_up:
            self._given_up.inc()
