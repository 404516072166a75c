"""What callers send, as types. Whatever is not exactly right becomes a problem that names the field."""

import asyncio
import hashlib
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, TypeVar, cast
from urllib.parse import parse_qs

from aiohttp import web
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic.config import JsonDict
from pydantic_core import ErrorDetails, PydanticCustomError

from api.http.problems import FieldError, Problem, invalid
from worker.store import errors
from worker.store.calls import Idempotency
from worker.store.customers.customer_store import Edit, SnapshotFilter
from worker.store.model import (
    DESCRIPTION_MAX,
    NAME_MAX,
    SNAPSHOTS_PER_SERVER,
    AccountId,
    JobId,
    ScheduleId,
    ServerId,
    SnapshotId,
    SnapshotStatus,
)
from worker.store.schedules.schedules import BadCron, ScheduleSpec
from worker.store.schedules.schedules import check as check_when

# what is learnt of a request on the way, for its log line and its audit entry
REQUEST_ID = web.RequestKey("request_id", str)
SERVER_ID = web.RequestKey("server_id", int)

KEY_HEADER = "Idempotency-Key"
LAST_EVENT_HEADER = "Last-Event-ID"
BODY_MAX_BYTES = 64 * 1024
FORM_FIELDS_MAX = 1000
LABELS_MAX = 20
SCHEDULE_NAME_MAX = NAME_MAX - len("-20250131-2359")
WHEN_MAX = 100
EXPIRE_HOURS_MAX = 87_600
ID_MAX = 2**63 - 1
PAGE_MAX = 10**9  # far beyond any list, and its offset is still exact in Redis's scripts
PAGE_SIZE_MAX = 500
_EXACT_MAX = 2**53  # up to here a float stands for one integer only
_ERRORS_SHOWN = 20
_FIELD_SHOWN = 100  # characters: a key of the body is the caller's text

_ID = re.compile(r"[1-9][0-9]{0,18}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EVENT_ID = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")
_DIGITS = re.compile(r"[0-9]{1,19}")  # int() itself would take " 1", "1_0" and other scripts' digits
# Descriptions are kept in XML: what XML can't hold is refused, and with it all that steers a terminal.
_NOT_STORABLE = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff"
_UNSTORABLE = re.compile(rf"[{_NOT_STORABLE}]")  # half a character (a lone surrogate) is no JSON to begin with


def storable(text: str) -> str:
    if found := _UNSTORABLE.search(text):
        context = {"character": f"U+{ord(found[0]):04X}"}
        raise PydanticCustomError("not_storable", "The character {character} is not allowed", context)
    return text


def _id(text: object) -> int:
    """An id as we write it: 007 is not another name of 7."""
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise PydanticCustomError("not_an_id", "Input should be a positive integer")
    return int(text)


def digits(text: object) -> int:
    if not isinstance(text, str) or not _DIGITS.fullmatch(text):
        raise PydanticCustomError("not_an_integer", "Input should be a whole number in digits, not too large")
    return int(text)


def whole(number: object) -> object:
    """JSON knows one kind of number: 7.0 is the integer 7. Beyond 2**53 the point may have cost digits."""
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) <= _EXACT_MAX else number


def truth(text: object) -> bool:
    if text not in {"true", "false"}:
        raise PydanticCustomError("not_a_truth", "Input should be true or false")
    return text == "true"


def _not_null(value: object) -> object:
    """A key that is there has a value: null is no way to leave it out."""
    if value is None:
        raise PydanticCustomError("null", "Leave it out, or give it a value")
    return value


def _without_default(schema: JsonDict) -> None:
    schema.pop("default")  # left out is not null


def _without_null(schema: JsonDict) -> None:
    _without_default(schema)
    choices = schema.pop("anyOf")
    schema.update(*(choice for choice in cast("list[JsonDict]", choices) if choice != {"type": "null"}))


def _to_come(moment: datetime) -> datetime:
    if not datetime.now(UTC) < moment < datetime.now(UTC) + timedelta(hours=EXPIRE_HOURS_MAX):
        raise PydanticCustomError("not_to_come", "Input should be in the future, within ten years")
    return moment


