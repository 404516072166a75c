"""The API's document (OpenAPI 3.1), made from the table of its calls and from the models of their bodies.

`python -m api.document.openapi` prints it.
"""

import json
import re
import sys
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from api import bodies, examples
from api.http import problems
from api.http.calls import Call, Link, Reply
from api.http.problems import Problem, ProblemDocument
from api.http.reading import (
    KEY_HEADER,
    LAST_EVENT_HEADER,
    AccountIdInHeader,
    JobIdInPath,
    ScheduleIdInPath,
    ServerIdInPath,
    SnapshotIdInPath,
)
from api.operations import OPERATIONS, PROBES, Probing
from api.ops_operations import OPS_OPERATIONS
from api.ops_requests import NodeInPath, TokenIdInPath
from api.webhooks.bodies import WebhookIdInPath
from worker.store import errors
from worker.store.access.tokens import Permission
from worker.store.model import SnapshotStatus

PATH = "/api/v1/openapi.json"
VERSION = "1.0.0"  # of the API, not of the program

Json = dict[str, Any]
AnyCall = Call[Any, Any]

CALLS: tuple[AnyCall, ...] = (*OPERATIONS, *OPS_OPERATIONS)

_REFS = "#/components/schemas/{model}"
_TEXT = """\
Snapshots of servers, for a quick way back before a risky operation. They lie on the same storage as the server: backups
they are not.

Each call carries a token. What takes time is a job, named by the headers `Operation-Location` and `X-Job-Id`, and
followed at `/api/v1/jobs/{job_id}/`. What is not done is told as a problem (RFC 9457) with a stable `code`; codes and
keys may be added, so a client takes an unknown one like the others of its status. Times are UTC, RFC 3339, whole
seconds."""

_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}  # RFC 9110's; Python has them from 3.13 on
_STRING: Json = {"type": "string"}
_HEADERS: dict[str, Json] = {
    "X-Request-Id": {
        "description": "the request's own if it was sane, else a new one; in every log line",
        "schema": _STRING,
    },
    "Location": {
        "description": "path of what was made or is restored",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Operation-Location": {"description": "path of the job", "schema": {"type": "string", "format": "uri-reference"}},
    "X-Job-Id": {"description": "the job's `id`", "schema": TypeAdapter(JobIdInPath).json_schema()},
    "Link": {"description": "the pages `first`, `prev`, `next` and `last` (RFC 8288)", "schema": _STRING},
    "Retry-After": {"description": "seconds after which to try again", "schema": {"type": "integer", "minimum": 1}},
    "ETag": {"description": "what the answer says; for `If-None-Match`", "schema": _STRING},
    "RateLimit-Policy": {"description": "`q` calls in `w` seconds, by the draft of the IETF", "schema": _STRING},
    "RateLimit": {"description": "`r` calls are left; there is one more in `t` seconds", "schema": _STRING},
    "WWW-Authenticate": {"description": "the scheme, and what is wrong with the token", "schema": _STRING},
}
_PARAMETERS: dict[str, Json] = {
    "X-Account-Id": {
        "in": "header",
        "description": "The account that a service token acts for; needed there, and elsewhere the token's own.",
        "schema": TypeAdapter(AccountIdInHeader).json_schema(),
    },
    "X-Request-Id": {
        "in": "header",
        "description": "Names the request in answers and logs: up to 64 letters, digits, `.`, `_`, `-`; else replaced.",
        "schema": _STRING,
    },
    KEY_HEADER: {
        "in": "header",
        "description": (
            "1 to 255 visible ASCII characters of the caller's own. Asked again with the same key within 24 hours, an"
            " accepted request answers as it did the first time, and nothing is done twice."
        ),
        "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,255}$"},
    },
    LAST_EVENT_HEADER: {
        "in": "header",
        "description": "The `id` of the last event that the caller has seen.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,18}-[0-9]{1,18}$"},
    },
    "If-None-Match": {
        "in": "header",
        "description": "An `ETag` that was answered before: 304 where nothing has changed since.",
        "schema": _STRING,
    },
    "server_id": {"in": "path", "required": True, "schema": TypeAdapter(ServerIdInPath).json_schema()},
    "snapshot_id": {"in": "path", "required": True, "schema": TypeAdapter(SnapshotIdInPath).json_schema()},
    "schedule_id": {"in": "path", "required": True, "schema": TypeAdapter(ScheduleIdInPath).json_schema()},
    "node": {"in": "path", "required": True, "schema": TypeAdapter(NodeInPath).json_schema()},
    "token_id": {"in": "path", "required": True, "schema": TypeAdapter(TokenIdInPath).json_schema()},
    "webhook_id": {"in": "path", "required": True, "schema": TypeAdapter(WebhookIdInPath).json_schema()},
    "job_id": {"in": "path", "required": True, "schema": TypeAdapter(JobIdInPath).json_schema()},
}
_NOT_MODIFIED: Json = {
    "description": "Nothing has changed: the caller has this answer.",
    "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in ("ETag", "X-Request-Id")},
}


