"""Exports spans to a collector, from a background thread. Needs the extra `tracing`.

If the collector is unreachable, slow or hung, the spans that do not fit into the queue are lost, and nothing else.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, field_validator

from worker.program import tracing
from worker.program.configuration import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SHUTDOWN_SECONDS = 2.0  # at exit, to send the last spans
COMPLAINT_SECONDS = 60.0  # interval between log lines about export errors

log = structlog.stdlib.get_logger()


class TracingSettings(BaseModel):
    """Everything else is configured with the SDK's own standard variables, OTEL_*."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    endpoint: HttpUrl | None = Field(
        default=None, description="URL of an OTLP/HTTP collector, e.g. http://127.0.0.1:4318; unset: no tracing"
    )

    @field_validator("endpoint")
    @classmethod
    def _is_plain(cls, url: HttpUrl | None) -> HttpUrl | None:
        if url and (url.username or url.password or url.query or url.fragment):
            raise ValueError("only an address and a path are allowed; set keys in OTEL_EXPORTER_OTLP_HEADERS")
        return url


@contextmanager
def exporting(settings: TracingSettings, *, service: str, instance: str) -> Iterator[None]:
    """Export this process's spans during the block. Use it once per process. Raises ConfigurationError."""
    if settings.endpoint is None:
        yield
        return
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(_Complaints())
    logger.propagate = False
    provider = _provider(f"{str(settings.endpoint).rstrip('/')}/v1/traces", service, instance)
    tracing.record(provider)
    log.info("tracing.exporting", endpoint=str(settings.endpoint))
    try:
        yield
    finally:
        # in a thread: the SDK's shutdown may take half a minute
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(SHUTDOWN_SECONDS)


def _provider(url: str, service: str, instance: str) -> "TracerProvider":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - the extra's
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            f"tracing.endpoint is set, but the extra `tracing` is not installed ({error}):"
            " see docs/operations/configure.md"
        ) from error
    ours = {"service.name": service, "service.version": version("vps-snapshots"), "service.instance.id": instance}
    try:
        # OTEL_RESOURCE_ATTRIBUTES overrides ours
        provider = TracerProvider(
            resource=Resource.create(ours).merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"tracing, from the environment (OTEL_*): {error}") from error
    return provider


class _Complaints(logging.Handler):
    """Writes the exporter's errors to our log, at most once per minute: it repeats them while a collector is down."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._quiet_until = 0.0
        self._unsaid = 0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        quotes_headers = record.name == "opentelemetry.util.re"  # the headers contain the key
        cause = "OTEL_EXPORTER_OTLP_HEADERS is malformed" if quotes_headers else record.getMessage()
        log.warning("tracing.trouble", cause=cause, unsaid=self._unsaid)
        self._quiet_until, self._unsaid = now + COMPLAINT_SECONDS, 0
