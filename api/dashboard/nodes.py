"""The nodes: the list, the page of one node, and the actions on it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from aiohttp import web

from api.dashboard import draining
from api.dashboard.context import Context, Section, read_filters, read_page, read_query, read_reason
from api.dashboard.overview import an_hour_before, is_low
from api.dashboard.rendering import Link, Question
from api.dashboard.session import OperatorRequest
from api.http import fields
from api.http.reading import in_path
from api.operators.bodies import OpsNodesQuery
from api.words import plural
from worker.store.calls import Cursor
from worker.store.model import JobState
from worker.store.operators.operator_store import JobFilter

NODES = "/ops/nodes/"
NODE = f"{NODES}{{node}}/"
LIMIT = 50
JOBS_LIMIT = 25


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    query = read_query(request, OpsNodesQuery, limit=LIMIT)
    page = await read_page(
        request, lambda: context.operators.nodes(state=query.state, sort=query.sort, cursor=query.cursor)
    )
    return context.rendering.page(
        request.http,
        "nodes.html",
        filters=read_filters(request, query),
        query=query,
        page=page,
        is_low=is_low,
        an_hour_ago=an_hour_before(datetime.now(UTC)),
        drain=draining.progress(page.results),
    )


async def show_one(context: Context, request: OperatorRequest) -> web.Response:
    name = in_path(request.http, fields.NODE)
    found = await context.operators.node(name)
    lists = {
        state: await context.operators.jobs(
            JobFilter(node=name, state=state, cancelled=False if state is JobState.FAILED else None),
            Cursor(limit=JOBS_LIMIT),
        )
        for state in (JobState.IN_PROGRESS, JobState.QUEUED, JobState.FAILED)
    }
    return context.rendering.page(
        request.http,
        "node.html",
        node=found,
        lists=lists,
        is_low=is_low,
        an_hour_ago=an_hour_before(datetime.now(UTC)),
        drain=draining.progress([found], lists[JobState.IN_PROGRESS].results),
    )


_QUESTIONS: Mapping[str, Question] = {
    "pause": draining.PAUSE,
    "resume": draining.RESUME,
    "reconcile": Question(
        title="Reconcile {}?",
        text="The worker compares all servers, disks and snapshots with the service's records. No VM is stopped.",
        verb="Reconcile",
    ),
}


async def ask(context: Context, request: OperatorRequest) -> web.Response:
    node, action = await context.operators.node(in_path(request.http, fields.NODE)), request.http.match_info["action"]
    parts = await draining.waits_for(context, [node.name]) if action == "pause" else ()
    question = replace(_QUESTIONS[action], title=_QUESTIONS[action].title.format(node.name), parts=parts)
    return context.rendering.ask(request.http, question, back=f"{NODES}{node.name}/")


async def pause(context: Context, request: OperatorRequest) -> web.Response:
    name = in_path(request.http, fields.NODE)
    node = await draining.pause_one(context, request, name, draining.read_pause(request))
    running = f"; {plural(node.running, 'job')} still running" if node.running else ""
    return context.rendering.done(request.http, f"{name} paused{running}.", back=f"{NODES}{name}/")


async def resume(context: Context, request: OperatorRequest) -> web.Response:
    name = in_path(request.http, fields.NODE)
    read_reason(request)
    await context.operators.resume(name)
    return context.rendering.done(request.http, f"{name} resumed.", back=f"{NODES}{name}/")


async def reconcile(context: Context, request: OperatorRequest) -> web.Response:
    name = in_path(request.http, fields.NODE)
    await context.operators.reconcile(name)
    text = f"Reconcile requested on {name}; it starts within seconds."
    return context.rendering.done(request.http, text, back=f"{NODES}{name}/")


SECTION = Section(
    pages={NODES: show_all, NODE: show_one},
    questions={f"{NODE}{{action:pause|resume|reconcile}}/": ask},
    actions={f"{NODE}pause/": pause, f"{NODE}resume/": resume, f"{NODE}reconcile/": reconcile},
    link=Link(href=NODES, name="Nodes", key="n"),
)