class _Schemas(GenerateJsonSchema):
    """Without a title on every key: it would only say the key again."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 # pydantic's signature
        return False


def document() -> Json:
    """The whole document, as JSON's own types."""
    paths: dict[str, Json] = {}
    for operation in CALLS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
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
        "servers": [{"url": "/", "description": "where this document came from"}],
        "tags": [
            {"name": "snapshots", "description": "The snapshots of an account's servers."},
            {"name": "jobs", "description": "The work that was accepted, and how to take it back."},
            {"name": "servers", "description": "The servers themselves, as far as snapshots go."},
            {"name": "schedules", "description": "Snapshots that are made without anyone asking each time."},
            {"name": "webhooks", "description": "Calls of the account's own, which tell of its jobs."},
            {"name": "operators", "description": "All accounts and all nodes, for those that run the service."},
            {"name": "service", "description": "For those that run the service, and for programs. Without a token."},
        ],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "parameters": {name: {"name": name, **parameter} for name, parameter in _PARAMETERS.items()},
            "headers": _HEADERS,
            "examples": {problem.code: _problem_example(problem) for problem in _problems()},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An access token, with " + " and ".join(f"`{word}`" for word in Permission) + ".",
                }
            },
        },
    }


def text(whole: Json) -> str:
    """The document as it is committed: the same for the same program."""
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _schemas() -> Json:
    answers = {
        type(example) for call in CALLS for reply in call.replies.values() for example in reply.examples.values()
    }
    asked: set[tuple[type[BaseModel], JsonSchemaMode]] = {(model, "serialization") for model in answers}
    asked |= {(bodies.Health, "serialization"), (ProblemDocument, "serialization")}
    asked |= {(call.body, "validation") for call in CALLS if call.body is not None}
    in_order = sorted(asked, key=lambda pair: pair[0].__name__)
    _, found = models_json_schema(in_order, ref_template=_REFS, schema_generator=_Schemas)
    schemas: Json = found["$defs"]
    for schema in schemas.values():
        if "enum" in schema:
            schema.pop("description", None)  # what it says is for us
    # shown to nobody: for the customer such a snapshot is gone
    schemas["SnapshotStatus"]["enum"].remove(SnapshotStatus.DELETING)
    schemas["SnapshotStatus"]["description"] = (
        "It can be restored once it is `completed`. A `failed` one can't be: it stays listed for 7 days or until it is"
        " deleted, holds no slot and gives its name back, so another one may have the same name."
    )
    return schemas


def _operation(operation: AnyCall) -> Json:
    said: Json = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": f"{operation.text} Permission: `{operation.permission}`.",
        "security": [{"token": [operation.permission]}],
        "parameters": _parameters(operation),
    }
    if operation.body is not None:
        said["requestBody"] = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _ref(operation.body),
                    "examples": {name: {"value": _asked(value)} for name, value in operation.body_examples.items()},
                }
            },
        }
    replies = {
        str(status): _reply(reply, "RateLimit-Policy", "RateLimit")
        for status, reply in sorted(operation.replies.items())
    }
    if operation.is_cacheable:
        replies["200"]["headers"]["ETag"] = _component("headers", "ETag")
        replies["304"] = _NOT_MODIFIED
    return said | {"responses": replies | _refused(_problems_of(operation))}


def _probe(probe: Probing) -> Json:
    refused = [_of(refusal, "GET") for refusal in probe.refusals]
    return {
        "operationId": probe.id,
        "tags": ["service"],
        "summary": probe.summary,
        "description": probe.text,
        "security": [],
        "parameters": [_component("parameters", "X-Request-Id")],
        "responses": {"200": _reply(Reply(text="Yes.", examples={"ok": examples.HEALTH}))}
        | _refused([*refused, examples.OURS]),
    }


def _itself() -> Json:
    return {
        "operationId": "show_document",
        "tags": ["service"],
        "summary": "Show this document",
        "description": "The API's document, in OpenAPI 3.1. For people: `/docs`.",
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
        | _refused([examples.OURS]),
    }


