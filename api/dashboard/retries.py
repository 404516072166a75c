"""The questions before a retry: what the retry will do, and what it leaves out."""

from collections import Counter
from collections.abc import Sequence

from api.dashboard.rendering import Part, Question
from api.dashboard.session import Form
from api.http.problems import FieldError, invalid
from api.words import ago, plain, plural
from worker.store.model import Job, JobId
from worker.store.operators.records import OpsJob, Retry

LISTED = 10  # jobs of each part


def ensure_typed(form: Form, expected: str) -> None:
    """Raises Problem unless the form has the text that confirms a forced retry."""
    if "".join(form.get("typed", [])).strip() != expected:
        raise invalid(FieldError(field="typed", detail=f"Type {expected} to confirm."))


def for_one(found: OpsJob) -> Question:
    """Raises JobNotRetryable."""
    retry, job = found.retry, found.job
    if retry.refusal is not None and not retry.needs_force:
        raise retry.refusal
    why = f"{retry.refusal.detail} " if retry.refusal else ""
    does = f"It overwrites all data of server {job.server_id}." if job.kind.overwrites else "It may stop the VM."
    return Question(
        title=f"{'Force the retry of' if retry.needs_force else 'Retry'} this {plain(job.kind)}?",
        text=f"{why}A new job will do the same again. {does} It is refused if limits no longer allow it.",
        verb="Force the retry" if retry.needs_force else "Retry",
        is_grave=retry.needs_force or job.kind.overwrites,
        typed=str(job.server_id) if retry.needs_force else "",
        typed_as="the ID of the server",
        fields={"force": "true"} if retry.needs_force else {},
    )


def for_many(found: Sequence[Retry], *, missing: Sequence[JobId], force: bool, wider: str) -> Question:
    """`found`: what a retry would do. `missing`: IDs of jobs that do not exist. `wider`: path of the question that
    includes jobs that need force."""
    retried = [one.job for one in found if one.refusal is None]
    over = [job for job in retried if job.kind.overwrites]
    others = [job for job in retried if not job.kind.overwrites]
    refused = [(one, (str(one.job.id), f"{named(one.job)[1]}. {one.refusal.detail}")) for one in found if one.refusal]
    needing = [told for one, told in refused if one.needs_force]
    never = [told for one, told in refused if not one.needs_force]
    never += [(job_id, "There is no such job.") for job_id in missing]
    parts = [
        part(kinds(others), list(map(named, others))),
        part(f"{kinds(over)}, overwriting all data of the server", list(map(named, over)), grave=True),
        part(f"{plural(len(needing), 'job')} left out: only with force", needing),
        part(f"{plural(len(never), 'job')} left out: not possible", never),
    ]
    ids: list[str] = [job.id for job in retried]
    fields: dict[str, str | list[str]] = {"action": "retry", "ids": ids}
    return Question(
        title=f"{'Force the retry of' if force else 'Retry'} {plural(len(ids), 'job')}?" if ids else "Nothing to retry",
        text=_text(retried),
        verb="" if not ids else "Force the retry" if force else "Retry",
        dismiss="Cancel" if ids else "Close",
        is_grave=force or bool(over),
        typed=str(len(ids)) if force and ids else "",
        typed_as="the number of jobs",
        fields=fields | ({"force": "true"} if force else {}),
        parts=[one for one in parts if one.count],
        wider=(wider, f"Include {plural(len(needing), 'job')} with force") if needing else None,
    )


def _text(retried: Sequence[Job]) -> str:
    if not retried:
        return "None of these jobs can be retried without force."
    oldest = min(job.finished_at or job.queued_at for job in retried)
    return (
        f"New jobs will do the same again and may stop the VMs. The oldest failed {ago(oldest)}. Each succeeds or fails"
        " on its own; limits may refuse some."
    )


def part(title: str, jobs: Sequence[tuple[str, str]], *, grave: bool = False) -> Part:
    """`jobs`: their IDs and texts."""
    return Part(title=title, jobs=jobs[:LISTED], count=len(jobs), is_grave=grave)


def kinds(jobs: Sequence[Job]) -> str:
    """The jobs by kind, such as "3 creates, 1 delete"."""
    return ", ".join(plural(count, plain(kind)) for kind, count in Counter(job.kind for job in jobs).most_common())


def named(job: Job) -> tuple[str, str]:
    """The job's ID, and what it does, where, and since when it is in its state."""
    snapshot = f" of {job.snapshot_name}" if job.snapshot_name else ""
    ended = "cancelled" if job.is_cancelled else str(job.state)
    when = f"{ended} {ago(job.finished_at)}" if job.finished_at else f"queued {ago(job.queued_at)}"
    return job.id, f"{plain(job.kind)}{snapshot} on {job.server_name} ({job.server_id}), {when}"
