"""Spans: one trace leads from a caller's request through Redis to the steps on the node.

Without the extra `tracing` a span costs next to nothing and goes nowhere; a caller's trace is handed on all the same.
Attributes never hold what customers write, nor the text of an error: it may name them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.typing import EventDict, WrappedLogger

TRACEPARENT = "traceparent"  # W3C: the header of a request, the field of a job's record
OURS = "vps_snapshots"  # begins the names of the attributes that no convention has

_tracer = trace.get_tracer("vps-snapshots")
_w3c = TraceContextTextMapPropagator()

Attributes = Mapping[str, str | int | bool]


@contextmanager
def span(
    name: str,
    attributes: Attributes,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Mapping[str, str] | None = None,
) -> Iterator[Span]:
    """What is done in the block. It goes on from `parent`, the headers of W3C Trace Context, where they say anything;
    None: from the span that it is in."""
    context = None if parent is None else _w3c.extract(parent, Context())
    begun = _tracer.start_span(name, context, kind, dict(attributes))
    if not begun.get_span_context().is_valid:  # nobody wants to know
        yield begun
        return
    with trace.use_span(begun, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield begun
        except BaseException as error:
            failed(getattr(error, "code", type(error).__name__))
            raise


def note(attributes: Attributes) -> None:
    """Add to the span that we are in."""
    trace.get_current_span().set_attributes(dict(attributes))


def failed(code: str) -> None:
    """The span that we are in comes to no good end."""
    here = trace.get_current_span()
    here.set_attribute("error.type", str(code))
    here.set_status(StatusCode.ERROR)


def is_traced() -> bool:
    """Whether we are in a span that will be sent."""
    return trace.get_current_span().is_recording()


def carried() -> dict[str, str]:
    """What the next process goes on from: a `traceparent`, or nothing."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return {TRACEPARENT: carrier[TRACEPARENT]} if carrier else {}


def with_trace_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """As a processor of structlog: a line tells the trace that it belongs to."""
    here = trace.get_current_span().get_span_context()
    if here.is_valid:
        event["trace_id"] = trace.format_trace_id(here.trace_id)
    return event
