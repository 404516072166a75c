"""Follows a job until it ends: a progress bar at a terminal, lines in a log, or JSON lines."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from api import words
from api.cli import formats
from api.cli.client import MISSED, Body, Client, retrying, segment
from api.cli.exits import CliError, Exit, Refused, Unreachable
from api.cli.later import asyncio
from api.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

POLL_SECONDS, POLL_FACTOR, POLL_MOST_SECONDS = 0.5, 1.5, 10.0  # without an event stream
SURE_SECONDS = 30.0  # with an event stream: an event may get lost unnoticed
LISTEN_AGAIN_SECONDS = 30.0  # after a refusal, until the next attempt to open a stream
TICK_SECONDS = 0.5  # how often the displayed time is updated
ENDED = {"completed", "failed"}


async def job(client: Client, job_id: str) -> Body:
    """The job, with everything that the token may see."""
    path = f"jobs/{segment(job_id)}/"
    return await client.either(lambda: client.get(f"ops/{path}"), lambda: client.get(path))


async def until_end(client: Client, job_id: str, output: Output, *, max_seconds: float | None) -> Exit:
    """Follow the job and print its result. Raises CliError: STILL_RUNNING after `max_seconds`."""
    found = await job(client, job_id)
    command = f"vps-snapshots job show {job_id} --follow"
    try:
        async with (
            asyncio.timeout(max_seconds),
            _reporter(found, output) as reporter,
            _watching(client, job_id, is_needed=found["state"] not in ENDED) as watch,
        ):
            while found["state"] not in ENDED:
                await watch.wait(reporter.tick)
                found = await retrying(lambda: job(client, job_id), on_outage=reporter.outage)
                reporter.report(found)
    except TimeoutError:
        raise CliError(
            Exit.STILL_RUNNING, f"The job is still {words.plain(found['state'])}. To follow it: {command}"
        ) from None
    except asyncio.CancelledError:
        output.note(f"The job continues. To follow it: {command}")
        raise
    if not output.as_json:
        _show_end(output, found)
    return exit_of(found)


class _JobWatch:
    """Says when to read the job: after each of its events, or, without an event stream, at intervals that grow while
    nothing changes and that stay within the token's rate limit."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._changed = asyncio.Event()
        self._is_listening = False
        self._poll_seconds = POLL_SECONDS

    async def listen(self) -> None:
        while True:
            with suppress(Refused, Unreachable):  # polled meanwhile
                async for event in self._client.events(listening=self._heard, lost=self._lost):
                    if event.kind == MISSED or event.data.get("job_id") == self._job_id:
                        self._changed.set()
            self._is_listening = False
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    async def wait(self, tick: Callable[[], None]) -> None:
        """Wait until it is time to read the job; call `tick` meanwhile."""
        clock = asyncio.get_running_loop().time
        until = clock() + (SURE_SECONDS if self._is_listening else self._next_poll())
        while not self._changed.is_set() and (left := until - clock()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, TICK_SECONDS)):
                    await self._changed.wait()
            tick()
        self._changed.clear()

    def _next_poll(self) -> float:
        seconds = max(self._poll_seconds, self._client.seconds_for_each_call)
        self._poll_seconds = min(self._poll_seconds * POLL_FACTOR, POLL_MOST_SECONDS)
        return seconds

    def _heard(self) -> None:
        self._is_listening = True
        self._changed.set()  # an event may have occurred before the stream opened

    def _lost(self, _: Unreachable) -> None:
        self._is_listening, self._poll_seconds = False, POLL_SECONDS
        self._changed.set()


@asynccontextmanager
async def _watching(client: Client, job_id: str, *, is_needed: bool) -> AsyncIterator[_JobWatch]:
    watch = _JobWatch(client, job_id)
    listening = asyncio.create_task(watch.listen()) if is_needed else None
    try:
        yield watch
    finally:
        if listening is not None:
            listening.cancel()
            await asyncio.wait({listening})


def exit_of(job: Body) -> Exit:
    """The exit code for a job that has ended."""
    if job["state"] == "completed":
        return Exit.OK
    return Exit.STRANDED if formats.is_stranded(job) else Exit.JOB_FAILED


def _show_end(output: Output, job: Body) -> None:
    error = job["error"]
    output.facts(
        (
            ("job", job["id"]),
            ("what", formats.what(job)),
            ("state", formats.job_state(job)),
            ("error", f"{error['code']}: {error['detail']}" if error else None),
            *formats.run_facts(job),
            *formats.job_facts(job),
        )
    )
    if error:
        output.note(f"For details: vps-snapshots job show {job['id']}")


class _Lines:
    """Prints a line per change."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last: object = None
        self._has_outage = False

    def report(self, job: Body) -> None:
        self._has_outage = False
        now = (job["state"], job["step"], job["attempts"])
        if now == self._last:
            return
        self._last = now
        if self._output.as_json:
            self._output.line(job)
        else:
            self._output.note(formats.job_state(job))

    def tick(self) -> None:
        """Do nothing: lines show no elapsed time."""

    def outage(self, error: Unreachable) -> None:
        if not self._has_outage:
            self._output.note(f"{error} Retrying.")
        self._has_outage = True


class _Bar:
    """Updates a progress bar."""

    def __init__(self, bar: "Progress", task: "TaskID") -> None:
        self._bar = bar
        self._task = task
        self._job: Body | None = None

    def tick(self) -> None:
        """Update the elapsed time."""
        if self._job is not None:
            self._bar.update(self._task, left=_left(self._job))

    def report(self, job: Body) -> None:
        self._job = job
        now = job["step"] if job["state"] == "in_progress" else job["state"]
        self._bar.update(self._task, completed=job["percent"], now=now or "started", left=_left(job))

    def outage(self, _: Unreachable) -> None:
        self._job = None
        self._bar.update(self._task, left="[yellow]not responding, retrying[/]")


@asynccontextmanager
async def _reporter(job: Body, output: Output) -> AsyncIterator[_Lines | _Bar]:
    if output.as_json or not output.errors.is_terminal:
        lines = _Lines(output)
        lines.report(job)
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
        bar.report(job)
        yield bar


def _left(job: Body) -> str:
    if job["started_at"] is None:
        return f"waiting for its node, {formats.age(job['queued_at'])}"
    taken = (datetime.now(UTC) - formats.moment(job["started_at"])).total_seconds()
    so_far = words.span(max(0, int(taken)))
    if job["estimated_seconds"] is None:
        return so_far
    left = int(job["estimated_seconds"] - taken)
    return f"{so_far}, {f'about {words.span(left)} left' if left > 0 else 'longer than usual'}"
