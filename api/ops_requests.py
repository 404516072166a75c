"""What operators send, as types."""

from datetime import timedelta
from typing import Annotated, Literal

from aiohttp import web
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from api.http.reading import ID_MAX, STORABLE, JobIdInPath, Moment, digits, truth, whole
from worker.store import errors
from worker.store.access.tokens import Permission
from worker.store.model import AccountId, JobKind, JobState, ServerId
from worker.store.operators.operator_store import Cursor, JobFilter

BULK_MAX = 100
REASON_MAX = 500

NodeInPath = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"),
    Field(description="a node's name", examples=["node-17"]),
]
TokenIdInPath = Annotated[
    str, StringConstraints(pattern=r"^[0-9a-f]{12}$"), Field(description="a token's id", examples=["0a1b2c3d4e5f"])
]
Account = Annotated[AccountId, Field(ge=1, le=ID_MAX, description="of this account only"), BeforeValidator(digits)]
Server = Annotated[ServerId, Field(ge=1, le=ID_MAX, description="of this server only"), BeforeValidator(digits)]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,64}$")]
CursorInQuery = Annotated[
    str,
    StringConstraints(pattern=r"^-?[0-9]{1,20}(\.[0-9]{1,20})?(e[-+][0-9]{1,3})?:[A-Za-z0-9._-]{1,64}$"),
    Field(description="the `after` of the part before"),
]

_NODE: TypeAdapter[str] = TypeAdapter(NodeInPath)
_TOKEN: TypeAdapter[str] = TypeAdapter(TokenIdInPath)


class CursorQuery(BaseModel):
    """Which part of a list that may be long."""

    model_config = ConfigDict(frozen=True)

    limit: Annotated[int, Field(ge=1, le=500, description="results of a part"), BeforeValidator(digits)] = 100
    after: CursorInQuery | None = None

    @property
    def cursor(self) -> Cursor:
        return Cursor(limit=self.limit, after=self.after)


class OpsJobsQuery(CursorQuery):
    """The query of the list of all jobs."""

    state: Literal["queued", "in_progress", "completed", "failed"] | None = None
    kind: Literal["create", "restore", "delete", "check_create", "check_restore", "undo"] | None = None
    node: NodeInPath | None = None
    account_id: Account | None = None
    server_id: Server | None = None
    error_code: Annotated[Code, Field(description="of the failure")] | None = None
    text: (
        Annotated[
            str,
            StringConstraints(min_length=1, max_length=100),
            *STORABLE,
            Field(description="in the id, the server's or the snapshot's name, the error's detail or the request's id"),
        ]
        | None
    ) = None

    @property
    def wanted(self) -> JobFilter:
        return JobFilter(
            state=self.state and JobState(self.state),
            kind=self.kind and JobKind(self.kind),
            node=self.node,
            account_id=self.account_id,
            server_id=self.server_id,
            error_code=self.error_code,
            text=self.text,
        )


class OpsNodesQuery(CursorQuery):
    """The query of the list of nodes."""

    state: Annotated[Literal["alive", "silent", "paused"], Field(description="in this state only")] | None = None
    sort: Annotated[
        Literal["name", "-name", "heartbeat", "-heartbeat", "queued", "-queued", "free", "-free"],
        Field(description="ascending, or with `-` descending"),
    ] = "name"


class OpsServersQuery(CursorQuery):
    """The query of the list of all servers."""

    node: NodeInPath | None = None
    account_id: Account | None = None
    stranded: Annotated[bool, Field(description="only those that an operator must look at"), BeforeValidator(truth)] = (
        False
    )


class AuditQuery(BaseModel):
    """The query of the audit."""

    model_config = ConfigDict(frozen=True)

    limit: Annotated[int, Field(ge=1, le=500, description="results of a part"), BeforeValidator(digits)] = 100
    after: (
        Annotated[
            str,
            StringConstraints(pattern=r"^[1-9][0-9]{0,17}-[0-9]{1,18}$"),
            Field(description="the `after` of the part before"),
        ]
        | None
    ) = None
    account_id: Account | None = None
    token_id: TokenIdInPath | None = None
    job_id: JobIdInPath | None = None
    request_id: (
        Annotated[
            str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$"), Field(description="of the call's X-Request-Id")
        ]
        | None
    ) = None
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "CLI"] | None = None
    since: Annotated[Moment, Field(description="at this moment or later")] | None = None
    until: Annotated[Moment, Field(description="before this moment")] | None = None

    @property
    def cursor(self) -> Cursor:
        return Cursor(limit=self.limit, after=self.after)

    @property
    def wanted(self) -> dict[str, str]:
        fields = {"account": self.account_id, "token": self.token_id, "job": self.job_id, "method": self.method}
        fields |= {"request_id": self.request_id}
        return {field: str(value) for field, value in fields.items() if value is not None}


class TokensQuery(BaseModel):
    """The query of the list of tokens."""

    model_config = ConfigDict(frozen=True)

    account_id: Account | None = None


class ReasonBody(BaseModel):
    """Why it is done; kept in the audit."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    reason: Annotated[str, StringConstraints(min_length=1, max_length=REASON_MAX), *STORABLE]


class BulkBody(BaseModel):
    """What is to be done to which jobs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    action: Literal["retry", "cancel"]
    ids: Annotated[list[JobIdInPath], Field(min_length=1, max_length=BULK_MAX)]


class TokenBody(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={
            "if": {"properties": {"permissions": {"contains": {"const": Permission.OPERATOR}}}},
            "then": {"properties": {"account_id": {"type": "null"}}},
        },
    )

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 ._@-]{1,64}$")]
    permissions: Annotated[
        list[Literal["snapshots:read", "snapshots:write", "operator"]], Field(min_length=1, max_length=len(Permission))
    ]
    account_id: Annotated[
        Annotated[AccountId, Field(ge=1, le=ID_MAX), BeforeValidator(whole)] | None,
        Field(description="null: a service's or an operator's"),
    ] = None
    lifetime_hours: Annotated[
        Annotated[int, Field(ge=1, le=87_600), BeforeValidator(whole)] | None, Field(description="null: it never ends")
    ] = None

    @field_validator("account_id", mode="after")
    @classmethod
    def _is_no_operators(cls, account_id: AccountId | None, info: ValidationInfo) -> AccountId | None:
        if account_id is not None and Permission.OPERATOR in info.data.get("permissions", ()):
            raise ValueError("An operator's token belongs to no account.")
        return account_id

    @property
    def granted(self) -> frozenset[Permission]:
        return frozenset(map(Permission, self.permissions))

    @property
    def lifetime(self) -> timedelta | None:
        return timedelta(hours=self.lifetime_hours) if self.lifetime_hours else None


def node(request: web.Request) -> str:
    """Raises NodeNotFound for what is no name."""
    try:
        return _NODE.validate_python(request.match_info["node"])
    except ValidationError:
        raise errors.NodeNotFound("There is no such node.") from None


def token_id(request: web.Request) -> str:
    """Raises TokenNotFound for what is no id."""
    try:
        return _TOKEN.validate_python(request.match_info["token_id"])
    except ValidationError:
        raise errors.TokenNotFound("There is no such token.") from None
