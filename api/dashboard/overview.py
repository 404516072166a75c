"""The first page: what needs a person comes first."""

from collections.abc import Iterable
from dataclasses import dataclass

from aiohttp import web

from api.dashboard.charts import charts
from api.dashboard.desk import Desk, Pages
from api.dashboard.session import HOME, Visit
from api.dashboard.words import size, span
from worker.store import errors
from worker.store.model import Job, JobState
from worker.store.operators.operator_store import Cursor, JobFilter, OperatorStore
from worker.store.operators.overview import Overview
from worker.store.operators.records import Node, OpsServer
from worker.store.reports import Pool

SHOWN = 10  # of each list: the page tells where the rest is
LOW_SHARE = 0.1  # of a pool's bytes that are free
WAITS_LONG_SECONDS = 300.0  # a job that waits for longer is an alarm: its node takes a free one within milliseconds


@dataclass(frozen=True, kw_only=True)
class Stranded:
    """A server that needs a person, with the job that stranded it; None: its record is gone."""

    server: OpsServer
    job: Job | None


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What an operator should know before a customer does. `is_grave`: customers' jobs don't go on."""

    is_grave: bool
    text: str
    more: str
    href: str


async def show(desk: Desk, visit: Visit) -> web.Response:
    operators = desk.operators
    glance = await operators.overview()
    stranded = await _stranded(operators, glance)
    running = await operators.jobs(JobFilter(state=JobState.IN_PROGRESS), Cursor(limit=SHOWN))
    failed = await operators.jobs(JobFilter(state=JobState.FAILED), Cursor(limit=SHOWN)) if glance.failed_day else None
    return desk.rendering.page(
        visit.request,
        "overview.html",
        glance=glance,
        stranded=stranded,
        alarms=await alarms(operators, glance),
        running=running.results,
        failed=failed.results if failed else (),
        charts=charts(glance),
    )


async def _stranded(operators: OperatorStore, glance: Overview) -> list[Stranded]:
    if not glance.stranded_servers:
        return []
    part = await operators.servers(node=None, account_id=None, stranded=True, cursor=Cursor(limit=SHOWN))
    return [Stranded(server=server, job=await stranding_job(operators, server)) for server in part.results]


async def stranding_job(operators: OperatorStore, server: OpsServer) -> Job | None:
    """What has stranded the server; None also where the job's record is gone."""
    if server.stranded_by is None:
        return None
    try:
        return (await operators.job(server.stranded_by)).job
    except errors.JobNotFound:
        return None


async def alarms(operators: OperatorStore, glance: Overview) -> list[Alarm]:
    """What is out of order, what is graver first."""
    found = [
        *await _silent(operators, glance.nodes - glance.nodes_alive),
        *_waiting(glance),
        *await _full(operators),
        *await _paused(operators, glance.nodes_paused),
    ]
    if count := glance.failed_hour:
        text = f"{count} {'job' if count == 1 else 'jobs'} failed within the hour"
        found.append(Alarm(is_grave=False, text=text, more="", href="/ops/jobs/?state=failed"))
    if count := glance.servers_with_findings:
        text = f"Reconciliation has found something on {_servers(count)}"
        found.append(Alarm(is_grave=False, text=text, more="", href="/ops/findings/"))
    return found


async def _silent(operators: OperatorStore, count: int) -> Iterable[Alarm]:
    if count <= 0:
        return ()
    part = await operators.nodes(state="silent", sort="heartbeat", cursor=Cursor(limit=min(count, SHOWN)))
    text = f"{_nodes(count)} silent: new jobs for {'its' if count == 1 else 'their'} servers are refused"
    return (Alarm(is_grave=True, text=text, more=_names(part.results, count), href="/ops/nodes/?state=silent"),)


def _waiting(glance: Overview) -> Iterable[Alarm]:
    oldest = glance.oldest
    if oldest is None or (waited := (glance.at - oldest.queued_at).total_seconds()) < WAITS_LONG_SECONDS:
        return ()
    text = f"A job has waited for {span(waited)}"
    return (Alarm(is_grave=True, text=text, more="", href=f"/ops/jobs/{oldest.job_id}/"),)


async def _full(operators: OperatorStore) -> Iterable[Alarm]:
    part = await operators.nodes(state=None, sort="free", cursor=Cursor(limit=SHOWN))
    full = [(node, pool) for node in part.results if node.facts for pool in node.facts.pools if is_low(pool)]
    return [
        Alarm(
            is_grave=False,
            text=f"Storage is low on {node.name}",
            more=f"{size(pool.free_bytes)} of {size(pool.total_bytes)} free in {pool.path}",
            href=f"/ops/nodes/{node.name}/",
        )
        for node, pool in full[:SHOWN]
    ]


async def _paused(operators: OperatorStore, count: int) -> Iterable[Alarm]:
    if count <= 0:
        return ()
    part = await operators.nodes(state="paused", sort="name", cursor=Cursor(limit=min(count, SHOWN)))
    text = f"{_nodes(count)} paused: jobs wait there"
    return (Alarm(is_grave=False, text=text, more=_names(part.results, count), href="/ops/nodes/?state=paused"),)


def is_low(pool: Pool) -> bool:
    return pool.free_bytes < LOW_SHARE * pool.total_bytes


def _nodes(count: int) -> str:
    return "1 node is" if count == 1 else f"{count} nodes are"


def _servers(count: int) -> str:
    return "1 server" if count == 1 else f"{count} servers"


def _names(nodes: Iterable[Node], count: int) -> str:
    names = [node.name for node in nodes]
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


PAGES: Pages = {HOME: show}
