"""Every call of the API, from the tables of its resources."""

from collections.abc import Iterator
from typing import Any

from api.credentials import calls as credentials
from api.events import calls as events
from api.http.calls import Call, Table
from api.jobs import calls as jobs
from api.operators import calls as operators
from api.operators import lookups
from api.schedules import calls as schedules
from api.servers import calls as servers
from api.snapshots import calls as snapshots
from api.webhooks import calls as webhooks

CUSTOMERS: tuple[Table[Any], ...] = (
    *(snapshots.call, jobs.call, events.call, servers.call, schedules.call, webhooks.call),
)
OPERATORS: tuple[Table[Any], ...] = (
    *(operators.call, lookups.call, credentials.call, jobs.ops_call, servers.ops_call, schedules.ops_call),
    *(events.ops_call,),
)
TABLES = (*CUSTOMERS, *OPERATORS)

CUSTOMERS_CALLS: tuple[Call[Any], ...] = tuple(call for table in CUSTOMERS for call in table.calls)
OPERATORS_CALLS: tuple[Call[Any], ...] = tuple(call for table in OPERATORS for call in table.calls)
CALLS = (*CUSTOMERS_CALLS, *OPERATORS_CALLS)


def on_one_page() -> Iterator[str]:
    """One line per call: method, path, ID, permission, body, and the statuses and codes of its responses."""
    for call in CALLS:
        body = call.body.__name__ if call.body else "-"
        statuses = ",".join(str(reply.status) for reply in call.replies)
        codes = " ".join(refusal.code for refusal in call.refusals)
        name = f"{call.method:6} {call.path:40} {call.id:22} {call.permission:15}"
        yield f"{name} {body:16} {statuses:11} {codes}".rstrip()
