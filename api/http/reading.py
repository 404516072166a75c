"""Parses what callers send. Each error becomes a problem that names the field."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from functools import cache
from typing import TypeVar
from urllib.parse import parse_qs

from aiohttp import web
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from api.http import rules
from api.http.fields import NOW, AccountIdInHeader, PathId, ReasonBody
from api.http.marks import FROM_STRANGER, IDEMPOTENCY, REASON, TOKEN
from api.http.problems import FieldError, Problem, invalid
from api.http.rules import ERRORS_MAX, FIELD_MAX, refused
from worker.store.access.tokens import Token
from worker.store.calls import Idempotency
from worker.store.model import AccountId

BODY_SECONDS = web.AppKey("body_seconds", float)  # how long a client may take to send a body
CELL_TIME = web.AppKey[Callable[[], datetime]]("cell_time")
KEY_HEADER = "Idempotency-Key"
LAST_EVENT_HEADER = "Last-Event-ID"
BODY_MAX_BYTES = 64 * 1024
FORM_FIELDS_MAX = 1000

_UNCOMPRESSED = frozenset({"", "identity", "chunked"})
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_ACCOUNT_ID: TypeAdapter[AccountId] = TypeAdapter(AccountIdInHeader)

Id = TypeVar("Id")
Model = TypeVar("Model", bound=BaseModel)


class NoBody(BaseModel):
    """The body of a call that takes none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def too_large() -> Problem:
    return Problem(413, "content_too_large", f"The body must be at most {BODY_MAX_BYTES} bytes.")


def too_large_to_be_valid() -> Problem:
    """For a call for which the public contract allows only 400."""
    return invalid(FieldError(field="body", detail=f"Must be at most {BODY_MAX_BYTES} bytes."))


async def body(request: web.Request, model: type[Model], *, if_too_large: Callable[[], Problem] = too_large) -> Model:
    """The parsed body. Ignores the Content-Type, because `curl -d` sends JSON as a form. Raises Problem."""
    return parse(await _read(request, if_too_large), model, context=at_cell_time(request))


def at_cell_time(request: web.Request) -> Mapping[str, object]:
    """The context of a validation in which the time of the cell decides what is in the future."""
    return {NOW: request.app[CELL_TIME]}


async def ensure_no_body(request: web.Request, query: type[BaseModel] | None) -> None:
    """Raises Problem unless the body is empty or `{}`: a caller who sends `{"dry_run": true}` must not
    start the real job. `query`: the call's query parameters, None if it has none."""
    if not request.body_exists:
        return
    raw = (await _read(request)).strip()
    if not raw:
        return
    try:
        NoBody.model_validate_json(raw)
    except ValidationError as error:
        known = query.model_fields if query else {}
        raise invalid(*(_unexpected(found, known) for found in rules.found_in(error))) from error


def _unexpected(error: ErrorDetails, known: Collection[str]) -> FieldError:
    if error["type"] != "extra_forbidden":
        return FieldError(field="body", detail="This call takes no body. Send an empty body or {}.")
    field = str(error["loc"][0])
    where = f" Send it as the query parameter {field}." if field in known else ""
    return FieldError(field=field[:FIELD_MAX] or "body", detail=f"This call takes no fields in its body.{where}")


def parse(raw: bytes, model: type[Model], *, context: Mapping[str, object] | None = None) -> Model:
    """Raises Problem."""
    try:
        return model.model_validate_json(raw, context=context)
    except ValidationError as error:
        raise refused(error, model, raw) from error


def validated(
    values: Mapping[str, object], model: type[Model], *, context: Mapping[str, object] | None = None
) -> Model:
    """`context`: additional input of validators. Raises Problem."""
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        raise refused(error, model) from error


def idempotency(request: web.Request, content: BaseModel | None = None, *, owner: str = "") -> Idempotency | None:
    """The Idempotency-Key of a POST, None if it has none. `content`: its body, if it has one. `owner`: who owns the
    key, if not the account. Raises Problem."""
    given = request.headers.getall(KEY_HEADER, [])
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise invalid(FieldError(field=KEY_HEADER, detail="Must be one key of 1 to 255 visible ASCII characters."))
    asked = [request.method, request.rel_url.raw_path, request.rel_url.raw_query_string]
    asked.append(content.model_dump_json() if content else "")
    key = Idempotency(key=_digest(given[0]), fingerprint=_digest("\n".join(asked)), owner=owner)
    request[IDEMPOTENCY] = key
    return key


def operator_key(request: web.Request, token: Token, content: BaseModel | None = None) -> Idempotency | None:
    """The Idempotency-Key of an operator's POST: operators have no account, so the token owns the key. Raises
    Problem."""
    return idempotency(request, content, owner=f"token:{token.id}")


