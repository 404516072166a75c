"""Metrics of the programs that reach Redis. A node loads none of this."""

from prometheus_client import CollectorRegistry
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.program.metrics import COMMAND_BUCKETS, Instruments, ProgramMetrics

REDIS_ERRORS = ("connection", "timeout", "refused")


class RedisMetrics(Instruments):
    """Redis as this process sees it: reachability, latency, errors."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self._up = self._gauge("redis_up", "1 if the last command got a reply.")
        self._is_up = False
        text = "Duration of commands and scripts that succeeded, without blocking ones."
        self._seconds = self._histogram("redis_command_duration_seconds", text, COMMAND_BUCKETS)
        text = "Commands that got no reply or an error reply."
        self._errors = self._counter("redis_command_errors", text, "error")
        for error in REDIS_ERRORS:
            self._errors.labels(error)

    def answered(self, seconds: float) -> None:
        if not self._is_up:
            self._is_up = True
            self._up.set(1)
        self._seconds.observe(seconds)

    def failed(self, error: Exception) -> None:
        self._is_up = False
        self._up.set(0)
        slow = isinstance(error, TimeoutError | RedisTimeoutError)
        kind = "refused" if isinstance(error, ResponseError) else "timeout" if slow else "connection"
        self._errors.labels(kind).inc()


class StoreMetrics(ProgramMetrics):
    """The metrics of the programs that reach Redis."""

    def __init__(self) -> None:
        super().__init__()
        self.redis = RedisMetrics(self.registry)
        # counted by gateways and front ends, because whichever notices first fails the job
        text = "Jobs of any node that failed because the node was silent for too long."
        self.jobs_given_up = self._counter("jobs_given_up", text)
