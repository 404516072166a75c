"""The bodies of nodes, findings, the audit log and tokens."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.http import fields
from api.http.answers import After, Open, ServerName, Timestamp, TotalIfKnown, from_record
from api.jobs.bodies import OpsJobSummary, ops_job_summary
from api.operators.audit_words import AuditWords
from api.servers.bodies import Finding
from api.words import absolute
from worker.store import errors
from worker.store.access.tokens import OPERATORS, NewToken, Permission, Token
from worker.store.calls import CursorPage
from worker.store.model import NUMBER_MAX, SNAPSHOTS_PER_SERVER_MOST, AccountId, Job, SnapshotId
from worker.store.operators import nodes, records
from worker.store.operators.operator_store import AuditFilter
from worker.store.reports import NodeFacts

TokenIdInPath = Annotated[str, *fields.hex_id("token", "0a1b2c3d4e5f")]
TOKEN_ID: fields.PathId[str] = fields.PathId(
    name="token_id", adapter=TypeAdapter(TokenIdInPath), not_found=errors.TokenNotFound
)


class LimitsBody(fields.RequestBody):
    """The limits of an account."""

    snapshots_max: Annotated[
        Annotated[int, Field(ge=1, le=SNAPSHOTS_PER_SERVER_MOST), BeforeValidator(fields.whole)] | None,
        Field(description="how many snapshots each server of the account may have; null: the default, 5"),
    ]


class AccountLimits(Open):
    """The limits of an account, and the number of its servers."""

    account_id: int
    snapshots_max: Annotated[int, Field(description="how many snapshots each of its servers may have")]
    is_default: bool
    servers: int


class OpsNodesQuery(fields.CursorQuery):
    """The query of the list of nodes."""

    state: (
        Annotated[Literal["alive", "silent", "paused", "failing"], Field(description="only in this state")] | None
    ) = None
    sort: Annotated[
        Literal["name", "-name", "heartbeat", "-heartbeat", "queued", "-queued", "free", "-free", "failed", "-failed"],
        Field(description="ascending, or descending with `-`"),
    ] = "name"


class AuditQuery(fields.PeriodQuery):
    """The query of the audit log."""

    after: Annotated[str, *fields.cursor_text(r"^[1-9][0-9]{0,17}-[0-9]{1,18}$")] | None = None
    account_id: fields.OfAccount | None = None
    token_id: TokenIdInPath | None = None
    job_id: fields.JobIdInPath | None = None
    request_id: (
        Annotated[
            str,
            fields.matches(r"^[A-Za-z0-9._-]{1,64}$", "Must be 1 to 64 letters, digits, dots, underscores or hyphens."),
            Field(description="the request ID of the call"),
        ]
        | None
    ) = None
    method: (
        Annotated[
            Literal["GET", "POST", "PUT", "PATCH", "DELETE", "CLI", "SERVICE"],
            Field(description="`CLI`: a command on a front end; `SERVICE`: nobody's call, such as the end of a pause"),
        ]
        | None
    ) = None
    token_name: (
        Annotated[str, StringConstraints(max_length=64), Field(description="the name of the token that made the call")]
        | None
    ) = None
    server_id: fields.OfServer | None = None
    snapshot_id: (
        Annotated[
            SnapshotId,
            Field(ge=1, le=fields.ID_MAX, description="only for this snapshot"),
            BeforeValidator(fields.digits),
        ]
        | None
    ) = None
    node: Annotated[fields.NodeName, Field(description="only for this node")] | None = None
    what: (
        Annotated[
            Literal["changes", "logins"],
            Field(description="`logins`: logins to and logouts from the dashboard; `changes`: all other entries"),
        ]
        | None
    ) = None

    @property
    def filter(self) -> AuditFilter:
        fields = {"account": self.account_id, "token": self.token_id, "job": self.job_id, "method": self.method}
        fields |= {"request_id": self.request_id, "token_name": self.token_name}
        about = {"server": self.server_id, "snapshot": self.snapshot_id, "node": self.node}
        return AuditFilter(fields=_given(fields), about=_given(about), what=self.what)


def _given(fields: Mapping[str, object]) -> dict[str, str]:
    return {field: str(value) for field, value in fields.items() if value is not None}


class TokensQuery(fields.Query):
    """The query of the list of tokens."""

    account_id: fields.OfAccount | None = None


_Permission = Literal[
    "snapshots:read",
    "snapshots:write",
    "snapshots:create",
    "snapshots:restore",
    "snapshots:delete",
    "operator",
    "operator:read",
]


class TokenBody(fields.RequestBody):
    """The token to create."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"permissions": {"contains": {"enum": [*sorted(OPERATORS)]}}}},
            "then": {"properties": {"account_id": {"type": "null"}}},
        }
    )

    name: Annotated[
        str,
        fields.matches(
            r"^[A-Za-z0-9 ._@-]{1,64}$",
            "Must be 1 to 64 letters, digits, spaces, dots, underscores, at signs or hyphens.",
        ),
    ]
    permissions: Annotated[list[_Permission], Field(min_length=1, max_length=len(Permission))]
    account_id: Annotated[
        Annotated[AccountId, Field(ge=1, le=NUMBER_MAX), BeforeValidator(fields.whole)] | None,
        Field(description="null: a service token or an operator token"),
    ] = None
    lifetime_hours: Annotated[
        Annotated[int, Field(ge=1, le=87_600), BeforeValidator(fields.whole)] | None,
        Field(description="null: it does not expire"),
    ] = None

    @field_validator("account_id", mode="after")
    @classmethod
    def _not_for_operators(cls, account_id: AccountId | None, info: ValidationInfo) -> AccountId | None:
        if account_id is not None and not OPERATORS.isdisjoint(info.data.get("permissions", ())):
            raise PydanticCustomError("operators_account", "Must be null: an operator token belongs to no account.")
        return account_id

    @property
    def granted(self) -> frozenset[Permission]:
        return frozenset(map(Permission, self.permissions))

    @property
    def lifetime(self) -> timedelta | None:
        return timedelta(hours=self.lifetime_hours) if self.lifetime_hours else None