def _runnable(when: str) -> str:
    try:
        check_when(when, datetime.now(UTC))
    except BadCron as error:
        raise PydanticCustomError("not_a_cron", "{why}", {"why": str(error)}) from error
    return when


def _moment(text: object) -> object:
    """RFC 3339 only: the parser after it would take bare numbers too."""
    if not isinstance(text, str) or not _MOMENT.fullmatch(text):
        raise PydanticCustomError("not_a_moment", "Input should be a time as RFC 3339 has it, with its zone")
    return text


STORABLE = (
    AfterValidator(storable),
    Field(description="no control characters", json_schema_extra={"pattern": f"^[^{_NOT_STORABLE}]*$"}),
)
LEFT_OUT = Field(json_schema_extra=_without_default)
NOT_NULL = BeforeValidator(_not_null), Field(json_schema_extra=_without_null)

# Limits before the parser, or they are not written into the schema.
SnapshotIdInPath = Annotated[
    SnapshotId, Field(ge=1, le=ID_MAX, description="the `id` of a snapshot", examples=[801]), BeforeValidator(_id)
]
JobIdInPath = Annotated[
    JobId,
    StringConstraints(pattern=r"^[0-9a-f]{32}$"),
    Field(description="the `id` of a job", examples=["0b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b"]),
]
ServerIdInPath = Annotated[
    ServerId, Field(ge=1, le=ID_MAX, description="the `id` of a server", examples=[12345]), BeforeValidator(_id)
]
ScheduleIdInPath = Annotated[
    ScheduleId,
    StringConstraints(pattern=r"^[0-9a-f]{32}$"),
    Field(description="the `id` of a schedule", examples=["5c1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e"]),
]
AccountIdInHeader = Annotated[AccountId, Field(ge=1, le=ID_MAX, examples=[77]), BeforeValidator(_id)]

_SNAPSHOT_ID: TypeAdapter[SnapshotId] = TypeAdapter(SnapshotIdInPath)
_SERVER_ID: TypeAdapter[ServerId] = TypeAdapter(ServerIdInPath)
_SCHEDULE_ID: TypeAdapter[ScheduleId] = TypeAdapter(ScheduleIdInPath)
_JOB_ID: TypeAdapter[JobId] = TypeAdapter(JobIdInPath)
_ACCOUNT_ID: TypeAdapter[AccountId] = TypeAdapter(AccountIdInHeader)


# a dollar sign of the validator's regex engine is the end of the text, never before a line break
Name = Annotated[str, StringConstraints(pattern=rf"^[A-Za-z0-9_-]{{1,{NAME_MAX}}}$")]
Description = Annotated[
    str,
    StringConstraints(max_length=DESCRIPTION_MAX),
    *STORABLE,
]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{0,63}$")]
ListedStatus = Literal["in_progress", "completed", "failed"]


class CreateBody(BaseModel):
    """What a snapshot is to be made of."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    server_id: Annotated[ServerId, Field(ge=1, le=ID_MAX), BeforeValidator(whole)]
    name: Annotated[
        Name, Field(description=f"letters, digits, hyphen, underscore; at most {NAME_MAX}; unique on its server")
    ]
    description: Description = ""


# not strict: what the check before it returns is no JSON any more, but a text
Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_moment)]


class EditBody(BaseModel):
    """What is to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    description: Annotated[Description | None, *NOT_NULL] = None
    labels: Annotated[
        Annotated[
            dict[LabelKey, LabelValue],
            Field(max_length=LABELS_MAX, json_schema_extra={"additionalProperties": False}),
        ]
        | None,
        *NOT_NULL,
        Field(description=f"all of them, at most {LABELS_MAX}; those before are replaced"),
    ] = None
    expires_at: Annotated[
        Annotated[Moment, AfterValidator(_to_come)] | None,
        LEFT_OUT,
        Field(description="deleted then, unless it is protected; null: never"),
    ] = None
    protected: Annotated[bool | None, *NOT_NULL, Field(description="refuse to delete it")] = None

    @property
    def edit(self) -> Edit:
        never = "expires_at" in self.model_fields_set and self.expires_at is None
        return Edit(
            description=self.description,
            labels=self.labels,
            protected=self.protected,
            expires_at="never" if never else self.expires_at,
        )


