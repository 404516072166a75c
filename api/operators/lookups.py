"""The calls with which operators look something up: the search, and a snapshot with its history."""

from typing import Annotated

from aiohttp import web
from pydantic import Field, StringConstraints

from api.http import fields, reading
from api.http.answers import Open, ServerName, Timestamp, answer, from_record
from api.http.calls import FOR_OPERATORS, OPS, Reply, Table
from api.http.reading import in_path
from api.jobs.examples import ASKED, JOB_ID, SERVER_NAME
from api.operators.examples import TOKEN_ID
from api.snapshots import bodies as snapshots
from api.snapshots.bodies import SNAPSHOT_ID
from api.snapshots.examples import DETAILS
from worker.store import errors
from worker.store.access.tokens import Token
from worker.store.operators.finding import Hit, KnownSnapshot
from worker.store.operators.operator_store import OperatorStore

ONE_SNAPSHOT = f"{OPS}snapshots/{{snapshot_id}}/"
TEXT_MAX = 100

call: Table[Token] = Table("operators", SNAPSHOT_ID, **FOR_OPERATORS)


class SearchQuery(fields.Query):
    """The query of the search."""

    q: Annotated[
        str,
        StringConstraints(min_length=1, max_length=TEXT_MAX, strip_whitespace=True),
        Field(
            description=(
                "an ID, at least the first 8 digits of a job's ID, a name or its beginning, or the ID of a request in"
                " the audit log; a kind in front, as in `snapshot 801`, limits the search to that kind"
            ),
            json_schema_extra={"pattern": r"\S"},
        ),
    ]


class Found(Open):
    """A match of the search."""

    kind: Annotated[
        str,
        Field(description="`server`, `snapshot`, `job`, `account`, `node`, `token` or `request`; more may be added"),
    ]
    id: str
    name: Annotated[str, Field(description="of a request, its method and path")]
    account_id: int | None
    server_id: int | None
    state: Annotated[
        str,
        Field(
            description=(
                "for a job or snapshot, its state (`deleted` if it is gone); for a server, its node; for an account,"
                " the number of its servers; for a token, `valid`, or `ended` if it was revoked or has expired; for a"
                " request, the status of its response"
            )
        ),
    ]
    exact: Annotated[
        bool, Field(description="an exact match: the text is its ID or name, or the beginning of this job's ID")
    ]


class FoundList(Open):
    """The matches, exact ones first."""

    results: tuple[Found, ...]


class HistoryEntry(Open):
    """A change of a snapshot, and who made it."""

    what: Annotated[
        str,
        Field(
            description=(
                "`created`, `restored`, `protected`, `unprotected`, `expiry_set`, `deleted`; without a token:"
                " `expired`, `rotated` (by its schedule), `forgotten` (the record was removed); more may be added"
            )
        ),
    ]
    at: Timestamp
    token: Annotated[str | None, Field(description="ID of the token that made the call")]
    token_name: str | None
    request_id: str | None
    job_id: str | None
    schedule_id: str | None


class OpsSnapshot(Open):
    """A snapshot and its history."""

    id: int
    name: str
    status: Annotated[
        str,
        Field(
            description="`in_progress`, `completed`, `failed`, `deleting` (deleted, but its space is not freed yet) or"
            " `deleted`; more may be added"
        ),
    ]
    server: ServerName | None
    account_id: int | None
    created_at: Timestamp | None
    snapshot: Annotated[snapshots.SnapshotDetails | None, Field(description="null if the snapshot is gone")]
    history: Annotated[
        tuple[HistoryEntry, ...],
        Field(
            description="oldest first: the first entry and the latest 29; kept for 30 days after the "
            "snapshot is deleted"
        ),
    ]


def found(hit: Hit) -> Found:
    return from_record(Found, hit)


def ops_snapshot(known: KnownSnapshot) -> OpsSnapshot:
    record = known.record
    server_name = record.server_name if record else ""
    shown = record and snapshots.SnapshotDetails.model_validate(snapshots.details(record))
    return from_record(
        OpsSnapshot,
        known,
        server=ServerName(id=known.server_id, name=server_name) if known.server_id else None,
        snapshot=shown,
        history=tuple(from_record(HistoryEntry, one) for one in known.history),
    )


FOUND = FoundList(
    results=(
        Found(
            kind="snapshot",
            id="801",
            name="before-update",
            account_id=77,
            server_id=12345,
            state="deleted",
            exact=True,
        ),
    )
)
KNOWN = OpsSnapshot(
    id=DETAILS.id,
    name=DETAILS.name,
    status=DETAILS.status,
    server=SERVER_NAME,
    account_id=77,
    created_at=DETAILS.created_at,
    snapshot=DETAILS,
    history=(
        HistoryEntry(
            what="created",
            at=ASKED,
            token=TOKEN_ID,
            token_name="public tier",  # noqa: S106 - a name
            request_id="7d2f7c7a3fb14d6e8f0f5d2c9a1b3e4f",
            job_id=JOB_ID,
            schedule_id=None,
        ),
    ),
)


class LookupCalls:
    def __init__(self, operators: OperatorStore) -> None:
        self._operators = operators

    @call(f"GET {OPS}search/", Reply(200, {"found": FOUND}), query=SearchQuery)
    async def ops_search(self, request: web.Request, _: Token) -> web.Response:
        """Search.

        Finds servers, snapshots (including deleted ones), jobs, accounts, nodes and tokens by ID or name, and requests
        in the audit log by ID; at most 20 of each.
        """
        hits = await self._operators.search(reading.query(request, SearchQuery).q)
        return answer(FoundList(results=tuple(map(found, hits))))

    @call(f"GET {ONE_SNAPSHOT}", Reply(200, {"snapshot": KNOWN}), refusals=(errors.SnapshotNotFound,))
    async def ops_show_snapshot(self, request: web.Request, _: Token) -> web.Response:
        """Show any snapshot.

        Shows the snapshot and who created, restored, protected and deleted it. Also works for a deleted snapshot.
        """
        return answer(ops_snapshot(await self._operators.snapshot(in_path(request, SNAPSHOT_ID))))
