"""Logging: each line is an event name with fields. JSON, or colors if stderr is a terminal; always to stderr."""

import logging
import sys
from json import JSONEncoder

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from worker.program.log_fields import with_fields
from worker.program.tracing import with_trace_id

_SHARED: tuple[Processor, ...] = (
    with_fields,  # request ID, job ID: on every line of the request or job
    with_trace_id,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)

_encode = JSONEncoder(default=repr).encode  # structlog's renderer makes an encoder for each line


def _rendered(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return _encode(event)


def _renderers(*, json: bool) -> list[Processor]:
    # Never log local variables with a traceback: they contain tokens and customers' data.
    if json:
        plain = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(plain), _rendered]
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]


def configure(
    *,
    json: bool | None = None,
    level: int = logging.INFO,
    also: tuple[Processor, ...] = (),
    count: tuple[Processor, ...] = (),
) -> None:
    """Configure structlog, and the standard library's logging for lines of libraries, to write the same format.

    `json` None: JSON unless stderr is a terminal. `level` applies to our lines; libraries log at WARNING and
    above. `also`: processors for our lines. `count`: processors for our lines and those of libraries.
    """
    renderers = _renderers(json=not sys.stderr.isatty() if json is None else json)
    structlog.configure(
        processors=[*_SHARED, *count, *also, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, *count, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