class PauseBody(fields.ReasonBody):
    """Why a node is paused, and when the pause ends. Without an end, it lasts until the node is resumed."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"required": ["until_back"], "properties": {"until_back": {"const": True}}},
            "then": {"properties": {"until": {"type": "null"}}},
        }
    )

    until: Annotated[fields.ExpiresAt | None, Field(description="when it ends")] = None
    until_back: Annotated[bool, Field(description="true: it ends when the node's host has rebooted")] = False

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.until is not None and self.until_back:
            raise PydanticCustomError("one_end", "A pause takes either `until` or `until_back`.")
        return self

    @property
    def audited(self) -> str:
        """The reason with the end, for the audit log."""
        if self.until_back:
            return f"{self.reason} (until its host has rebooted)"
        return f"{self.reason} (until {absolute(self.until)})" if self.until else self.reason


class Pause(Open):
    """Why a node starts no new jobs."""

    since: Timestamp
    reason: str
    by: Annotated[str, Field(description="the name of the token")]
    until: Annotated[Timestamp | None, Field(description="when it ends automatically")]
    until_back: Annotated[bool, Field(description="it ends when the node's host has rebooted")]


class EndedLately(Open):
    """How many jobs ended in the last hour, to within five minutes. Cancelled jobs and dry runs do not count."""

    completed: int
    failed: int
    stranded: Annotated[int, Field(description="how many of the failed jobs stranded their server")]


class OpsNode(Open):
    """A node, as it last reported."""

    name: str
    alive: Annotated[bool, Field(description="its worker has sent a heartbeat in the last minute")]
    heartbeat_at: Timestamp
    worker_at: Annotated[str, Field(description="host and process of its worker")]
    paused: Annotated[Pause | None, Field(description="set while it is paused")]
    versions: Annotated[dict[str, str], Field(description="versions of `worker`, `hypervisor` and `emulator`")]
    pools: tuple[dict[str, Any], ...]
    slots: Annotated[int | None, Field(description="how many jobs it can run at a time now; null: not reported")]
    slots_max: Annotated[int | None, Field(description="how many while its disks are not busy; null: not reported")]
    queued: int
    running: int
    servers: int
    findings: Annotated[int, Field(description="servers on which reconciliation found differences")]
    last_hour: EndedLately
    failing: Annotated[bool, Field(description="at least two jobs ended in the last hour, and all of them failed")]


class OpsNodeDetails(OpsNode):
    """A node with its jobs in progress."""

    jobs: Annotated[tuple[OpsJobSummary, ...], Field(description="its jobs in progress, at most 100")]


class OpsNodeList(Open):
    """One page of the list."""

    after: After
    results: tuple[OpsNode, ...]


class ServerFindings(Open):
    """A server on which reconciliation found differences."""

    server: ServerName
    account_id: int
    node: str
    findings: tuple[Finding, ...]


class RefusedClaim(Open):
    """What a node reported that contradicts the service's records, and was refused."""

    node: str
    call: Annotated[str, Field(description="what the node reported")]
    reason: Annotated[str, Field(description="why it was refused")]
    about: Annotated[str, Field(description="the object of the latest claim, such as `server:12345`; may be empty")]
    count: int
    first_at: Timestamp
    at: Annotated[Timestamp, Field(description="details of the latest claim")]


class UnreadableRecord(Open):
    """A record in Redis that is damaged, or that a newer version wrote. It is omitted from all responses."""

    key: Annotated[str, Field(description="the key in Redis; for a stream or hash, followed by a space and the entry")]
    reason: str
    at: Annotated[Timestamp, Field(description="when it was last read")]


