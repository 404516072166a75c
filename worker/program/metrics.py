"""Metrics of all programs: warnings in the log, the build.

Each program is one process with one registry; nothing is shared between processes.
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
from structlog.typing import EventDict, WrappedLogger

NAMESPACE = "vps_snapshots"
LIBRARY = "library"  # the event label of all lines of libraries, because their texts would be unbounded labels
COMMAND_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)  # seconds

_OURS = re.compile(r"[a-z_]+(\.[a-z_]+)+")  # the form of our event names
_WORTH_A_LOOK = frozenset({"warning", "error", "critical"})


def registry() -> CollectorRegistry:
    """A new registry for one process, with the build's version and the process's resource usage."""
    disable_created_metrics()  # type: ignore[no-untyped-call] # otherwise each counter gets a second series
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    build = Info("build", "Version of the program and of Python.", namespace=NAMESPACE, registry=made)
    build.info({"version": version("vps-snapshots"), "python": python_version()})
    return made


class Instruments:
    """Base of classes with instruments in one registry. Safe to scrape from another thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace=NAMESPACE, registry=self.registry, buckets=buckets)


class LogEvents(Instruments):
    """Counts log lines at warning or above, by event name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        text = "Log lines at warning or above; docs/runbook.md explains each event."
        self._counted = self._counter("log_events", text, "event", "level")
        self._counted.labels(LIBRARY, "error")

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """structlog processor; must follow `add_log_level`. Returns the line unchanged."""
        if event["level"] in _WORTH_A_LOOK:
            name = str(event["event"])
            is_ours = "_record" not in event and _OURS.fullmatch(name)
            self._counted.labels(name if is_ours else LIBRARY, event["level"]).inc()
        return event


class ProgramMetrics(Instruments):
    """The metrics of every program."""

    def __init__(self) -> None:
        super().__init__(registry())
        self.log_events = LogEvents(self.registry)