def _parameters(operation: AnyCall) -> list[Json]:
    in_path = re.findall(r"{(\w+)}", operation.path)
    in_query: list[Json] = []
    if operation.query is not None:
        for name, schema in operation.query.model_json_schema(schema_generator=_Schemas)["properties"].items():
            given = _never_null(schema)
            text = given.pop("description", None)
            in_query.append({"name": name, "in": "query", **({"description": text} if text else {}), "schema": given})
    for_method = [KEY_HEADER] if operation.takes_key else ["If-None-Match"] if operation.is_cacheable else []
    account = [] if operation.permission is Permission.OPERATOR else ["X-Account-Id"]
    shared = [*in_path, *operation.headers, *for_method, *account, "X-Request-Id"]
    return [*in_query, *(_component("parameters", name) for name in shared)]


def _never_null(schema: Json) -> Json:
    """A parameter that may be left out: in a query there is no null."""
    if "anyOf" not in schema:
        return schema
    (only,) = (choice for choice in schema["anyOf"] if choice != {"type": "null"})
    return dict(only)


def _reply(reply: Reply, *more_headers: str) -> Json:
    headers = (*reply.headers, *more_headers, "X-Request-Id")
    said: Json = {
        "description": reply.text,
        "headers": {name: _component("headers", name) for name in headers},
    }
    if reply.examples:
        models = list(dict.fromkeys(type(example) for example in reply.examples.values()))
        refs = [_ref(model) for model in models]
        said["content"] = {
            reply.media: {
                "schema": refs[0] if len(refs) == 1 else {"anyOf": refs},
                "examples": {name: {"value": _value(example)} for name, example in reply.examples.items()},
            }
        }
    if reply.links:
        said["links"] = {link.to: _link(link) for link in reply.links}
    return said


def _link(link: Link) -> Json:
    return {"operationId": link.to, "parameters": dict(link.parameters), "description": link.text}


def _problems() -> list[Problem]:
    """One of each code."""
    refused = [problems.of_refusal(refusal, method="POST") for refusal in examples.REFUSALS]
    return [examples.INVALID, *examples.OF_THE_CALLER, examples.LIMITED, *refused, examples.LATE, examples.OURS]


def _problems_of(operation: AnyCall) -> list[Problem]:
    refusals = (*operation.refusals, errors.StoreUnavailable)
    if operation.takes_key:
        refusals = (*refusals, errors.IdempotencyKeyReused)
    late = [examples.LATE] if operation.changes else []  # a body that is refused has to arrive first
    refused = [_of(refusal, operation.method) for refusal in refusals]
    return [examples.INVALID, *examples.OF_THE_CALLER, examples.LIMITED, *refused, *late, examples.OURS]


def _of(refusal: type[errors.Refused], method: str) -> Problem:
    (example,) = (example for example in examples.REFUSALS if type(example) is refusal)
    return problems.of_refusal(example, method=method)


def _refused(found: Iterable[Problem]) -> Json:
    """The answers that are problems, by their status, each with the codes that it may have."""
    by_status: dict[int, list[Problem]] = {}
    for problem in found:
        by_status.setdefault(problem.status, []).append(problem)
    return {str(status): _problem_reply(status, by_status[status]) for status in sorted(by_status)}


def _problem_reply(status: int, found: list[Problem]) -> Json:
    codes = {problem.code: problem for problem in found}
    phrase = _PHRASES.get(status, HTTPStatus(status).phrase)
    headers = ["X-Request-Id", *(name for name in _HEADERS if any(name in problem.headers for problem in found))]
    headers += ["WWW-Authenticate"] if status == HTTPStatus.UNAUTHORIZED else []
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
    """The code's example, in place where this call answers with another status than the others do."""
    usual = {each.code: each.status for each in _problems()}
    if problem.status != usual[problem.code]:
        return _problem_example(problem)
    return _component("examples", problem.code)


def _problem_example(problem: Problem) -> Json:
    return {"summary": problem.detail, "value": _value(problems.document(problem, request_id=examples.REQUEST_ID))}


def _value(example: BaseModel) -> Any:
    return example.model_dump(mode="json")


def _asked(example: BaseModel) -> Any:
    return example.model_dump(mode="json", exclude_unset=True)


def _ref(model: type[BaseModel]) -> Json:
    return _component("schemas", model.__name__)


def _component(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


if __name__ == "__main__":
    sys.stdout.write(text(document()))
