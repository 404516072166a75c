"""What callers send, as types. Whatever is not exactly right becomes a problem that names the field."""

import asyncio
import re
import unicodedata
from typing import Annotated

from aiohttp import web
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from api.problems import FieldError, Problem, invalid
from worker.jobs import errors
from worker.jobs.model import DESCRIPTION_MAX, NAME_MAX, AccountId, JobId, ServerId, SnapshotId

REQUEST_ID = web.RequestKey("request_id", str)

BODY_MAX_BYTES = 64 * 1024
ID_MAX = 2**63 - 1
PAGE_MAX = 10**9  # far beyond any list, and its offset is still exact in Redis's scripts
PAGE_SIZE_MAX = 500
_ERRORS_SHOWN = 20
_FIELD_SHOWN = 100  # characters: a key of the body is the caller's text

_ID = re.compile(r"[1-9][0-9]{0,18}")
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_DIGITS = re.compile(r"[0-9]{1,19}")  # int() itself would take " 1", "1_0" and other scripts' digits
_LAYOUT = frozenset("\t\n\r")
_NOT_XML = frozenset("\ufffe\uffff")


def _storable(text: str) -> str:
    """Descriptions are kept in XML: what XML can't hold is refused, and with it all that steers a terminal."""
    for character in text:
        if character not in _LAYOUT and (unicodedata.category(character) in {"Cc", "Cs"} or character in _NOT_XML):
            context = {"character": f"U+{ord(character):04X}"}
            raise PydanticCustomError("not_storable", "The character {character} is not allowed", context)
    return text


def _digits(text: object) -> int:
    if not isinstance(text, str) or not _DIGITS.fullmatch(text):
        raise PydanticCustomError("not_an_integer", "Input should be a whole number in digits, not too large")
    return int(text)


class CreateBody(BaseModel):
    """The body of a create."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    server_id: Annotated[ServerId, Field(ge=1, le=ID_MAX)]
    # a dollar sign of the validator's regex engine is the end of the text, never before a line break
    name: Annotated[str, StringConstraints(pattern=rf"^[A-Za-z0-9_-]{{1,{NAME_MAX}}}$")]
    description: Annotated[str, StringConstraints(max_length=DESCRIPTION_MAX), AfterValidator(_storable)] = ""


class ListQuery(BaseModel):
    """The query of the list. Parameters that we don't know are left alone."""

    model_config = ConfigDict(frozen=True)

    server_id: Annotated[ServerId | None, BeforeValidator(_digits), Field(ge=1, le=ID_MAX)] = None
    page: Annotated[int, BeforeValidator(_digits), Field(ge=1, le=PAGE_MAX)] = 1
    page_size: Annotated[int, BeforeValidator(_digits), Field(ge=1, le=PAGE_SIZE_MAX)] = 100

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.page_size


async def create_body(request: web.Request, *, timeout_seconds: float) -> CreateBody:
    """The body, whatever its Content-Type says: `curl -d` sends JSON as a form. Raises Problem."""
    return parse_create(await _read(request, timeout_seconds=timeout_seconds))


def parse_create(raw: bytes) -> CreateBody:
    """Raises Problem."""
    try:
        return CreateBody.model_validate_json(raw)
    except ValidationError as error:
        raise _invalid(error) from error


def list_query(request: web.Request) -> ListQuery:
    """Raises Problem, also for a parameter of ours that comes twice."""
    given = {name: request.query.getall(name) for name in ListQuery.model_fields if name in request.query}
    if twice := [name for name, values in given.items() if len(values) > 1]:
        raise invalid(*(FieldError(field=name, detail="Given more than once.") for name in twice))
    try:
        return ListQuery.model_validate({name: values[0] for name, values in given.items()})
    except ValidationError as error:
        raise _invalid(error) from error


def is_dry_run(request: web.Request) -> bool:
    """Whether only the checks are asked for. Raises Problem for what is neither true nor false."""
    given = request.query.getall("dry_run", ["false"])
    if len(given) > 1 or given[0] not in {"true", "false"}:
        raise invalid(FieldError(field="dry_run", detail="Must be true or false, and given once."))
    return given[0] == "true"


def snapshot_id(request: web.Request) -> SnapshotId:
    """Raises SnapshotNotFound for what is no id: it names nothing, like an id that is not taken."""
    text = request.match_info["snapshot_id"]
    if not _ID.fullmatch(text) or int(text) > ID_MAX:
        raise errors.SnapshotNotFound("There is no such snapshot.")
    return SnapshotId(int(text))


def job_id(request: web.Request) -> JobId:
    """Raises JobNotFound for what is no id."""
    text = request.match_info["job_id"]
    if not _JOB_ID.fullmatch(text):
        raise errors.JobNotFound("There is no such job.")
    return JobId(text)


def account_id(text: str) -> AccountId | None:
    """The account that a header names, None where it names none."""
    return AccountId(int(text)) if _ID.fullmatch(text) and int(text) <= ID_MAX else None


async def _read(request: web.Request, *, timeout_seconds: float) -> bytes:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
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
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return invalid(*map(_field_error, found[:_ERRORS_SHOWN]))


def _field_error(error: ErrorDetails) -> FieldError:
    field = str(error["loc"][0])[:_FIELD_SHOWN] if error["loc"] else ""
    return FieldError(field=field or "body", detail=f"{error['msg']}.")
