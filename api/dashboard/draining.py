"""Pauses of one or several nodes, their ends, and the progress of a drain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.dashboard import zones
from api.dashboard.context import ZONE, Context, Section, in_zone
from api.dashboard.rendering import Part, Question
from api.dashboard.session import OperatorRequest
from api.http import reading
from api.http.fields import ExpiresAt, NodeInPath
from api.http.marks import EACH, REASON
from api.http.problems import FieldError, invalid
from api.operators.bodies import PauseBody
from api.words import plain, plural
from worker.store import errors
from worker.store.calls import Cursor
from worker.store.model import Job, JobState
from worker.store.operators.nodes import Node
from worker.store.operators.operator_store import JobFilter

NODES = "/ops/nodes/"
PAUSED = f"{NODES}?state=paused"
DRAIN = "/ops/drain/"
NODES_MAX = 100  # nodes per request
LISTED = 10  # jobs listed in a question

PAUSE = Question(
    title="Pause {}?",
    text="It starts no new jobs; running jobs finish. New jobs are accepted and wait until the pause ends.",
    verb="Pause",
    wants_reason=True,
    include="pause_end.html",
)
RESUME = Question(title="Resume {}?", text="Waiting jobs start immediately.", verb="Resume", wants_reason=True)


class PauseForm(PauseBody):
    """The API's body, with the time as browsers send it."""

    until: Annotated[ExpiresAt | None, BeforeValidator(in_zone)] = None


class Selected(BaseModel):
    """An action on these nodes."""

    model_config = ConfigDict(frozen=True)

    action: Literal["pause", "resume"]
    nodes: Annotated[tuple[NodeInPath, ...], Field(min_length=1, max_length=NODES_MAX)]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The jobs that must end before paused nodes are empty."""

    nodes: int
    empty: int
    running: int
    seconds: float | None  # estimated time until the last of the shown jobs ends; None: unknown


def read_pause(request: OperatorRequest) -> PauseForm:
    """The form's reason and end; the audit log records both. Raises Problem."""
    form = request.form
    given = {
        "reason": " ".join(form.get("reason", [""])).strip(),
        "until": form.get("until", [""])[0] or None,
        "until_back": "until_back" in form,
    }
    pause = reading.validated(
        given, PauseForm, context={ZONE: zones.of(request.http), **reading.at_cell_time(request.http)}
    )
    request.http[REASON] = pause.audited
    return pause


def progress(nodes: Iterable[Node], running: Sequence[Job] = ()) -> Progress:
    """`running`: the jobs of a single node."""
    paused = [node for node in nodes if node.pause]
    return Progress(
        nodes=len(paused),
        empty=sum(not node.running for node in paused),
        running=sum(node.running for node in paused),
        seconds=_left(running),
    )


def _left(running: Sequence[Job]) -> float | None:
    known = [(job.started_at, job.estimated_seconds) for job in running]
    left = [usual - (datetime.now(UTC) - begun).total_seconds() for begun, usual in known if begun and usual]
    return max(0.0, *left) if len(left) == len(running) and left else None


async def waits_for(context: Context, names: Iterable[str]) -> list[Part]:
    """The jobs that a drain of these nodes would wait for. Raises NodeNotFound."""
    count, told = 0, list[tuple[str, str]]()
    for name in names:
        running = (await context.operators.node(name)).running
        count += running
        if running and len(told) < LISTED:
            jobs = await context.operators.jobs(
                JobFilter(node=name, state=JobState.IN_PROGRESS), Cursor(limit=LISTED - len(told))
            )
            told += [(job.id, _doing(job)) for job in jobs.results]
    return [Part(title=f"{plural(count, 'running job')} to wait for", jobs=told, count=count)] if count else []


def _doing(job: Job) -> str:
    step = plain(job.step) if job.step else "starting"
    return f"{plain(job.kind)} on {job.server_name} ({job.server_id}), {job.node}: {step}, {job.percent}%"


async def ask(context: Context, request: OperatorRequest) -> web.Response:
    query = request.http.query
    order = _order(query.getall("action", []), query.getall("nodes", []))
    question = PAUSE if order.action == "pause" else RESUME
    many = Question(
        title=question.title.format(plural(len(order.nodes), "node")),
        text=question.text.replace("It starts", "They start"),
        verb=question.verb,
        wants_reason=True,
        include=question.include,
        fields={"action": order.action, "nodes": list(order.nodes)},
        parts=await waits_for(context, order.nodes) if order.action == "pause" else (),
    )
    return context.rendering.ask(request.http, many, back=NODES, subject=", ".join(order.nodes))


async def do(context: Context, request: OperatorRequest) -> web.Response:
    order = _order(request.form.get("action", []), request.form.get("nodes", []))
    pause = read_pause(request)
    done, refused = list[Node](), list[str]()
    entries = request.http[EACH] = []  # filled node by node, because the request may be interrupted
    for name in order.nodes:
        entry = {"path": f"{NODES}{name}/{order.action}/"}
        try:
            done.append(await _act(context, request, order.action, name, pause))
        except errors.Refused as refusal:
            refused.append(f"{name}: {refusal.detail}")
            entry["code"] = refusal.code
        entries.append(entry)
    found = progress(done)
    left = f"; {plural(found.running, 'job')} still running" if found.running else ""
    text = f"{plural(len(done), 'node')} {order.action}d{left}. {' '.join(refused)}".strip()
    return context.rendering.done(request.http, text, back=PAUSED if order.action == "pause" else NODES)


async def _act(context: Context, request: OperatorRequest, action: str, name: str, pause: PauseForm) -> Node:
    if action == "resume":
        return await context.operators.resume(name)
    return await pause_one(context, request, name, pause)


async def pause_one(context: Context, request: OperatorRequest, name: str, pause: PauseForm) -> Node:
    """Raises NodeNotFound or NodeBootUnknown."""
    return await context.operators.pause(
        name, by=request.token.name, reason=pause.reason, until=pause.until, until_back=pause.until_back
    )


def _order(action: Sequence[str], nodes: Sequence[str]) -> Selected:
    """Raises Problem."""
    if not nodes:
        raise invalid(FieldError(field="nodes", detail="Select some nodes first."))
    return reading.validated({"action": "".join(action[:1]), "nodes": tuple(nodes)}, Selected)


SECTION = Section(questions={DRAIN: ask}, actions={DRAIN: do})
