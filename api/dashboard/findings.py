"""What the nodes have found to differ between the store and the disks."""

from collections.abc import Mapping

from aiohttp import web

from api.dashboard import desk as at
from api.dashboard.desk import Desk, Pages
from api.dashboard.session import Visit
from api.http.fields import CursorQuery

FINDINGS = "/ops/findings/"
SHOWN = 50

# by the words of worker.reconcile, and of the script that takes a node's report
MEANINGS: Mapping[str, str] = {
    "unknown_snapshot": "On the disks, and the store did not know it: its customer sees it again. Nothing to do.",
    "unlisted_snapshot": "Whole on the disks, and not in libvirt's list: listed again. Was the server moved here?",
    "found_snapshot": "It had been lost, and is whole on the disks: its customer has it again. Nothing to do.",
    "reverted_snapshot": "Someone took the server back to it past us (virsh?). Who? The runbook says how to end this.",
    "stray_tag": "Ours by its name, and of nobody that is known, or a part of a lost one: it stays. Whose is it?",
    "orphaned_tag": "Left by a create that never ended, and no job owns it: it is deleted. Nothing to do.",
    "lost_snapshot": "The store has it, and no disk does: its customer sees it as failed. Who deleted it, and how?",
    "torn_snapshot": "Some disks lack it, so it can't be restored. Was a disk added or removed? Tell the customer.",
    "shared_disk": "Another domain uses this disk, or is based on it: jobs of the server are refused. See the runbook.",
    "undeleted_snapshot": "Its delete keeps failing, so its space is still used. The server's failed deletes say why.",
    "missing_server": "It has snapshots, and its node does not report it any more. Was it undefined, or moved?",
    "untracked_safety": "A restore's safety snapshot that the journal did not know: kept for its usual time.",
}


async def show_all(desk: Desk, visit: Visit) -> web.Response:
    query = at.query(visit, CursorQuery, limit=SHOWN)
    part = await desk.operators.findings(query.cursor)
    return desk.rendering.page(
        visit.request, "findings.html", filters=at.filters(visit, query), part=part, meanings=MEANINGS
    )


PAGES: Pages = {FINDINGS: show_all}