ScheduleName = Annotated[
    str,
    StringConstraints(pattern=rf"^[A-Za-z0-9_-]{{1,{SCHEDULE_NAME_MAX}}}$"),
    Field(description="of its snapshots, which have the moment behind it"),
]
When = Annotated[
    str,
    StringConstraints(max_length=WHEN_MAX),
    AfterValidator(_runnable),
    Field(
        description=(
            "`hourly`, `daily` or `weekly`, at a moment of the server's own; or a cron expression of five fields, in"
            " UTC, with an hour between two runs at least"
        ),
        examples=["daily", "0 3 * * MON-FRI"],
    ),
]
Keep = Annotated[
    int,
    Field(ge=1, le=SNAPSHOTS_PER_SERVER, description="of its completed snapshots the newest stay"),
    BeforeValidator(whole),
]
ExpireAfterHours = Annotated[
    int, Field(ge=1, le=EXPIRE_HOURS_MAX, description="each of its snapshots is deleted then"), BeforeValidator(whole)
]


class ScheduleBody(BaseModel):
    """When a server is to be snapshotted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    server_id: Annotated[ServerId, Field(ge=1, le=ID_MAX), BeforeValidator(whole)]
    name: ScheduleName
    when: When
    keep: Keep = 3
    expire_after_hours: ExpireAfterHours | None = None
    enabled: bool = True

    @property
    def spec(self) -> ScheduleSpec:
        return ScheduleSpec(
            name=self.name,
            when=self.when,
            keep=self.keep,
            expire_after=_hours(self.expire_after_hours),
            enabled=self.enabled,
        )


class ScheduleEditBody(BaseModel):
    """What is to change of a schedule; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[ScheduleName | None, *NOT_NULL] = None
    when: Annotated[When | None, *NOT_NULL] = None
    keep: Annotated[Keep | None, *NOT_NULL] = None
    expire_after_hours: Annotated[ExpireAfterHours | None, LEFT_OUT, Field(description="null: never")] = None
    enabled: Annotated[bool | None, *NOT_NULL] = None

    def applied(self, spec: ScheduleSpec) -> ScheduleSpec:
        """The plan as it is with the changes."""
        expires = "expire_after_hours" in self.model_fields_set
        return ScheduleSpec(
            name=self.name or spec.name,
            when=self.when or spec.when,
            keep=self.keep or spec.keep,
            expire_after=_hours(self.expire_after_hours) if expires else spec.expire_after,
            enabled=spec.enabled if self.enabled is None else self.enabled,
        )


def _hours(hours: int | None) -> timedelta | None:
    return None if hours is None else timedelta(hours=hours)


class PageQuery(BaseModel):
    """Which page of a list."""

    model_config = ConfigDict(frozen=True)

    page: Annotated[int, Field(ge=1, le=PAGE_MAX, description="from 1 on"), BeforeValidator(digits)] = 1
    page_size: Annotated[
        int, Field(ge=1, le=PAGE_SIZE_MAX, description="results of a page"), BeforeValidator(digits)
    ] = 100

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.page_size


OfServer = (
    Annotated[ServerId, Field(ge=1, le=ID_MAX, description="of this server only"), BeforeValidator(digits)] | None
)


class ListQuery(PageQuery):
    """The query of the list of snapshots."""

    server_id: OfServer = None
    status: ListedStatus | None = None
    name: Annotated[Name, Field(description="exactly this one")] | None = None
    created_from: Annotated[Moment, Field(description="at this moment or later")] | None = None
    created_before: Annotated[Moment, Field(description="before this moment")] | None = None
    sort: Annotated[
        Literal["created_at", "-created_at", "name", "-name", "size_mb", "-size_mb"],
        Field(description="ascending, or with `-` descending"),
    ] = "-created_at"

    @property
    def wanted(self) -> SnapshotFilter:
        return SnapshotFilter(
            server_id=self.server_id,
            status=self.status and SnapshotStatus(self.status),
            name=self.name,
            created_from=self.created_from,
            created_before=self.created_before,
            sort=self.sort,
        )


