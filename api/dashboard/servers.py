"""The servers: the list, and the page of one server with its snapshots, jobs and findings."""

from aiohttp import web

from api.dashboard.context import Context, Section, read_filters, read_page, read_query
from api.dashboard.findings import MEANINGS
from api.dashboard.overview import stranding_job
from api.dashboard.rendering import Link, Question
from api.dashboard.session import OperatorRequest
from api.http.fields import SERVER_ID
from api.http.reading import in_path
from api.servers.bodies import OpsServersQuery
from api.servers.calls import SNAPSHOTS_MAX
from api.words import ago
from worker.store.calls import Cursor
from worker.store.customers.customer_store import SnapshotFilter
from worker.store.operators.operator_store import JobFilter

SERVERS = "/ops/servers/"
SERVER = f"{SERVERS}{{server_id}}/"
LIMIT = 50
JOBS_LIMIT = 25


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    query = read_query(request, OpsServersQuery, limit=LIMIT)
    page = await read_page(
        request,
        lambda: context.operators.servers(
            node=query.node,
            account_id=query.account_id,
            stranded=query.stranded,
            off=query.off,
            cursor=query.cursor,
            without_snapshot_of=query.without_snapshot_of,
        ),
    )
    return context.rendering.page(request.http, "servers.html", filters=read_filters(request, query), page=page)


async def show_one(context: Context, request: OperatorRequest) -> web.Response:
    server_id = in_path(request.http, SERVER_ID)
    found = await context.operators.server(server_id)
    stranding = await stranding_job(context.operators, found)
    snapshots = await context.store.snapshots(
        account_id=found.view.server.account_id,
        wanted=SnapshotFilter(server_id=server_id),
        offset=0,
        limit=SNAPSHOTS_MAX,
    )
    return context.rendering.page(
        request.http,
        "server.html",
        found=found,
        server=found.view.server,
        stranding=stranding.job if stranding else None,
        cause=stranding.cause if stranding else None,
        snapshots=snapshots.results,
        jobs=await context.operators.jobs(JobFilter(server_id=server_id), Cursor(limit=JOBS_LIMIT)),
        meanings=MEANINGS,
        runbook_url=context.runbook_url,
    )


async def ask(context: Context, request: OperatorRequest) -> web.Response:
    found, action = await context.operators.server(in_path(request.http, SERVER_ID)), request.http.match_info["action"]
    server, taken = found.view.server, found.taken
    if action == "take":
        of = f"{taken.by} took it {ago(taken.at)}. " if taken else ""
        question = Question(
            title="Take over this server?" if taken else "Are you repairing this server?",
            text=f"{of}The other operators see your name, {request.token.name}, until it is resolved.",
            verb="I'm on it",
        )
    else:
        question = Question(
            title="Release this server?",
            text="Then nobody is repairing it, and another operator can take it.",
            verb="Release",
        )
    subject = f"Server {server.id} ({server.name})"
    return context.rendering.ask(request.http, question, back=f"{SERVERS}{server.id}/", subject=subject)


async def take(context: Context, request: OperatorRequest) -> web.Response:
    server_id = in_path(request.http, SERVER_ID)
    await context.operators.take(server_id, by=request.token.name)
    return context.rendering.done(request.http, f"You are on server {server_id}.", back=f"{SERVERS}{server_id}/")


async def release(context: Context, request: OperatorRequest) -> web.Response:
    server_id = in_path(request.http, SERVER_ID)
    await context.operators.release(server_id)
    return context.rendering.done(request.http, f"Server {server_id} released.", back=f"{SERVERS}{server_id}/")


SECTION = Section(
    pages={SERVERS: show_all, SERVER: show_one},
    questions={f"{SERVER}{{action:take|release}}/": ask},
    actions={f"{SERVER}take/": take, f"{SERVER}release/": release},
    link=Link(href=SERVERS, name="Servers", key="s"),
)
