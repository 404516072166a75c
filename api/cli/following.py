"""A job to its end: a bar for a person, lines for a log, JSON lines for a program."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from api.cli import shown
from api.cli.client import Body, Client, patiently, segment
from api.cli.exits import Exit, Trouble, Unreachable
from api.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOOK_SECONDS = 0.5
ENDED = {"completed", "failed"}


async def job(client: Client, job_id: str) -> Body:
    """A job with all that this token may see of it."""
    path = f"jobs/{segment(job_id)}/"
    return await client.either(lambda: client.get(f"ops/{path}"), lambda: client.get(path))


async def to_the_end(client: Client, job_id: str, output: Output, *, most_seconds: float | None) -> Exit:
    """Follow the job and tell its end. Raises Trouble, STILL_RUNNING after `most_seconds`."""
    found = await job(client, job_id)  # what is wrong from the start is told at once
    goes_on = f"vps-snapshots job show {job_id} --follow"
    try:
        async with asyncio.timeout(most_seconds), _teller(found, output) as teller:
            while found["state"] not in ENDED:
                await asyncio.sleep(LOOK_SECONDS)
                found = await patiently(lambda: job(client, job_id), told=teller.away)
                teller.tell(found)
    except TimeoutError:
        raise Trouble(Exit.STILL_RUNNING, f"The job is {found['state']} and goes on: {goes_on}") from None
    except asyncio.CancelledError:
        output.note(f"The job goes on: {goes_on}")
        raise
    if not output.as_json:
        _tell_end(output, found)
    return exit_of(found)


def exit_of(job: Body) -> Exit:
    """What became of a job that has ended."""
    if job["state"] == "completed":
        return Exit.OK
    return Exit.STRANDED if shown.is_stranded(job) else Exit.JOB_FAILED


def _tell_end(output: Output, job: Body) -> None:
    error = job["error"]
    output.facts(
        (
            ("job", job["id"]),
            ("what", shown.what(job)),
            ("state", shown.job_state(job)),
            ("error", f"{error['code']}: {error['detail']}" if error else None),
            ("took", shown.between(job["started_at"], job["finished_at"])),
            ("guest off", shown.seconds(job["downtime_seconds"]) if job["downtime_seconds"] is not None else None),
            *shown.job_facts(job),
        )
    )
    if error:
        output.note(f"More: vps-snapshots job show {job['id']}")


class _Lines:
    """For a log or a program: a line for each change."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last: object = None
        self._is_away = False

    def tell(self, job: Body) -> None:
        self._is_away = False
        now = (job["state"], job["step"], job["attempts"])
        if now == self._last:
            return
        self._last = now
        if self._output.as_json:
            self._output.line(job)
        else:
            self._output.note(shown.job_state(job))

    def away(self, away: Unreachable) -> None:
        if not self._is_away:
            self._output.note(f"{away} Trying again.")
        self._is_away = True


class _Bar:
    """For a person."""

    def __init__(self, bar: "Progress", task: "TaskID") -> None:
        self._bar = bar
        self._task = task

    def tell(self, job: Body) -> None:
        now = job["step"] if job["state"] == "in_progress" else job["state"]
        self._bar.update(self._task, completed=job["percent"], now=now or "begun", left=_left(job))

    def away(self, _: Unreachable) -> None:
        self._bar.update(self._task, left="[yellow]no answer, trying again[/]")


@asynccontextmanager
async def _teller(job: Body, output: Output) -> AsyncIterator[_Lines | _Bar]:
    if output.as_json or not output.errors.is_terminal:
        lines = _Lines(output)
        lines.tell(job)
        yield lines
        return
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415 - slow to import

    columns = (
        TextColumn("{task.fields[now]:<12}", style="cyan"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=output.errors, transient=True) as progress:
        bar = _Bar(progress, progress.add_task("", total=100, now="", left=""))
        bar.tell(job)
        yield bar


def _left(job: Body) -> str:
    if job["started_at"] is None:
        return f"waits for its node, {shown.ago(job['queued_at'])}"
    taken = (datetime.now(UTC) - shown.moment(job["started_at"])).total_seconds()
    so_far = shown.seconds(max(0, int(taken)))
    if job["estimated_seconds"] is None:
        return so_far
    left = int(job["estimated_seconds"] - taken)
    return f"{so_far}, {f'about {shown.seconds(left)} left' if left > 0 else 'longer than usual'}"