class JobsQuery(PageQuery):
    """The query of the list of jobs."""

    server_id: OfServer = None
    state: Literal["queued", "in_progress", "completed", "failed"] | None = None


class SchedulesQuery(PageQuery):
    """The query of the list of schedules."""

    server_id: OfServer = None


class DryRunQuery(BaseModel):
    """The query of a create and of a restore."""

    model_config = ConfigDict(frozen=True)

    dry_run: Annotated[
        bool,
        Field(description="only make the checks that the call makes before it changes anything"),
        BeforeValidator(truth),
    ] = False


DISKS = Field(
    description=(
        "`all`: refused where the server's disks are not those of the snapshot. `present`: the disks that are there are"
        " restored, the others are named in the job's `notes`"
    )
)


class UndoQuery(BaseModel):
    """The query of an undo."""

    model_config = ConfigDict(frozen=True)

    disks: Annotated[Literal["all", "present"], DISKS] = "all"

    @property
    def present_only(self) -> bool:
        return self.disks == "present"


class RestoreQuery(DryRunQuery, UndoQuery):
    """The query of a restore."""


class NoBody(BaseModel):
    """The body of a call that takes none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=BaseModel)


async def body(request: web.Request, model: type[Model], *, timeout_seconds: float) -> Model:
    """The body, whatever its Content-Type says: `curl -d` sends JSON as a form. Raises Problem."""
    return parse(await _read(request, timeout_seconds=timeout_seconds), model)


async def ensure_no_body(request: web.Request, query: type[BaseModel] | None, *, timeout_seconds: float) -> None:
    """Raises Problem for any body but an empty one or `{}`: who sends `{"dry_run": true}` must not get the real thing.
    `query`: of the call, None where it has none."""
    if not request.body_exists:
        return
    raw = (await _read(request, timeout_seconds=timeout_seconds)).strip()
    if not raw:
        return
    try:
        NoBody.model_validate_json(raw)
    except ValidationError as error:
        known = query.model_fields if query else {}
        raise invalid(*(_unwanted(found, known) for found in _found_in(error))) from error


def _unwanted(error: ErrorDetails, known: Collection[str]) -> FieldError:
    if error["type"] != "extra_forbidden":
        return FieldError(field="body", detail="This call takes no body: send none, or {}.")
    field = str(error["loc"][0])
    where = f"; send it in the query, ?{field}=" if field in known else ""
    return FieldError(field=field[:_FIELD_SHOWN] or "body", detail=f"This call takes no field in its body{where}.")


def parse(raw: bytes, model: type[Model]) -> Model:
    """Raises Problem."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _invalid(error) from error


def idempotency(request: web.Request, content: BaseModel | None = None, *, owner: str = "") -> Idempotency | None:
    """The caller's mark on a POST, if it has one; `content` is its body, where it has one; `owner` where it is not the
    account's. Raises Problem."""
    given = request.headers.getall(KEY_HEADER, [])
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise invalid(FieldError(field=KEY_HEADER, detail="One key of 1 to 255 visible ASCII characters."))
    asked = [request.method, request.rel_url.raw_path, request.rel_url.raw_query_string]
    asked.append(content.model_dump_json() if content else "")
    return Idempotency(key=_digest(given[0]), fingerprint=_digest("\n".join(asked)), owner=owner)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def only_known(request: web.Request, model: type[BaseModel] | None) -> None:
    """Raises Problem for a query parameter that the call does not have: a mistyped `dry_run` must not do the real
    thing. `model`: the call's query, None where it has none."""
    known = list(model.model_fields) if model else []
    unknown = [name for name in dict.fromkeys(request.query) if name not in known][:_ERRORS_SHOWN]
    if unknown:
        detail = f"There is no such query parameter here; there is {', '.join(known) or 'none'}."
        raise invalid(*(FieldError(field=name[:_FIELD_SHOWN] or "query", detail=detail) for name in unknown))


