"""The OpenAPI 3.1 document of the API, generated from its calls and from the models of their bodies."""

import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from api.document import messages, refusals
from api.document.messages import MESSAGES, Message
from api.document.served import PATH
from api.http import problems
from api.http.calls import Call, Link, Reply, prose
from api.http.fields import AccountIdInHeader, JobIdInPath
from api.http.probes import PROBES, Probe
from api.http.problems import Problem, ProblemDocument
from api.http.reading import KEY_HEADER, LAST_EVENT_HEADER
from api.jobs.examples import REQUEST_ID
from api.resources import CALLS, CUSTOMERS, RESOURCES
from worker.store import errors
from worker.store.access.tokens import OPERATORS, Permission, granting
from worker.store.model import SnapshotStatus

VERSION = version("vps-snapshots")

Json = dict[str, Any]
AnyCall = Call[Any]

_REFS = "#/components/schemas/{model}"
_TEXT = """\
Snapshots of servers, so that a risky change can be rolled back quickly. Snapshots share the server's storage; they are
not backups.

Each call needs a token. Work that takes time is a job: the headers `Operation-Location` and `X-Job-Id` name it; follow
it at `/api/v1/jobs/{job_id}/`. Errors are returned as problem documents (RFC 9457) with a stable `code`. Codes, keys
and the values of an `x-extensible-enum` may be added, so a client must treat an unknown code like others of the
same status, ignore unknown keys, and show an unknown value unchanged. Times are UTC, RFC 3339, whole seconds."""

