"""Spans: one trace covers a request, Redis and the steps on the node.

Without the extra `tracing` spans are not recorded and cost almost nothing; a caller's trace context is still passed on.
Attributes never contain customers' data or error texts, which may quote it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.typing import EventDict, WrappedLogger

TRACEPARENT = "traceparent"  # W3C Trace Context: a request's header and a field of the job's record

_recorded = False  # OpenTelemetry would read the environment each time
_tracer = trace.get_tracer("vps-snapshots")
_w3c = TraceContextTextMapPropagator()

Attributes = Mapping[str, str | int | bool]


@contextmanager
def span(
    name: str, attributes: Attributes, *, kind: SpanKind = SpanKind.INTERNAL, parent: Mapping[str, str] | None = None
) -> Iterator[Span]:
    """A span for the block. `parent`: W3C Trace Context headers to continue from, if they are valid; None: continue
    the current span."""
    if is_without(parent):
        yield trace.INVALID_SPAN
        return
    context = None if parent is None else _w3c.extract(parent, Context())
    begun = _tracer.start_span(name, context, kind, dict(attributes))
    if not begun.get_span_context().is_valid:  # not traced
        yield begun
        return
    with trace.use_span(begun, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield begun
        except BaseException as error:
            failed(getattr(error, "code", type(error).__name__))
            raise


def record(provider: trace.TracerProvider) -> None:
    """Send spans to this provider from now on."""
    global _recorded  # noqa: PLW0603 - as OpenTelemetry's own provider is
    trace.set_tracer_provider(provider)
    _recorded = True


def is_without(parent: Mapping[str, str] | None = None) -> bool:
    """Whether spans can be skipped: they are not recorded, and there is no trace context to pass on."""
    if _recorded:
        return False
    return not trace.get_current_span().get_span_context().is_valid if parent is None else TRACEPARENT not in parent


def note(attributes: Attributes) -> None:
    """Add attributes to the current span."""
    trace.get_current_span().set_attributes(dict(attributes))


def failed(code: str) -> None:
    """Mark the current span as failed."""
    current = trace.get_current_span()
    current.set_attribute("error.type", str(code))
    current.set_status(StatusCode.ERROR)


def is_traced() -> bool:
    """Whether the current span is recorded."""
    return trace.get_current_span().is_recording()


def carried() -> dict[str, str]:
    """The trace context for the next process: a `traceparent`, or an empty dict."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return {TRACEPARENT: carrier[TRACEPARENT]} if carrier else {}


def with_trace_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """structlog processor: add `trace_id` to lines within a trace."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event
