"""The metrics of one gateway."""

from worker.program.metrics import COMMAND_BUCKETS
from worker.program.redis_metrics import StoreMetrics
from worker.store.nodes.protocol import CALLS

ANSWERED, REFUSED, UNAVAILABLE = "answered", "refused", "unavailable"  # values of the label `result`
REASONS = (  # why a claim is refused
    *("bad_frame", "unknown_call", "bad_ask", "no_hello", "two_hellos", "two_takes", "protocol", "wrong_node"),
    "other_node",
)
HANDSHAKES = ("accepted", "unauthorized", "crowded", "unavailable")


class Metrics(StoreMetrics):
    """The metrics of one gateway."""

    def __init__(self) -> None:
        super().__init__()
        self.schedules_unreadable = self._counter(
            "schedules_unreadable", "Due schedules skipped because this release cannot read them."
        )
        self.connections = self._gauge("gateway_connections", "Connections of nodes.")
        self.certificate_end = self._gauge(
            "gateway_certificate_end_timestamp_seconds",
            "When the certificate of this gateway, or an authority's in the same file, ends. 0: no TLS, or unknown.",
        )
        self._handshakes = self._counter("gateway_handshakes", "Connections that nodes asked for.", "result")
        self._claims = self._counter("gateway_claims_refused", "Claims of nodes that were refused.", "reason")
        self._calls = self._counter("gateway_calls", "Calls of nodes.", "call", "result")
        text = "Duration of calls that were answered, without `take`, which waits."
        self._seconds = self._histogram("gateway_call_duration_seconds", text, COMMAND_BUCKETS)
        self._cuts = self._counter("gateway_connections_cut", "Connections cut because their credential ended.")
        for reason in REASONS:
            self._claims.labels(reason)
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
        self._cuts.inc()
