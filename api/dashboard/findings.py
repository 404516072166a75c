"""The findings: differences between the service's records and the disks, and unreadable records."""

from collections.abc import Mapping

from aiohttp import web

from api.dashboard.context import Context, LocalMoment, Section, read_filters, read_page, read_query
from api.dashboard.rendering import Link
from api.dashboard.session import OperatorRequest
from api.http.fields import PeriodQuery

FINDINGS = "/ops/findings/"
LIMIT = 50

# by FindingKind, and for missing_server, which the store adds
MEANINGS: Mapping[str, str] = {
    "unknown_snapshot": "It was missing from Redis and was added again; the customer sees it. No action needed.",
    "unlisted_snapshot": "Its record was missing from the domain and was written again. Was the server moved here?",
    "found_snapshot": "It was lost and is on every disk again; the customer sees it again. No action needed.",
    "reverted_snapshot": "The server was reverted outside this service (virsh?). Find out who did it. See the runbook.",
    "stray_tag": "It is named like one of our snapshots but matches no record, or is part of a lost one. "
    "Find its owner.",
    "orphaned_tag": "Left on a disk by a failed create. It is deleted automatically. No action needed.",
    "lost_snapshot": "Missing from every disk; shown to the customer as failed. Find out who deleted it.",
    "torn_snapshot": "Missing from some disks; a full restore is refused. Was a disk changed? Tell the customer.",
    "shared_disk": "Another domain uses or is based on this disk; jobs for the server are refused. See the runbook.",
    "undeleted_snapshot": "Deleting it keeps failing, so it still uses space. See the server's failed deletes.",
    "missing_server": "It has snapshots, but its node no longer reports it. Was it undefined or moved?",
    "untracked_safety": "A restore's safety snapshot was missing from the journal. It is kept for the usual time.",
}


class Query(PeriodQuery):
    """The API's query, with times as browsers send them."""

    since: LocalMoment | None = None
    until: LocalMoment | None = None


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    query = read_query(request, Query, limit=LIMIT)
    page = await read_page(request, lambda: context.operators.findings(query.cursor))
    return context.rendering.page(
        request.http,
        "findings.html",
        filters=read_filters(request, query),
        query=query,
        page=page,
        refused=await context.operators.refused_claims(),
        unreadable=await context.operators.unreadable(),
        meanings=MEANINGS,
        runbook_url=context.runbook_url,
    )


SECTION = Section(pages={FINDINGS: show_all}, link=Link(href=FINDINGS, name="Findings", key="f"))
