"""What both programs measure of themselves: Redis, what the log warns of, the build.

A program is one process: its wiring makes one registry, and nothing is added up between processes.
"""

import re
from importlib.metadata import version
from platform import python_version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.typing import EventDict, WrappedLogger

NAMESPACE = "vps_snapshots"
LIBRARY = "library"  # what a library has said: its words are not ours, and of any number
COMMAND_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)  # seconds
REDIS_ERRORS = ("connection", "timeout", "refused")

_OURS = re.compile(r"[a-z_]+(\.[a-z_]+)+")  # how an event of ours is named
_WORTH_A_LOOK = frozenset({"warning", "error", "critical"})


def registry() -> CollectorRegistry:
    """A registry of its own for one process, with what it is and what it uses."""
    disable_created_metrics()  # type: ignore[no-untyped-call] # else a second series for each counter, which Prometheus takes for a gauge of its own
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    build = Info("build", "What this process runs.", namespace=NAMESPACE, registry=made)
    build.info({"version": version("vps-snapshots"), "python": python_version()})
    return made


def jobs_given_up(registry: CollectorRegistry) -> Counter:
    """Of workers and front ends: any of them may be the one that sees it."""
    text = "Jobs, of any node, that failed because it was silent for too long."
    return Counter("jobs_given_up", text, namespace=NAMESPACE, registry=registry)


class LogEvents:
    """Counts the lines of the log that are worth a look, by the name of the event."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counted = Counter(
            "log_events",
            "Lines in the log at warning or above; docs/runbook.md says what each event means.",
            ["event", "level"],
            namespace=NAMESPACE,
            registry=registry,
        )
        self._counted.labels(LIBRARY, "error")

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """As a processor of structlog, behind the one that adds the level: hand the line on unchanged."""
        if event["level"] in _WORTH_A_LOOK:
            name = str(event["event"])
            is_ours = "_record" not in event and _OURS.fullmatch(name)
            self._counted.labels(name if is_ours else LIBRARY, event["level"]).inc()
        return event


class RedisMetrics:
    """How Redis does, as this process sees it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._up = Gauge("redis_up", "1: the last command was answered.", namespace=NAMESPACE, registry=registry)
        self._seconds = Histogram(
            "redis_command_duration_seconds",
            "Commands and scripts that were answered; those that wait for something are left out.",
            namespace=NAMESPACE,
            registry=registry,
            buckets=COMMAND_BUCKETS,
        )
        self._errors = Counter(
            "redis_command_errors",
            "Commands that were not answered, or with an error.",
            ["error"],
            namespace=NAMESPACE,
            registry=registry,
        )
        for error in REDIS_ERRORS:
            self._errors.labels(error)

    def answered(self, seconds: float) -> None:
        self._up.set(1)
        self._seconds.observe(seconds)

    def failed(self, error: Exception) -> None:
        self._up.set(0)
        slow = isinstance(error, TimeoutError | RedisTimeoutError)
        self._errors.labels(
            "refused" if isinstance(error, ResponseError) else "timeout" if slow else "connection"
        ).inc()
