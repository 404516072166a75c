"""The tables are complete: each kind has a procedure, each step a function and a failure path, each state
successors."""

from importlib.resources import files

import pytest

from api.jobs.bodies import OpsJobsQuery
from worker.procedures import PROCEDURES
from worker.procedures.work import Facts, Procedure
from worker.store.model import MAY_FOLLOW, STEPS, Failure, JobKind, JobState, Step


def test_every_kind_of_job_has_a_procedure() -> None:
    assert set(PROCEDURES) == set(JobKind)


@pytest.mark.parametrize("kind", list(JobKind))
def test_operators_can_filter_by_every_kind_and_see_it_in_the_charts(kind: JobKind) -> None:
    css = (files("api.dashboard") / "static" / "ops.css").read_text()
    assert OpsJobsQuery.model_validate({"kind": kind}).filter.kind is kind
    assert css.count(f" --{kind}: #") == 2  # its color: light and dark


def test_every_state_says_what_may_follow_and_two_are_the_end() -> None:
    assert set(MAY_FOLLOW) == set(JobState)
    assert {state for state, followers in MAY_FOLLOW.items() if not followers} == {JobState.COMPLETED, JobState.FAILED}


@pytest.mark.parametrize("kind", list(JobKind))
def test_the_documented_steps_are_the_procedures(kind: JobKind) -> None:
    assert STEPS[kind] == tuple(PROCEDURES[kind].steps)


@pytest.mark.parametrize("kind", list(JobKind))
def test_every_step_has_a_way_out_when_it_fails(kind: JobKind) -> None:
    procedure = PROCEDURES[kind]
    assert set(procedure.steps) == set(procedure.if_it_fails)
    assert procedure.first in procedure.steps
    assert procedure.strands <= set(procedure.steps)


@pytest.mark.parametrize("kind", list(JobKind))
@pytest.mark.parametrize("taken", [False, True])
def test_a_job_whose_every_step_fails_still_ends(kind: JobKind, *, taken: bool) -> None:
    procedure = PROCEDURES[kind]
    for first in procedure.steps:
        assert len(_failing_all_the_way(procedure, first, taken=taken)) <= len(procedure.steps)


def _failing_all_the_way(procedure: Procedure, first: Step, *, taken: bool) -> list[Step]:
    facts = Facts(taken=taken, failure=Failure(code="x", detail="x"))
    path, step = [first], procedure.if_it_fails[first](facts)
    while step is not None and len(path) <= len(procedure.steps):
        path.append(step)
        step = procedure.if_it_fails[step](facts)
    return path