_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}  # RFC 9110's; Python has them from 3.13 on
_TOO_LARGE_IS_INVALID = {"create_snapshot"}  # the public contract allows only 400 for this call
_STRING: Json = {"type": "string"}
_HEADERS: dict[str, Json] = {
    "X-Request-Id": {
        "description": "the request's own ID if it is valid, otherwise a new one; in every log line of the request",
        "schema": _STRING,
    },
    "Location": {
        "description": "path of the resource that was created or is being restored",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Operation-Location": {"description": "path of the job", "schema": {"type": "string", "format": "uri-reference"}},
    "X-Job-Id": {"description": "ID of the job", "schema": TypeAdapter(JobIdInPath).json_schema()},
    "Link": {"description": "the pages `first`, `prev`, `next` and `last` (RFC 8288)", "schema": _STRING},
    "Retry-After": {"description": "seconds to wait before a retry", "schema": {"type": "integer", "minimum": 1}},
    "X-Limit": {"description": "the limit that is reached", "schema": {"type": "integer", "minimum": 0}},
    "ETag": {"description": "identifies the content of the response; for `If-None-Match`", "schema": _STRING},
    "RateLimit-Policy": {"description": "`q` calls in `w` seconds, according to an IETF draft", "schema": _STRING},
    "RateLimit": {"description": "`r` calls are left; one more is allowed in `t` seconds", "schema": _STRING},
    "Idempotent-Replayed": {
        "description": "`true`: this is the response to an earlier request with the same `Idempotency-Key`",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "WWW-Authenticate": {"description": "the authentication scheme and the error", "schema": _STRING},
}
_HEADER_PARAMETERS: dict[str, Json] = {
    "X-Account-Id": {
        "in": "header",
        "description": "The account that a service token acts for. Any other token may name only its own account.",
        "schema": TypeAdapter(AccountIdInHeader).json_schema(),
    },
    "X-Request-Id": {
        "in": "header",
        "description": "ID of the request: 1 to 64 letters, digits, `.`, `_`, `-`; any other value is replaced.",
        "schema": _STRING,
    },
    KEY_HEADER: {
        "in": "header",
        "description": (
            "1 to 255 visible ASCII characters, chosen by the caller. An accepted request that is repeated with the"
            " same key within 24 hours returns the same response and has no further effect."
        ),
        "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,255}$"},
    },
    LAST_EVENT_HEADER: {
        "in": "header",
        "description": "ID of the last event that the caller received. For any other text, the stream "
        "sends a `missed` event.",
        "schema": _STRING,
    },
    "If-None-Match": {
        "in": "header",
        "description": "`ETag` of an earlier response. If nothing has changed since, the response is 304.",
        "schema": _STRING,
    },
}
_NOT_MODIFIED: Json = {
    "description": "Nothing has changed since the earlier response.",
    "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in ("ETag", "X-Request-Id")},
}


class _Schemas(GenerateJsonSchema):
    """Generates schemas without titles, which would only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 # pydantic's signature
        return False


def document() -> Json:
    """The whole document, as JSON types."""
    paths: dict[str, Json] = {}
    for call in CALLS:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call)
    for probe in PROBES:
        paths[probe.path] = {"get": _probe(probe)}
    paths[PATH] = {"get": _itself()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "VPS snapshots",
            "version": VERSION,
            "summary": "Create, restore and delete snapshots of servers.",
            "description": _TEXT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "the host of this document"}],
        "tags": [
            *({"name": of.table.tag, "description": of.table.about} for of in CUSTOMERS if of.table.about),
            {"name": "operators", "description": "Calls for operators, which cover all accounts and nodes."},
            {"name": "service", "description": "Health checks and this document. These calls need no token."},
        ],
        "security": [{"token": []}],
        "paths": paths,
        "webhooks": {message.event: {"post": _message(message)} for message in MESSAGES},
        "components": {
            "schemas": _schemas(),
            "parameters": {name: {"name": name, **parameter} for name, parameter in _parameters().items()},
            "headers": _HEADERS,
            "examples": {problem.code: _problem_example(problem) for problem in _problems()},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An access token, with one or more of "
                    + ", ".join(f"`{word}`" for word in Permission)
                    + ".",
                }
            },
        },
    }


def text(whole: Json) -> str:
    """The document as it is committed; the text is deterministic."""
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _schemas() -> Json:
    answers = {type(example) for call in CALLS for reply in call.replies for example in reply.examples.values()}
    asked: set[tuple[type[BaseModel], JsonSchemaMode]] = {(model, "serialization") for model in answers}
    asked |= {(type(probe.example), "serialization") for probe in PROBES}
    asked.add((ProblemDocument, "serialization"))
    asked |= {(type(message.example), "serialization") for message in MESSAGES}
    asked |= {(call.body, "validation") for call in CALLS if call.body is not None}
    in_order = sorted(asked, key=lambda pair: pair[0].__name__)
    _, found = models_json_schema(in_order, ref_template=_REFS, schema_generator=_Schemas)
    schemas: Json = found["$defs"]
    refs = json.dumps(schemas)
    for words in [name for name in schemas if "enum" in schemas[name] and f'/{name}"' not in refs]:
        del schemas[words]  # responses only use its open form, `more_may_come`
    for schema in schemas.values():
        if "enum" in schema:
            schema.pop("description", None)  # the enum's docstring is for developers
    # never returned: for the customer, such a snapshot is gone
    schemas["SnapshotStatus"]["enum"].remove(SnapshotStatus.DELETING)
    schemas["SnapshotStatus"]["description"] = (
        "Only a `completed` snapshot can be restored. A `failed` snapshot is listed for 7 days or until it is deleted;"
        " it does not count toward the limit, and another snapshot can use its name."
    )
    return schemas


def _operation(call: AnyCall) -> Json:
    words = " or ".join(f"`{each}`" for each in granting(call.permission))
    operation: Json = {
        "operationId": call.id,
        "tags": [call.tag],
        "summary": call.summary,
        "description": f"{call.text} Permission: {words}.",
        "security": [{"token": [each]} for each in granting(call.permission)],
        "parameters": _parameters_of(call),
    }
    if call.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _ref(call.body),
                    "examples": {name: {"value": _asked(value)} for name, value in call.examples.items()},
                }
            },
        }
    replies = {
        str(reply.status): _reply(reply, *_headers_of(call), "RateLimit-Policy", "RateLimit")
        for reply in sorted(call.replies, key=lambda reply: reply.status)
    }
    if call.is_cacheable:
        replies["200"]["headers"]["ETag"] = _component("headers", "ETag")
        replies["304"] = _NOT_MODIFIED
    return operation | {"responses": replies | _refused(_problems_of(call))}


def _headers_of(call: AnyCall) -> list[str]:
    return (["Link"] if call.is_paged else []) + (["Idempotent-Replayed"] if call.takes_key else [])


def _probe(probe: Probe) -> Json:
    summary, text = prose(probe.handle)
    refused = [_of(refusal, "GET") for refusal in probe.refusals]
    return {
        "operationId": probe.handle.__name__,
        "tags": ["service"],
        "summary": summary,
        "description": text,
        "security": [],
        "parameters": [_component("parameters", "X-Request-Id")],
        "responses": {"200": _reply(Reply(200, {"ok": probe.example}, "OK."))}
        | _refused([*refused, refusals.INTERNAL]),
    }


def _message(message: Message) -> Json:
    return {
        "operationId": f"receive_{message.event.replace('.', '_')}",
        "tags": ["webhooks"],
        "summary": message.summary,
        "description": message.text,
        "security": [],
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text, "schema": _STRING}
            for name, text in messages.HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _ref(type(message.example)),
                    "examples": {message.event.replace(".", "_"): {"value": _value(message.example)}},
                }
            },
        },
        "responses": {status: {"description": text} for status, text in messages.ANSWERS.items()},
    }


def _itself() -> Json:
    return {
        "operationId": "show_document",
        "tags": ["service"],
        "summary": "Show this document",
        "description": "The OpenAPI 3.1 document of the API. `/docs` shows it as HTML.",
        "security": [],
        "parameters": [_component("parameters", name) for name in ("If-None-Match", "X-Request-Id")],
        "responses": {
            "200": {
                "description": "This document.",
                "headers": {name: _component("headers", name) for name in ("ETag", "X-Request-Id")},
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            "304": _NOT_MODIFIED,
        }
        | _refused([refusals.INTERNAL]),
    }


def _parameters() -> Json:
    in_path = {path_id.name: path_id.adapter for resource in RESOURCES for path_id in resource.table.path_ids}
    return _HEADER_PARAMETERS | {
        name: {"in": "path", "required": True, "schema": adapter.json_schema()} for name, adapter in in_path.items()
    }


def _parameters_of(call: AnyCall) -> list[Json]:
    in_path = re.findall(r"{(\w+)}", call.path)
    in_query: list[Json] = []
    if call.query is not None:
        model = call.query.model_json_schema(schema_generator=_Schemas)
        for name, schema in model["properties"].items():
            given = _never_null(schema)
            text = given.pop("description", None)
            more = {"description": text} if text else {}
            more |= {"required": True} if name in model.get("required", ()) else {}
            in_query.append({"name": name, "in": "query", **more, "schema": given})
    for_method = [KEY_HEADER] if call.takes_key else ["If-None-Match"] if call.is_cacheable else []
    of_stream = [LAST_EVENT_HEADER] if call.is_stream else []
    account = [] if call.permission in OPERATORS else ["X-Account-Id"]
    shared = [*in_path, *of_stream, *for_method, *account, "X-Request-Id"]
    return [*in_query, *(_component("parameters", name) for name in shared)]


def _never_null(schema: Json) -> Json:
    """The schema of an optional parameter without null, which a query cannot express."""
    if "anyOf" not in schema:
        return schema
    (only,) = (choice for choice in schema["anyOf"] if choice != {"type": "null"})
    return dict(only)


def _reply(reply: Reply, *more_headers: str) -> Json:
    headers = (*reply.headers, *more_headers, "X-Request-Id")
    response: Json = {
        "description": reply.description,
        "headers": {name: _component("headers", name) for name in headers},
    }
    if reply.examples:
        models = list(dict.fromkeys(type(example) for example in reply.examples.values()))
        refs = [_ref(model) for model in models]
        response["content"] = {
            reply.media: {
                "schema": refs[0] if len(refs) == 1 else {"anyOf": refs},
                "examples": {name: {"value": _value(example)} for name, example in reply.examples.items()},
            }
        }
    if reply.links:
        response["links"] = {link.to: _link(link) for link in reply.links}
    return response


def _link(link: Link) -> Json:
    return {"operationId": link.to, "parameters": dict(link.parameters), "description": link.text}


def _problems() -> list[Problem]:
    """The problems, one for each code."""
    refused = [_of(kind, "POST") for kind in errors.REFUSALS]
    return [
        refusals.INVALID,
        *refusals.CALLERS,
        refusals.LIMITED,
        *refused,
        refusals.UNMATCHED,
        refusals.LATE,
        refusals.TOO_LARGE,
        refusals.INTERNAL,
    ]


def _problems_of(call: AnyCall) -> list[Problem]:
    kinds = (*call.refusals, errors.StoreUnavailable)
    if call.changes:
        kinds = (*kinds, errors.StoreReadOnly, errors.OutcomeUnknown)
    if call.takes_key:
        kinds = (*kinds, errors.IdempotencyKeyReused)
    if call.takes_key or "{" in call.path:
        kinds = (*kinds, errors.RecordUnreadable)  # the record that the path names, or the stored response of the key
    # the body must arrive before the call can be refused
    late = [refusals.UNMATCHED, refusals.LATE] if call.changes else []
    large = [refusals.TOO_LARGE] if call.changes and call.id not in _TOO_LARGE_IS_INVALID else []
    refused = [_of(refusal, call.method) for refusal in kinds]
    return [refusals.INVALID, *refusals.CALLERS, refusals.LIMITED, *refused, *late, *large, refusals.INTERNAL]


def _of(refusal: type[errors.Refused], method: str) -> Problem:
    return problems.of_refusal(errors.example(refusal), method=method)


def _refused(found: Iterable[Problem]) -> Json:
    """The problem responses by status, each with its possible codes."""
    by_status: dict[int, list[Problem]] = {}
    for problem in found:
        by_status.setdefault(problem.status, []).append(problem)
    return {str(status): _problem_reply(status, by_status[status]) for status in sorted(by_status)}


def _problem_reply(status: int, found: list[Problem]) -> Json:
    codes = {problem.code: problem for problem in found}
    phrase = _PHRASES.get(status, HTTPStatus(status).phrase)
    headers = ["X-Request-Id", *(name for name in _HEADERS if any(name in problem.headers for problem in found))]
    return {
        "description": f"{phrase}: {', '.join(f'`{code}`' for code in codes)}.",
        "headers": {name: _component("headers", name) for name in headers},
        "content": {
            "application/problem+json": {
                "schema": _ref(ProblemDocument),
                "examples": {code: _problem_ref(problem) for code, problem in codes.items()},
            }
        },
    }


def _problem_ref(problem: Problem) -> Json:
    """The code's example. It is written out if this call returns a different status for the code than other calls."""
    usual = {each.code: each.status for each in _problems()}
    if problem.status != usual[problem.code]:
        return _problem_example(problem)
    return _component("examples", problem.code)


def _problem_example(problem: Problem) -> Json:
    return {"summary": problem.detail, "value": _value(problems.document(problem, request_id=REQUEST_ID))}


def _value(example: BaseModel) -> Any:
    return example.model_dump(mode="json")


def _asked(example: BaseModel) -> Any:
    return example.model_dump(mode="json", exclude_unset=True)


def _ref(model: type[BaseModel]) -> Json:
    return _component("schemas", model.__name__)


def _component(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
