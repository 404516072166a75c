"""The spans of a node: a job, its steps, and the hypervisor calls that a step makes."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from opentelemetry.trace import SpanKind

from drivers.base import Hypervisor
from worker.procedures.work import Task
from worker.program import tracing
from worker.store.model import Step
from worker.store.outcome import Outcome


@contextmanager
def job(task: Task, *, node: str, resumed: bool) -> Iterator[None]:
    """The span of one run of a job in one process. A resumed job gets another span in the same trace."""
    attributes: dict[str, str | int | bool] = {
        "vps_snapshots.job.id": task.job_id,
        "vps_snapshots.job.kind": task.kind,
        "vps_snapshots.server.id": task.server_id,
        "vps_snapshots.node": node,
        "vps_snapshots.request.id": task.request_id,
        "vps_snapshots.resumed": resumed,
    }
    parent = {tracing.TRACEPARENT: task.traceparent}
    with tracing.span(f"job {task.kind}", attributes, kind=SpanKind.CONSUMER, parent=parent):
        yield


def job_over(outcome: Outcome) -> None:
    tracing.note({"vps_snapshots.outcome": outcome.state})
    if outcome.failure is not None:
        tracing.note({"vps_snapshots.stranded": outcome.failure.stranded})
        tracing.failed(outcome.failure.code)


@contextmanager
def step(name: Step, *, resumed: bool) -> Iterator[None]:
    with tracing.span(f"step {name}", {"vps_snapshots.resumed": resumed, "vps_snapshots.outcome": "completed"}):
        try:
            yield
        except BaseException:  # the process exits, or the journal's disk is full
            tracing.note({"vps_snapshots.outcome": "interrupted"})
            raise


def step_tried(attempt: int) -> None:
    tracing.note({"vps_snapshots.attempts": attempt})


def step_failed(code: str) -> None:
    tracing.note({"vps_snapshots.outcome": "failed"})
    tracing.failed(code)


class _Traced:
    """Wraps any driver; each call gets a span."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._hypervisor, name)
        return _with_span(name, call) if inspect.iscoroutinefunction(call) else call


def of_calls(hypervisor: Hypervisor) -> Hypervisor:
    """Wraps the hypervisor so that each call a job makes is a span. Calls outside of a job (polling) get none."""
    return cast("Hypervisor", _Traced(hypervisor))


def _with_span(name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(call)
    async def called(*arguments: Any, **named: Any) -> Any:
        if not tracing.is_traced():
            return await call(*arguments, **named)
        with tracing.span(f"hypervisor {name}", {}):
            return await call(*arguments, **named)

    return called
