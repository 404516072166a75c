"""The overview: problems that need an operator come first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from aiohttp import web

from api.dashboard.charts import charts
from api.dashboard.context import Context, Section
from api.dashboard.rendering import Link, address
from api.dashboard.session import HOME, OperatorRequest
from api.http import reading
from api.http.fields import Query
from api.words import machine, plural, size, span
from worker.store import errors
from worker.store.calls import Cursor
from worker.store.model import Job, JobState
from worker.store.operators.memory import Memory
from worker.store.operators.nodes import Node
from worker.store.operators.operator_store import JobFilter, OperatorStore
from worker.store.operators.overview import LAST_DAY, WINDOWS, Overview
from worker.store.operators.records import OpsJob, OpsServer
from worker.store.reports import Pool

FEW_ALARMS = 3  # if there are more, they become one list, so that the rest of the page stays visible
LIMIT = 10  # rows of each list; the page links to the rest
WORST = 3  # nodes that the alarm of failed jobs names
LOW_SHARE = 0.1  # a pool with a smaller free share is low
WAITS_LONG_SECONDS = 300.0  # a longer wait is an alarm: an idle node starts a job within milliseconds


class ChartsQuery(Query):
    """The query of the overview."""

    window: Literal["1h", "6h", "24h", "7d"] = "24h"


@dataclass(frozen=True, kw_only=True)
class Stranded:
    """A stranded server. `job`: None if its record has expired."""

    server: OpsServer
    job: Job | None


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """`is_grave`: customers' jobs do not progress. `links`: texts and paths of its parts."""

    is_grave: bool
    text: str
    href: str
    more: str = ""
    links: Sequence[tuple[str, str]] = ()


async def show(context: Context, request: OperatorRequest) -> web.Response:
    operators = context.operators
    wanted = reading.query(request.http, ChartsQuery, skip_empty=True).window
    window = next(one for one in WINDOWS if one.name == wanted)
    overview = await operators.overview(window)
    stranded = await _stranded(operators, overview)
    running = await operators.jobs(JobFilter(state=JobState.IN_PROGRESS), Cursor(limit=LIMIT))
    lately = JobFilter(state=JobState.FAILED, cancelled=False)
    failed = await operators.jobs(lately, Cursor(limit=LIMIT)) if overview.failed_day else None
    return context.rendering.page(
        request.http,
        "overview.html",
        overview=overview,
        stranded=stranded,
        off=await _off(operators, overview),
        alarms=await alarms(operators, overview),
        few=FEW_ALARMS,
        an_hour_ago=an_hour_before(overview.at),
        running=running.results,
        failed=failed.results if failed else (),
        charts=charts(overview),
        windows=[one.name for one in WINDOWS],
        default_window=LAST_DAY.name,
    )


async def _stranded(operators: OperatorStore, overview: Overview) -> list[Stranded]:
    if not overview.stranded_servers:
        return []
    page = await operators.servers(node=None, account_id=None, stranded=True, cursor=Cursor(limit=LIMIT))
    return [
        Stranded(server=server, job=found.job if (found := await stranding_job(operators, server)) else None)
        for server in page.results
    ]


async def _off(operators: OperatorStore, overview: Overview) -> tuple[OpsServer, ...]:
    """The servers whose guest is off for a job, longest first."""
    if not overview.servers_off:
        return ()
    page = await operators.servers(node=None, account_id=None, stranded=False, off=True, cursor=Cursor(limit=LIMIT))
    return tuple(page.results)


async def stranding_job(operators: OperatorStore, server: OpsServer) -> OpsJob | None:
    """The job that stranded the server; None if its record has expired or can't be read."""
    if server.stranded_by is None:
        return None
    try:
        return await operators.job(server.stranded_by)
    except (errors.JobNotFound, errors.RecordUnreadable):
        return None


async def alarms(operators: OperatorStore, overview: Overview) -> list[Alarm]:
    """The alarms, grave ones first."""
    found = [
        *await _silent(operators, overview.nodes - overview.nodes_alive),
        *await _failing(operators, since=an_hour_before(overview.at)),
        *_waiting(overview),
        *_nearly_full(await operators.memory()),
        *await _full(operators),
        *await _paused(operators, overview.nodes_paused),
    ]
    if overview.failed_hour:
        found.append(await _failed(operators, overview.failed_hour, since=an_hour_before(overview.at)))
    if count := overview.servers_with_findings:
        text = f"Reconciliation found differences on {plural(count, 'server')}"
        found.append(Alarm(is_grave=False, text=text, href="/ops/findings/"))
    if count := overview.unreadable_records:
        text = f"{plural(count, 'record')} in Redis cannot be read"
        found.append(Alarm(is_grave=False, text=text, href="/ops/findings/#unreadable"))
    return found