def query(request: web.Request, model: type[Model], *, but_empty: bool = False) -> Model:
    """Raises Problem, also for a parameter of ours that comes twice. `but_empty`: a browser's form sends what was left
    empty too; that is left out."""
    given = {name: request.query.getall(name) for name in model.model_fields if name in request.query}
    if but_empty:
        given = {name: filled for name, values in given.items() if (filled := [value for value in values if value])}
    if twice := [name for name, values in given.items() if len(values) > 1]:
        raise invalid(*(FieldError(field=name, detail="Given more than once.") for name in twice))
    return validated({name: values[0] for name, values in given.items()}, model)


def validated(values: Mapping[str, object], model: type[Model]) -> Model:
    """Raises Problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from error


async def form(request: web.Request, *, timeout_seconds: float) -> dict[str, list[str]]:
    """What a browser's form says; fields that were left empty are left out. Raises Problem."""
    raw = await _read(request, timeout_seconds=timeout_seconds)
    try:
        return parse_qs(raw.decode(), strict_parsing=bool(raw), errors="strict", max_num_fields=FORM_FIELDS_MAX)
    except ValueError as error:
        raise invalid(FieldError(field="body", detail="Not a form.")) from error


def last_event_id(request: web.Request) -> str | None:
    """The event after which a stream goes on, if the caller names one. Raises Problem."""
    given = request.headers.get(LAST_EVENT_HEADER)
    if given is not None and not _EVENT_ID.fullmatch(given):
        raise invalid(FieldError(field=LAST_EVENT_HEADER, detail="Not the id of an event of ours."))
    return given


def snapshot_id(request: web.Request) -> SnapshotId:
    """Raises SnapshotNotFound for what is no id: it names nothing, like an id that is not taken."""
    try:
        return _SNAPSHOT_ID.validate_python(request.match_info["snapshot_id"])
    except ValidationError:
        raise errors.SnapshotNotFound("There is no such snapshot.") from None


def server_id(request: web.Request) -> ServerId:
    """Raises ServerNotFound for what is no id."""
    try:
        return _SERVER_ID.validate_python(request.match_info["server_id"])
    except ValidationError:
        raise errors.ServerNotFound("There is no such server.") from None


def schedule_id(request: web.Request) -> ScheduleId:
    """Raises ScheduleNotFound for what is no id."""
    try:
        return _SCHEDULE_ID.validate_python(request.match_info["schedule_id"])
    except ValidationError:
        raise errors.ScheduleNotFound("There is no such schedule.") from None


def job_id(request: web.Request) -> JobId:
    """Raises JobNotFound for what is no id."""
    try:
        return _JOB_ID.validate_python(request.match_info["job_id"])
    except ValidationError:
        raise errors.JobNotFound("There is no such job.") from None


def account_id(text: str) -> AccountId | None:
    """The account that a header names, None where it names none."""
    try:
        return _ACCOUNT_ID.validate_python(text)
    except ValidationError:
        return None


async def _read(request: web.Request, *, timeout_seconds: float) -> bytes:
    encodings = [*request.headers.getall("Content-Encoding", []), *request.headers.getall("Transfer-Encoding", [])]
    if {encoding.strip().lower() for encoding in ",".join(encodings).split(",")} - {"", "identity", "chunked"}:
        raise invalid(FieldError(field="Content-Encoding", detail="Send the body as it is, not compressed."))
    try:
        async with asyncio.timeout(timeout_seconds):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise invalid(FieldError(field="body", detail=f"Larger than {BODY_MAX_BYTES} bytes.")) from error
    except web.RequestPayloadError as error:
        raise invalid(FieldError(field="body", detail="Does not follow its own encoding.")) from error
    except TimeoutError as error:
        late = f"The body did not arrive within {timeout_seconds:g} seconds."
        raise Problem(408, "request_timeout", late, headers={"Connection": "close"}) from error


def _invalid(error: ValidationError) -> Problem:
    return invalid(*map(_field_error, _found_in(error)))


def _found_in(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_context=False, include_input=False)[:_ERRORS_SHOWN]


def _field_error(error: ErrorDetails) -> FieldError:
    field = str(error["loc"][0])[:_FIELD_SHOWN] if error["loc"] else ""
    return FieldError(field=field or "body", detail=f"{error['msg']}.")
