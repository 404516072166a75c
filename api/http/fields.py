"""The types of fields that several resources take: limits, validators, IDs in paths, pages."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Generic, TypeVar, cast

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from worker.store import errors
from worker.store.calls import Cursor
from worker.store.model import DESCRIPTION_MAX, NAME_MAX, NUMBER_MAX, AccountId, JobId, ServerId

EXPIRE_HOURS_MAX = 87_600
REASON_MAX = 500
ID_MAX = 2**63 - 1
PAGE_MAX = 10**9  # beyond any list, and the offset is still exact in Lua
PAGE_SIZE_MAX = 500
LABELS_MAX = 20
_EXACT_MAX = 2**53  # largest range in which a float represents every integer

_ID = re.compile(r"[1-9][0-9]{0,18}")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DIGITS = re.compile(r"[0-9]{1,19}")  # int() itself would take " 1", "1_0" and other scripts' digits
# Descriptions are stored in XML, which cannot contain these characters; some of them also control a terminal.
NOT_STORABLE = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff"
_UNSTORABLE = re.compile(rf"[{NOT_STORABLE}]")  # JSON itself excludes lone surrogates

Id = TypeVar("Id")

NOW = "now"  # in the context of a validation: the time of the cell, as a function

PATTERNS: dict[str, str] = {}  # the rule for the problem's detail, by pattern


class RequestBody(BaseModel):
    """The body of a request: exactly these keys, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Query(BaseModel):
    """The query parameters of a call."""

    model_config = ConfigDict(frozen=True)


def matches(pattern: str, rule: str) -> StringConstraints:
    """Text that matches the whole pattern; `rule` is the problem's detail."""
    PATTERNS[pattern] = rule
    return StringConstraints(pattern=pattern)


def hex_id(of: str, example: str) -> tuple[object, object]:
    """A record's ID, which the service generates: as many hexadecimal digits as the example."""
    shape = matches(rf"^[0-9a-f]{{{len(example)}}}$", f"Must be {len(example)} hexadecimal digits.")
    return shape, Field(description=f"ID of a {of}", examples=[example])


def cursor_text(pattern: str) -> tuple[object, object]:
    """The cursor of a page."""
    shape = matches(pattern, "Must be the `after` of the previous page.")
    return shape, Field(description="the `after` of the previous page")


def _storable(text: str) -> str:
    if found := _UNSTORABLE.search(text):
        context = {"character": f"U+{ord(found[0]):04X}"}
        raise PydanticCustomError("not_storable", "The character {character} is not allowed.", context)
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "Must not be blank.")
    return text


def id_text(text: object) -> int:
    """An ID in canonical form: 007 is not 7."""
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise PydanticCustomError("not_an_id", "Must be a positive integer.")
    return int(text)


def digits(text: object) -> int:
    if not isinstance(text, str) or not _DIGITS.fullmatch(text):
        raise PydanticCustomError("not_an_integer", "Must be a positive integer.")
    return int(text)


def whole(number: object) -> object:
    """JSON has one kind of number: 7.0 is the integer 7. Beyond 2**53 a float may have lost digits."""
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) <= _EXACT_MAX else number


def truth(text: object) -> bool:
    if text not in {"true", "false"}:
        raise PydanticCustomError("not_a_truth", "Must be true or false.")
    return text == "true"


def _not_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("null", "Must not be null; leave it out instead.")
    return value


def _without_default(schema: JsonDict) -> None:
    schema.pop("default")  # null differs from leaving the field out


def _without_null(schema: JsonDict) -> None:
    _without_default(schema)
    choices = schema.pop("anyOf")
    schema.update(*(choice for choice in cast("list[JsonDict]", choices) if choice != {"type": "null"}))


def _moment(text: object) -> object:
    """RFC 3339 only: pydantic's own parser would take bare numbers too."""
    if not isinstance(text, str) or not _MOMENT.fullmatch(text):
        raise PydanticCustomError("not_a_moment", "Must be an RFC 3339 time with a time zone.")
    return text


def _utc() -> datetime:
    return datetime.now(UTC)


def _in_future(moment: datetime, info: ValidationInfo) -> datetime:
    """By the time of the cell: the wall clock of one front end decides nothing."""
    now: datetime = (info.context or {}).get(NOW, _utc)()
    if not now < moment < now + timedelta(hours=EXPIRE_HOURS_MAX):
        raise PydanticCustomError("not_in_future", "Must be in the future, within ten years.")
    return moment


STORABLE = (
    AfterValidator(_storable),
    Field(description="no control characters", json_schema_extra={"pattern": f"^[^{NOT_STORABLE}]*$"}),
)
NOT_BLANK = (
    AfterValidator(_not_blank),
    Field(json_schema_extra={"pattern": rf"^[^{NOT_STORABLE}]*[^{NOT_STORABLE}\s][^{NOT_STORABLE}]*$"}),
)
LEFT_OUT = Field(json_schema_extra=_without_default)
NOT_NULL = BeforeValidator(_not_null), Field(json_schema_extra=_without_null)

