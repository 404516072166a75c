"""The nodes, and what can be asked of one."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from api.dashboard import desk as at
from api.dashboard.desk import Desk, Pages
from api.dashboard.overview import is_low
from api.dashboard.rendering import Question
from api.dashboard.session import Visit
from api.http import fields
from api.http.reading import in_path
from api.operators.bodies import OpsNodesQuery
from worker.store.model import JobState
from worker.store.operators.operator_store import Cursor, JobFilter

NODES = "/ops/nodes/"
NODE = f"{NODES}{{node}}/"
SHOWN = 50
JOBS_SHOWN = 25


async def show_all(desk: Desk, visit: Visit) -> web.Response:
    query = at.query(visit, OpsNodesQuery, limit=SHOWN)
    part = await desk.operators.nodes(state=query.state, sort=query.sort, cursor=query.cursor)
    return desk.rendering.page(
        visit.request, "nodes.html", filters=at.filters(visit, query), query=query, part=part, is_low=is_low
    )


async def show_one(desk: Desk, visit: Visit) -> web.Response:
    name = in_path(visit.request, fields.NODE)
    found = await desk.operators.node(name)
    lists = {
        state: await desk.operators.jobs(JobFilter(node=name, state=state), Cursor(limit=JOBS_SHOWN))
        for state in (JobState.IN_PROGRESS, JobState.QUEUED, JobState.FAILED)
    }
    return desk.rendering.page(visit.request, "node.html", node=found, lists=lists, is_low=is_low)


@dataclass(frozen=True, kw_only=True)
class _Ask:
    title: str
    text: str
    verb: str
    wants_reason: bool = True


_ASKS: Mapping[str, _Ask] = {
    "pause": _Ask(
        title="Pause the node",
        text="It takes no new job; those that run end. Jobs are still admitted, and wait until the node is resumed.",
        verb="Pause",
    ),
    "resume": _Ask(title="Resume the node", text="It takes the jobs that wait at once.", verb="Resume"),
    "reconcile": _Ask(
        title="Reconcile the node",
        text="Its worker compares all its servers, disks and snapshots with the store. No VM is stopped.",
        verb="Reconcile",
        wants_reason=False,
    ),
}


async def ask(desk: Desk, visit: Visit) -> web.Response:
    node = await desk.operators.node(in_path(visit.request, fields.NODE))
    asked = _ASKS[visit.request.match_info["action"]]
    question = Question(
        title=f"{asked.title} {node.name}?",
        text=asked.text,
        verb=asked.verb,
        back=f"{NODES}{node.name}/",
        wants_reason=asked.wants_reason,
    )
    return desk.rendering.ask(visit.request, question)


async def pause(desk: Desk, visit: Visit) -> web.Response:
    name, reason = in_path(visit.request, fields.NODE), at.reason(visit)
    node = await desk.operators.pause(name, by=visit.token.name, reason=reason)
    running = f"; {node.running} of its jobs still run" if node.running else ""
    return desk.rendering.done(visit.request, f"{name} is paused{running}.", back=f"{NODES}{name}/")


async def resume(desk: Desk, visit: Visit) -> web.Response:
    name = in_path(visit.request, fields.NODE)
    at.reason(visit)
    await desk.operators.resume(name)
    return desk.rendering.done(visit.request, f"{name} takes jobs again.", back=f"{NODES}{name}/")


async def reconcile(desk: Desk, visit: Visit) -> web.Response:
    name = in_path(visit.request, fields.NODE)
    await desk.operators.reconcile(name)
    text = f"{name} was asked to reconcile; it hears of it within seconds."
    return desk.rendering.done(visit.request, text, back=f"{NODES}{name}/")


PAGES: Pages = {NODES: show_all, NODE: show_one, f"{NODE}{{action:pause|resume|reconcile}}/": ask}
ACTIONS: Pages = {f"{NODE}pause/": pause, f"{NODE}resume/": resume, f"{NODE}reconcile/": reconcile}