class FindingsList(Open):
    """One page of the list, newest first."""

    count: TotalIfKnown
    after: After
    results: tuple[ServerFindings, ...]
    refused_claims: Annotated[
        tuple[RefusedClaim, ...],
        Field(
            description="the refused claims of all nodes in the last 30 days, newest first, at most 100;"
            " the same on every page"
        ),
    ]
    unreadable_records: Annotated[
        tuple[UnreadableRecord, ...],
        Field(
            description="the latest 100 unreadable records that were read in the last 24 hours; the same on every page"
        ),
    ]


class AuditCheckQuery(fields.Query):
    """The query of the check of the audit log."""

    after: Annotated[str, *fields.cursor_text(r"^[0-9]{1,18}-[0-9]{1,18}$")] | None = None


class AuditFault(Open):
    """A fault in the audit log."""

    kind: Annotated[
        str,
        Field(
            description=(
                "`gap`: entries before this one are missing; `changed`: the entry was changed; `forged`: the"
                " keeper did not write the entry; `cut`: entries after the last one are or may be missing;"
                " more may be added"
            )
        ),
    ]
    entry: Annotated[str, Field(description="the ID of an entry")]
    detail: str


class AuditCheck(Open):
    """Whether the audit log is complete and unchanged."""

    checked: Annotated[int, Field(description="how many entries were checked")]
    unchained: Annotated[int, Field(description="how many of them an earlier version wrote; these cannot be checked")]
    faults: Annotated[tuple[AuditFault, ...], Field(description="at most 100")]
    seq: Annotated[int, Field(description="the number of the last entry that was checked")]
    chain: Annotated[str, Field(description="its hash, which covers all entries before it")]
    after: After


class AuditEntry(Open):
    """Who did what, and the result."""

    id: str
    at: Timestamp
    text: Annotated[str, Field(description="the entry in words")]
    fields: dict[str, str]
    notes: Annotated[
        tuple[str, ...],
        Field(
            description="codes of its job's notes, kept for 90 days; `contents` of the snapshot lists "
            "what it leaves out"
        ),
    ]


class AuditList(Open):
    """One page of the audit log, newest first."""

    after: After
    results: tuple[AuditEntry, ...]


class OpsToken(Open):
    """A token, without its secret."""

    id: str
    name: str
    account_id: Annotated[int | None, Field(description="null: a service token or an operator token")]
    permissions: tuple[str, ...]
    created_at: Timestamp
    expires_at: Timestamp | None


class ListedToken(OpsToken):
    """A token in the list."""

    last_used_at: Annotated[
        Timestamp | None, Field(description="accurate to a minute; null if the token has not been used")
    ]


class NewOpsToken(OpsToken):
    """The token that was created."""

    secret: Annotated[str, Field(description="shown only in this response")]


class TokenList(Open):
    """The valid tokens, oldest first."""

    results: tuple[ListedToken, ...]


def node(record: nodes.Node) -> OpsNode:
    facts = record.facts or NodeFacts(worker="", hypervisor="", emulator="", pools=())
    versions = facts.model_dump(include={"worker", "hypervisor", "emulator"})
    return from_record(
        OpsNode,
        record,
        paused=record.pause,
        versions={program: version for program, version in versions.items() if version},
        pools=tuple(pool.model_dump() for pool in facts.pools),
        slots=facts.slots or None,
        slots_max=facts.slots_max or None,
        last_hour=record.ended,
    )


def node_details(record: nodes.Node, running: CursorPage[Job]) -> OpsNodeDetails:
    return OpsNodeDetails(**dict(node(record)), jobs=tuple(map(ops_job_summary, running.results)))


def account(record: records.AccountLimits) -> AccountLimits:
    return from_record(AccountLimits, record)


def audit_entry(record: records.AuditEntry, *, words: AuditWords) -> AuditEntry:
    return from_record(AuditEntry, record, fields=dict(record.fields), text=str(words.said(record.fields)))


def server_findings(record: records.ServerFindings) -> ServerFindings:
    return from_record(ServerFindings, record, server=ServerName(id=record.server_id, name=record.server_name))


def refused_claim(record: records.RefusedClaim) -> RefusedClaim:
    return from_record(RefusedClaim, record)


def unreadable_record(record: records.UnreadableRecord) -> UnreadableRecord:
    return from_record(UnreadableRecord, record)


def token(record: Token) -> OpsToken:
    return from_record(OpsToken, record, permissions=tuple(sorted(record.permissions)))


def listed_token(record: Token, used_at: datetime | None) -> ListedToken:
    return ListedToken(**dict(token(record)), last_used_at=used_at)


def new_token(new: NewToken) -> NewOpsToken:
    return NewOpsToken(**dict(token(new.token)), secret=new.secret)