async def reason(request: web.Request) -> ReasonBody:
    """The operator's reason, which the audit log records. Raises Problem."""
    given = await body(request, ReasonBody)
    request[REASON] = given.reason
    return given


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ensure_known_query(request: web.Request, model: type[BaseModel] | None) -> None:
    """Raises Problem for a query parameter that the call does not have: a misspelled `dry_run` must not start
    the real job. `model`: the call's query, None if it has none."""
    if not request.query_string:
        return
    known = list(model.model_fields) if model else []
    unknown = [name for name in dict.fromkeys(request.query) if name not in known][:ERRORS_MAX]
    if unknown:
        detail = f"Known parameters: {', '.join(known) or 'none'}."
        raise invalid(
            *(
                FieldError(
                    field=name[:FIELD_MAX] or "query",
                    detail=f"Unknown query parameter.{rules.meant(name, known)} {detail}",
                )
                for name in unknown
            )
        )


def ensure_no_precondition(request: web.Request) -> None:
    """Raises Problem for an If-Match other than `*`, which only requires that the resource exists: a client must not
    believe that its ETag was compared. The ETags are weak, and a weak one never matches (RFC 9110)."""
    if "If-Match" not in request.headers:
        return
    given = ",".join(request.headers.getall("If-Match")).strip()
    if given not in {"", "*"}:
        raise Problem(412, "precondition_failed", "If-Match is not supported. Nothing was changed.")


def query(
    request: web.Request,
    model: type[Model],
    *,
    skip_empty: bool = False,
    context: Mapping[str, object] | None = None,
) -> Model:
    """The parsed query. Raises Problem, also for a parameter that is given twice. `skip_empty`: ignore empty
    parameters, which a browser sends for empty fields of a form. `context`: additional input of validators."""
    if not request.query_string and not _requires_any(model):
        empty: Model = _without_any(model)
        return empty
    given = {name: request.query.getall(name) for name in model.model_fields if name in request.query}
    if skip_empty:
        given = {name: filled for name, values in given.items() if (filled := [value for value in values if value])}
    if twice := [name for name, values in given.items() if len(values) > 1]:
        raise invalid(*(FieldError(field=name, detail="Must not be given more than once.") for name in twice))
    return validated({name: values[0] for name, values in given.items()}, model, context=context)


@cache
def _requires_any(model: type[BaseModel]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


@cache
def _without_any(model: type[Model]) -> Model:
    """The query of a call without parameters."""
    return model.model_validate({})


async def form(request: web.Request) -> dict[str, list[str]]:
    """The fields of a browser's form, without the empty ones. Raises Problem."""
    raw = await _read(request)
    try:
        return parse_qs(raw.decode(), strict_parsing=bool(raw), errors="strict", max_num_fields=FORM_FIELDS_MAX)
    except ValueError as error:
        raise invalid(FieldError(field="body", detail="Must be an HTML form.")) from error


def last_event_id(request: web.Request) -> str | None:
    """The ID of the event after which the stream resumes, None if the caller sends none. Any text is accepted, because
    a browser never reconnects after a 400."""
    return request.headers.get(LAST_EVENT_HEADER)


def in_path(request: web.Request, path_id: PathId[Id]) -> Id:
    """The ID in the path. Raises its `not_found` for text that is not an ID."""
    try:
        return path_id.adapter.validate_python(request.match_info[path_id.name])
    except ValidationError:
        raise path_id.not_found(f"There is no such {path_id.name.removesuffix('_id')}.") from None


def account_id(text: str) -> AccountId | None:
    """The account that a header names, None if it names none."""
    try:
        return _ACCOUNT_ID.validate_python(text)
    except ValidationError:
        return None


async def _read(request: web.Request, if_too_large: Callable[[], Problem] = too_large) -> bytes:
    seconds = request.app[BODY_SECONDS]
    encodings = [*request.headers.getall("Content-Encoding", ()), *request.headers.getall("Transfer-Encoding", ())]
    if encodings and {encoding.strip().lower() for encoding in ",".join(encodings).split(",")} - _UNCOMPRESSED:
        raise invalid(FieldError(field="Content-Encoding", detail="Send the body uncompressed."))
    try:
        if request.content.is_eof():  # it arrived with the headers
            raw = request.content.read_nowait()
            if len(raw) > BODY_MAX_BYTES:
                raise if_too_large()
            return raw
        request[FROM_STRANGER] = TOKEN not in request
        async with asyncio.timeout(seconds):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise if_too_large() from error
    except web.RequestPayloadError as error:
        raise invalid(FieldError(field="body", detail="Does not match its Transfer-Encoding.")) from error
    except TimeoutError as error:
        late = f"The body did not arrive within {seconds:g} seconds."
        raise Problem(408, "request_timeout", late, headers={"Connection": "close"}) from error
    finally:
        request[FROM_STRANGER] = False
