"""The calls and objects of the OpenAPI document, as the pages show them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from api.document import samples
from api.document.guides import code, prose
from api.http.calls import EVENT_STREAM

Json = Mapping[str, Any]
_LIMITS = {"minimum": "at least", "maximum": "at most", "maxLength": "length at most", "default": "default"}
_HUGE = 2**53  # a limit at or above this only reflects the type


@dataclass(frozen=True, kw_only=True)
class Field:
    """A parameter, a header, or a key of an object."""

    name: str
    type: Markup
    text: Markup
    is_required: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: str
    text: Markup
    object: Markup  # the type of its body; "" if it has none
    headers: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Called:
    """A call, or a message that the service sends."""

    id: str
    title: str
    route: str
    text: Markup
    permission: str
    parameters: Sequence[Field]
    headers: Sequence[Field]
    body: Sequence[Field]
    answers: Sequence[Answer]
    errors: Sequence[str]
    samples: Markup
    example: Markup


@dataclass(frozen=True, kw_only=True)
class Described:
    """An object of the document."""

    name: str
    text: Markup
    words: Sequence[str]  # the values of an enumeration
    fields: Sequence[Field]


class Reference:
    """`homes`: the path of each object's page, by the object's name."""

    def __init__(self, document: Json, homes: Mapping[str, str]) -> None:
        self._document = document
        self._homes = homes

    def called(self, route: tuple[str, str], call: Json) -> Called:
        path, method = route
        parameters = [self._follow(parameter) for parameter in call["parameters"]]
        (text, _, permission) = call["description"].partition(" Permission: ")
        body = call.get("requestBody", {}).get("content", {}).get("application/json", {})
        return Called(
            id=call["operationId"],
            title=call["summary"],
            route=f"{method} {path}",
            text=prose(text),
            permission=permission.removesuffix("."),
            parameters=[self._parameter(each) for each in parameters if each["in"] != "header"],
            headers=[self._parameter(each) for each in parameters if each["in"] == "header"],
            body=self._fields(self._follow(body["schema"])) if body else (),
            answers=[
                self._answer(status, answer) for status, answer in call["responses"].items() if status[0] in "23d"
            ],
            errors=list(dict.fromkeys(self._errors(call))),
            samples=self._samples(path, method, call, parameters),
            example=self._example(call),
        )

    def message(self, event: str, call: Json) -> Called:
        body = call["requestBody"]["content"]["application/json"]
        (example,) = body["examples"].values()
        return Called(
            id=event,
            title=call["summary"],
            route=event,
            text=prose(call["description"]),
            permission="",
            parameters=(),
            headers=[self._parameter(each) for each in call["parameters"]],
            body=self._fields(self._follow(body["schema"])),
            answers=[self._answer(status, answer) for status, answer in call["responses"].items()],
            errors=(),
            samples=Markup(),
            example=code({"json": _pretty(example["value"])}, ""),
        )

    def described(self, name: str) -> Described:
        schema = self._document["components"]["schemas"][name]
        return Described(
            name=name,
            text=prose(schema.get("description", "")),
            words=schema.get("enum", ()),
            fields=self._fields(schema),
        )

    def _follow(self, thing: Json) -> Json:
        """The target of a reference; anything else unchanged."""
        if "$ref" not in thing:
            return thing
        found: Any = self._document
        for step in thing["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return dict(found)

    def _fields(self, schema: Json) -> list[Field]:
        required = schema.get("required", ())
        return [
            Field(name=name, type=self._type(each), text=prose(_text(each)), is_required=name in required)
            for name, each in schema.get("properties", {}).items()
        ]

    def _parameter(self, parameter: Json) -> Field:
        schema = parameter["schema"]
        text = prose(_text(parameter) or schema.get("description", ""))
        is_required = parameter.get("required", False)
        return Field(name=parameter["name"], type=self._type(schema), text=text, is_required=is_required)

    def _answer(self, status: str, answer: Json) -> Answer:
        media = next(iter(answer.get("content", {}).values()), None)
        return Answer(
            status=status,
            text=prose(answer["description"]),
            object=self._type(media["schema"]) if media else Markup(),
            headers=[name for name in answer.get("headers", {}) if name != "X-Request-Id"],
        )

    def _errors(self, call: Json) -> Iterator[str]:
        for answer in call["responses"].values():
            yield from answer.get("content", {}).get("application/problem+json", {}).get("examples", ())

    def _samples(self, path: str, method: str, call: Json, parameters: Sequence[Json]) -> Markup:
        return code(samples.all_of(self.sample(path, method, call, parameters)), f"sample-{call['operationId']}")

    def sample(self, path: str, method: str, call: Json, parameters: Sequence[Json]) -> samples.Sample:
        examples = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("examples", {})
        first = next(answer for status, answer in call["responses"].items() if status[0] == "2")
        return samples.Sample(
            method=method,
            path=samples.path_of(path, list(parameters)),
            takes_key=any(each["name"] == "Idempotency-Key" for each in parameters),
            needs_token=bool(call["security"]),
            body=next((example["value"] for example in examples.values()), None),
            is_stream=EVENT_STREAM in first.get("content", {}),
            has_answer="content" in first,
        )

    def _example(self, call: Json) -> Markup:
        """The first example of a successful response; for a call that creates something, the one with the created
        object."""
        for _, answer in sorted(call["responses"].items(), key=lambda answer: answer[0] != "201"):
            for media, content in answer.get("content", {}).items():
                for example in content.get("examples", {}).values():
                    value = self._follow(example)["value"]
                    return code({"json": value if media == EVENT_STREAM else _pretty(value)}, "")
        return Markup()

    def _type(self, schema: Json) -> Markup:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return Markup('<a href="{}#{}">{}</a>').format(self._homes[name], object_id(name), name)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return Markup(" or ").join(self._type(choice) for choice in schema[several])
        if "const" in schema:
            return Markup("<code>{}</code>").format(schema["const"])
        if "enum" in schema:
            return Markup(" or ").join(Markup("<code>{}</code>").format(word) for word in schema["enum"])
        if schema.get("type") == "array":
            return Markup("list of {}").format(self._type(schema.get("items", {})))
        kind = escape(schema.get("format") or schema.get("type", "anything"))
        return Markup(", ").join([kind, *_limits(schema)])


def object_id(name: str) -> str:
    return f"object-{name}"


def referred(thing: Any) -> Iterator[str]:
    """The names of the objects that a part of the document refers to."""
    if isinstance(thing, Mapping):
        target = str(thing.get("$ref", ""))
        if target.startswith("#/components/schemas/"):
            yield target.rpartition("/")[2]
        for each in thing.values():
            yield from referred(each)
    elif isinstance(thing, list):
        for each in thing:
            yield from referred(each)


def _limits(schema: Json) -> Iterator[Markup]:
    for key, word in _LIMITS.items():
        value = schema.get(key, "")
        if value != "" and not (isinstance(value, int) and abs(value) >= _HUGE):
            yield escape(f"{word} {json.dumps(value) if isinstance(value, bool) else value}")


def _text(thing: Json) -> str:
    return str(thing.get("description") or thing.get("schema", {}).get("description", ""))


def _pretty(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
