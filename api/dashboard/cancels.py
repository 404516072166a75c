"""The question before several jobs are cancelled: which ones, and which are left out."""

from collections.abc import Sequence

from api.dashboard.rendering import Question
from api.dashboard.retries import kinds, named, part
from api.words import plural
from worker.store import errors
from worker.store.model import Job, JobId, JobKind, JobState


def is_cancellable(job: Job) -> bool:
    return job.state is JobState.QUEUED and job.kind is not JobKind.DELETE


def for_many(jobs: Sequence[Job], *, missing: Sequence[JobId]) -> Question:
    """`missing`: IDs of jobs that do not exist."""
    cancelled = [job for job in jobs if is_cancellable(job)]
    never = [
        (str(job.id), f"{named(job)[1]}. {errors.JobNotCancellable.of(job.state).detail}")
        for job in jobs
        if not is_cancellable(job)
    ]
    never += [(job_id, "There is no such job.") for job_id in missing]
    parts = [
        part(kinds(cancelled), list(map(named, cancelled))),
        part(f"{plural(len(never), 'job')} left out: not possible", never),
    ]
    ids: list[str] = [job.id for job in cancelled]
    return Question(
        title=f"Cancel {plural(len(ids), 'job')}?" if ids else "Nothing to cancel",
        text="Queued jobs end as cancelled; jobs that have started continue. Each succeeds or fails on its own."
        if ids
        else "None of these jobs is queued and can be cancelled.",
        verb="Cancel the jobs" if ids else "",
        dismiss="Keep the jobs" if ids else "Close",
        is_grave=True,
        fields={"action": "cancel", "ids": ids},
        parts=[one for one in parts if one.count],
    )
