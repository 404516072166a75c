"""The servers: the list, and one with its snapshots, its jobs and what its node has found on its disks."""

from aiohttp import web

from api.dashboard import desk as at
from api.dashboard.desk import Desk, Pages
from api.dashboard.findings import MEANINGS
from api.dashboard.overview import stranding_job
from api.dashboard.session import Visit
from api.http.fields import SERVER_ID
from api.http.reading import in_path
from api.servers.bodies import OpsServersQuery
from worker.store.customers.customer_store import SnapshotFilter
from worker.store.model import SNAPSHOTS_PER_SERVER
from worker.store.operators.operator_store import Cursor, JobFilter

SERVERS = "/ops/servers/"
SERVER = f"{SERVERS}{{server_id}}/"
SHOWN = 50
JOBS_SHOWN = 25
SNAPSHOTS_SHOWN = 20 * SNAPSHOTS_PER_SERVER  # the failed ones come on top of the five


async def show_all(desk: Desk, visit: Visit) -> web.Response:
    query = at.query(visit, OpsServersQuery, limit=SHOWN)
    part = await desk.operators.servers(
        node=query.node, account_id=query.account_id, stranded=query.stranded, cursor=query.cursor
    )
    return desk.rendering.page(
        visit.request, "servers.html", filters=at.filters(visit, query), part=part, slots=SNAPSHOTS_PER_SERVER
    )


async def show_one(desk: Desk, visit: Visit) -> web.Response:
    server_id = in_path(visit.request, SERVER_ID)
    found = await desk.operators.server(server_id)
    snapshots = await desk.store.snapshots(
        account_id=found.view.server.account_id,
        wanted=SnapshotFilter(server_id=server_id),
        offset=0,
        limit=SNAPSHOTS_SHOWN,
    )
    return desk.rendering.page(
        visit.request,
        "server.html",
        found=found,
        server=found.view.server,
        slots=SNAPSHOTS_PER_SERVER,
        stranding=await stranding_job(desk.operators, found),
        snapshots=snapshots.results,
        jobs=await desk.operators.jobs(JobFilter(server_id=server_id), Cursor(limit=JOBS_SHOWN)),
        meanings=MEANINGS,
        runbook_url=desk.runbook_url,
    )


PAGES: Pages = {SERVERS: show_all, SERVER: show_one}
