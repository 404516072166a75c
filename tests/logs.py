"""Log configuration of the tests' own processes."""

from collections.abc import Mapping
from typing import Any

import structlog


def log_plainly(**more: Any) -> None:
    """structlog's default without rich tracebacks, which took four fifths of the CPU time of the tests in which
    workers die. `more`: further arguments of `structlog.configure`."""
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    default: Mapping[str, Any] = structlog.get_config()
    structlog.configure(processors=[*default["processors"][:-1], renderer], **more)
