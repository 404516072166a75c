"""Log lines: one event name with fields. JSON for machines, colours for a person at a terminal; always on stderr."""

import logging
import sys

import structlog
from structlog.typing import Processor

from worker.program.tracing import with_trace_id

_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,  # request id, job id: on every line of the request or job
    with_trace_id,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def _renderers(*, json: bool) -> list[Processor]:
    # Never the local variables of a traceback's frames: they hold tokens and what customers wrote.
    if json:
        plain = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [structlog.processors.ExceptionRenderer(plain), structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]


def configure(
    *,
    json: bool | None = None,
    level: int = logging.INFO,
    also: tuple[Processor, ...] = (),
    count: tuple[Processor, ...] = (),
) -> None:
    """Set up structlog, and the standard library's logging for what libraries say, to write the same lines.

    `json` None: JSON unless stderr is a terminal. `level` holds for our lines; libraries are heard from WARNING on.
    `also` sees our lines before they are rendered, `count` also those of libraries.
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