def an_hour_before(moment: datetime) -> str:
    """Rounded to the minute: a link that changes with each refresh is hard to click."""
    return machine((moment - timedelta(hours=1)).replace(second=0, microsecond=0))


async def _silent(operators: OperatorStore, count: int) -> Iterable[Alarm]:
    if count <= 0:
        return ()
    page = await operators.nodes(state="silent", sort="heartbeat", cursor=Cursor(limit=min(count, LIMIT)))
    text = f"{_nodes(count)} not responding; new jobs for {'its' if count == 1 else 'their'} servers are refused"
    return (Alarm(is_grave=True, text=text, more=_names(page.results, count), href="/ops/nodes/?state=silent"),)


async def _failing(operators: OperatorStore, *, since: str) -> Iterable[Alarm]:
    page = await operators.nodes(state="failing", sort="-failed", cursor=Cursor(limit=LIMIT))
    return [
        Alarm(
            is_grave=True,
            text=f"All jobs of {node.name} fail",
            href=f"/ops/nodes/{node.name}/",
            links=[(f"{plural(node.ended.failed, 'job')} in the last hour", _failed_jobs(since, node=node.name))],
        )
        for node in page.results
    ]


async def _failed(operators: OperatorStore, count: int, *, since: str) -> Alarm:
    """With the nodes on which most of them failed: what one node has broken is retried together."""
    page = await operators.nodes(state=None, sort="-failed", cursor=Cursor(limit=WORST))
    worst = [node for node in page.results if node.ended.failed]
    return Alarm(
        is_grave=False,
        text=f"{plural(count, 'job')} failed in the last hour",
        href=_failed_jobs(since),
        links=[(f"{node.name}: {node.ended.failed}", _failed_jobs(since, node=node.name)) for node in worst],
    )


def _failed_jobs(since: str, *, node: str | None = None) -> str:
    return address("/ops/jobs/", state=JobState.FAILED, node=node, ended_since=since)


def _waiting(overview: Overview) -> Iterable[Alarm]:
    oldest = overview.oldest
    if oldest is None or (waited := (overview.at - oldest.queued_at).total_seconds()) < WAITS_LONG_SECONDS:
        return ()
    text = f"Oldest job has been waiting {span(waited)}"
    return (Alarm(is_grave=True, text=text, href=f"/ops/jobs/{oldest.job_id}/"),)


def _nearly_full(memory: Memory) -> Iterable[Alarm]:
    if not memory.is_nearly_full:
        return ()
    refused = "new snapshots and dry runs are" if memory.refuses_creates else "dry runs and tests of webhooks are"
    text = f"Redis is {memory.share:.0%} full: {refused} refused"
    more = f"{size(memory.used)} of {size(memory.most)}"
    href = "/ops/runbook/#vpssnapshotsstorenearlyfull"
    return (Alarm(is_grave=memory.refuses_creates, text=text, more=more, href=href),)


async def _full(operators: OperatorStore) -> Iterable[Alarm]:
    page = await operators.nodes(state=None, sort="free", cursor=Cursor(limit=LIMIT))
    full = [(node, pool) for node in page.results if node.facts for pool in node.facts.pools if is_low(pool)]
    names = list(dict.fromkeys(node.name for node, _ in full))
    if len(names) > 1:
        many = f"{len(names)}{' or more' if len(names) == LIMIT else ''} nodes"
        return [
            Alarm(is_grave=False, text=f"Storage is low on {many}", more=", ".join(names), href="/ops/nodes/?sort=free")
        ]
    return [
        Alarm(
            is_grave=False,
            text=f"Storage is low on {node.name}",
            more=f"{size(pool.free_bytes)} of {size(pool.total_bytes)} free in {pool.path}",
            href=f"/ops/nodes/{node.name}/",
        )
        for node, pool in full[:LIMIT]
    ]


async def _paused(operators: OperatorStore, count: int) -> Iterable[Alarm]:
    if count <= 0:
        return ()
    page = await operators.nodes(state="paused", sort="name", cursor=Cursor(limit=min(count, LIMIT)))
    text = f"{_nodes(count)} paused; {'its' if count == 1 else 'their'} jobs are waiting"
    return (Alarm(is_grave=False, text=text, more=_names(page.results, count), href="/ops/nodes/?state=paused"),)


def is_low(pool: Pool) -> bool:
    return pool.free_bytes < LOW_SHARE * pool.total_bytes


def _nodes(count: int) -> str:
    return f"{plural(count, 'node')} {'is' if count == 1 else 'are'}"


def _names(nodes: Iterable[Node], count: int) -> str:
    names = [node.name for node in nodes]
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


SECTION = Section(pages={HOME: show}, link=Link(href=HOME, name="Overview", key="o"))
