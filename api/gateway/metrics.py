"""The metrics of one gateway."""

from prometheus_client import Counter, Gauge, Histogram

from worker.program.metrics import COMMAND_BUCKETS, NAMESPACE, LogEvents, RedisMetrics, jobs_given_up, registry
from worker.store.nodes.protocol import CALLS

ANSWERED, REFUSED, UNAVAILABLE = "answered", "refused", "unavailable"  # values of the label `result`
HANDSHAKES = ("accepted", "unauthorized", "crowded", "unavailable")


class Metrics:
    """The metrics of one gateway. Safe to scrape from another thread."""

    def __init__(self) -> None:
        self.registry = registry()
        self.log_events = LogEvents(self.registry)
        self.redis = RedisMetrics(self.registry)
        self.jobs_given_up = jobs_given_up(self.registry)
        self.schedules_unreadable = self._counter(
            "schedules_unreadable", "Due schedules skipped because this release cannot read them."
        )
        self.connections = Gauge(
            "gateway_connections", "Connections of nodes.", namespace=NAMESPACE, registry=self.registry
        )
        self._handshakes = self._counter("gateway_handshakes", "Connections that nodes asked for.", "result")
        self._claims = self._counter("gateway_claims_refused", "Claims of nodes that were refused.", "reason")
        self._calls = self._counter("gateway_calls", "Calls of nodes.", "call", "result")
        self._seconds = Histogram(
            "gateway_call_duration_seconds",
            "Duration of calls that were answered, without `take`, which waits.",
            namespace=NAMESPACE,
            registry=self.registry,
            buckets=COMMAND_BUCKETS,
        )
        self._revoked = self._counter("gateway_connections_cut", "Connections cut because their credential ended.")
        for result in HANDSHAKES:
            self._handshakes.labels(result)
        for call in CALLS:
            self._calls.labels(call, ANSWERED)

    def handshake(self, result: str) -> None:
        self._handshakes.labels(result).inc()

    def claim_refused(self, reason: str) -> None:
        self._claims.labels(reason).inc()

    def called(self, call: str, result: str, seconds: float) -> None:
        self._calls.labels(call, result).inc()
        if result == ANSWERED and call != "take":
            self._seconds.observe(seconds)

    def cut(self) -> None:
        self._revoked.inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=NAMESPACE, registry=self.registry)
