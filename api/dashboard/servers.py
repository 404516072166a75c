"""The servers: the list, and the page of one server with its snapshots, jobs and findings."""

from aiohttp import web

from api.dashboard.context import Context, Pages, read_filters, read_query
from api.dashboard.findings import MEANINGS
from api.dashboard.overview import stranding_job
from api.dashboard.session import OperatorRequest
from api.http.fields import SERVER_ID
from api.http.reading import in_path
from api.servers.bodies import OpsServersQuery
from api.servers.calls import SNAPSHOTS_MAX
from worker.store.calls import Cursor
from worker.store.customers.customer_store import SnapshotFilter
from worker.store.operators.operator_store import JobFilter

SERVERS = "/ops/servers/"
SERVER = f"{SERVERS}{{server_id}}/"
LIMIT = 50
JOBS_LIMIT = 25


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    query = read_query(request, OpsServersQuery, limit=LIMIT)
    page = await context.operators.servers(
        node=query.node, account_id=query.account_id, stranded=query.stranded, cursor=query.cursor
    )
    return context.rendering.page(request.http, "servers.html", filters=read_filters(request, query), page=page)


async def show_one(context: Context, request: OperatorRequest) -> web.Response:
    server_id = in_path(request.http, SERVER_ID)
    found = await context.operators.server(server_id)
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
        stranding=await stranding_job(context.operators, found),
        snapshots=snapshots.results,
        jobs=await context.operators.jobs(JobFilter(server_id=server_id), Cursor(limit=JOBS_LIMIT)),
        meanings=MEANINGS,
        runbook_url=context.runbook_url,
    )


PAGES: Pages = {SERVERS: show_all, SERVER: show_one}