# The limits must come before the parser, otherwise the schema lacks them.
ServerIdInBody = Annotated[ServerId, Field(ge=1, le=ID_MAX), BeforeValidator(whole)]
AccountIdInPath = Annotated[
    AccountId, Field(ge=1, le=NUMBER_MAX, description="ID of an account", examples=[77]), BeforeValidator(id_text)
]
ServerIdInPath = Annotated[
    ServerId, Field(ge=1, le=NUMBER_MAX, description="ID of a server", examples=[12345]), BeforeValidator(id_text)
]
NodeName = Annotated[str, matches(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", "Must be the name of a node.")]
JobIdInPath = Annotated[JobId, *hex_id("job", "0b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b")]
NodeInPath = Annotated[
    NodeName,
    Field(description="the name of a node", examples=["node-17"]),
]
AccountIdInBody = Annotated[AccountId, Field(ge=1, le=NUMBER_MAX), BeforeValidator(whole)]
AccountIdInHeader = Annotated[AccountId, Field(ge=1, le=NUMBER_MAX, examples=[77]), BeforeValidator(id_text)]

# In the validator's regex engine `$` is the end of the text, never before a line break.
Name = Annotated[
    str,
    matches(
        rf"^[A-Za-z0-9_-]{{1,{NAME_MAX}}}$",
        f"Must be 1 to {NAME_MAX} letters (A-Z, a-z), digits, hyphens or underscores.",
    ),
]
Description = Annotated[str, StringConstraints(max_length=DESCRIPTION_MAX), *STORABLE]
# for bodies that create something: many clients send null for omitted fields
DescriptionIfAny = Annotated[Description | None, AfterValidator(lambda text: text or "")]
# not strict: the validator passes a Python object to pydantic, not JSON
Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_moment)]
ExpiresAt = Annotated[Moment, AfterValidator(_in_future)]

LabelKey = Annotated[
    str,
    matches(
        r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$",
        "Keys are 1 to 63 letters, digits, dots, underscores, slashes or hyphens, and start with a letter or digit.",
    ),
]
LabelValue = Annotated[
    str,
    matches(
        r"^[A-Za-z0-9._/-]{0,63}$", "Values are at most 63 letters, digits, dots, underscores, slashes or hyphens."
    ),
]
Labels = Annotated[
    dict[LabelKey, LabelValue], Field(max_length=LABELS_MAX, json_schema_extra={"additionalProperties": False})
]

OfServer = Annotated[ServerId, Field(ge=1, le=ID_MAX, description="only for this server"), BeforeValidator(digits)]
OfAccount = Annotated[AccountId, Field(ge=1, le=ID_MAX, description="only for this account"), BeforeValidator(digits)]


@dataclass(frozen=True, kw_only=True)
class PathId(Generic[Id]):
    """An ID in a path. Text that is not an ID raises `not_found`, like an ID that does not exist."""

    name: str
    adapter: TypeAdapter[Id]
    not_found: type[errors.Refused]


ACCOUNT_ID: PathId[AccountId] = PathId(
    name="account_id", adapter=TypeAdapter(AccountIdInPath), not_found=errors.AccountNotFound
)
SERVER_ID: PathId[ServerId] = PathId(
    name="server_id", adapter=TypeAdapter(ServerIdInPath), not_found=errors.ServerNotFound
)
JOB_ID: PathId[JobId] = PathId(name="job_id", adapter=TypeAdapter(JobIdInPath), not_found=errors.JobNotFound)
NODE: PathId[str] = PathId(name="node", adapter=TypeAdapter(NodeInPath), not_found=errors.NodeNotFound)


class PageQuery(Query):
    """A page of a list, by number."""

    page: Annotated[int, Field(ge=1, le=PAGE_MAX, description="starts at 1"), BeforeValidator(digits)] = 1
    page_size: Annotated[
        int, Field(ge=1, le=PAGE_SIZE_MAX, description="results per page"), BeforeValidator(digits)
    ] = 100

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.page_size


_CURSOR = cursor_text(r"^-?[0-9]{1,20}(\.[0-9]{1,20})?(e[-+][0-9]{1,3})?:[A-Za-z0-9._-]{1,64}$")


class CursorQuery(Query):
    """A page of a long list, by cursor."""

    limit: Annotated[int, Field(ge=1, le=PAGE_SIZE_MAX, description="results per page"), BeforeValidator(digits)] = 100
    after: Annotated[str, *_CURSOR] | None = None

    @property
    def cursor(self) -> Cursor:
        return Cursor(limit=self.limit, after=self.after)


Since = Annotated[Moment, Field(description="at this time or later")]
Until = Annotated[Moment, Field(description="before this time")]


class PeriodQuery(CursorQuery):
    """A page of a list by time."""

    since: Since | None = None
    until: Until | None = None

    @property
    def cursor(self) -> Cursor:
        return Cursor(limit=self.limit, after=self.after, since=self.since, until=self.until)


class ReasonBody(RequestBody):
    """The reason, which the audit log records."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=REASON_MAX), *STORABLE, *NOT_BLANK]
