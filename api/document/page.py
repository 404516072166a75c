"""The OpenAPI document as an HTML page, without scripts and without resources from other hosts."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

PATH = "/docs"

Json = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); overflow: auto; padding: .7rem; }
table { border-collapse: collapse; margin: .5rem 0; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top; }
section { border-top: 1px solid var(--line); margin-top: 2rem; }
h3 code { background: var(--soft); padding: .1rem .4rem; }
summary { cursor: pointer; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# a second line of defense behind the escaping: nothing is loaded or run
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(document: Json, *, document_path: str) -> str:
    """The page of a document that `api.document.openapi` generated."""
    info = document["info"]
    calls = [(path, method, call) for path, item in document["paths"].items() for method, call in item.items()]
    contents = [
        _tag(
            "li", f'<a href="#{call["operationId"]}">{_code(f"{method.upper()} {path}")}</a> {escape(call["summary"])}'
        )
        for path, method, call in calls
    ]
    sections = [_call(document, path, method, call) for path, method, call in calls]
    models = [_model(name, schema) for name, schema in document["components"]["schemas"].items()]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            *(_tag("p", _prose(part)) for part in info["description"].split("\n\n")),
            _tag("p", f'For programs: <a href="{escape(document_path)}">{_code(document_path)}</a> (OpenAPI 3.1).'),
            _tag("ul", "".join(contents)),
            *sections,
            "<section><h2>Bodies</h2>",
            *models,
            "</section></body></html>",
        ]
    )


def _call(document: Json, path: str, method: str, call: Json) -> str:
    parts = [f'<section id="{call["operationId"]}"><h2>{escape(call["summary"])}</h2>']
    parts += [f"<h3>{_code(f'{method.upper()} {path}')}</h3>", _tag("p", _prose(call["description"]))]
    parameters = [_follow(document, parameter) for parameter in call["parameters"]]
    rows = [[_code(each["name"]), each["in"], _type(each["schema"]), _prose(_text(each))] for each in parameters]
    parts += [_table(["parameter", "in", "type", ""], rows)]
    if "requestBody" in call:
        parts += ["<h3>Body</h3>", _content(document, call["requestBody"]["content"])]
    parts += ["<h3>Responses</h3>"]
    parts += [_answer(document, status, answer) for status, answer in call["responses"].items()]
    return "\n".join([*parts, "</section>"])


def _answer(document: Json, status: str, answer: Json) -> str:
    rows = [
        [_code(name), _prose(_follow(document, header)["description"])] for name, header in answer["headers"].items()
    ]
    links = [
        [f'<a href="#{link["operationId"]}">{escape(name)}</a>', _prose(link["description"])]
        for name, link in answer.get("links", {}).items()
    ]
    inside = [_table(["header", ""], rows), _table(["next call", ""], links)]
    inside += [_content(document, answer["content"])] if "content" in answer else []
    return f"<details><summary>{_code(status)} {_prose(answer['description'])}</summary>{''.join(inside)}</details>"


def _content(document: Json, content: Json) -> str:
    parts = []
    for kind, media in content.items():
        parts += [_tag("p", f"{_code(kind)}: {_type(media['schema'])}")]
        for example in media.get("examples", {}).values():
            value = json.dumps(_follow(document, example)["value"], indent=2, ensure_ascii=False)
            parts += [f"<pre>{escape(value)}</pre>"]
    return "".join(parts)


def _model(name: str, schema: Json) -> str:
    head = f'<h3 id="schema-{escape(name)}">{_code(name)}</h3>{_tag("p", _prose(schema.get("description", "")))}'
    if "enum" in schema:
        return head + _tag("p", ", ".join(_code(word) for word in schema["enum"]))
    required = schema.get("required", ())
    rows = [
        [_code(key), _type(value), "" if key in required else "optional", _prose(_text(value))]
        for key, value in schema["properties"].items()
    ]
    return head + _table(["key", "type", "", ""], rows)


def _follow(document: Json, thing: Json) -> Json:
    """The target of a reference; anything else unchanged."""
    if "$ref" not in thing:
        return thing
    found: Any = document
    for step in thing["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return dict(found)


def _text(thing: Json) -> str:
    return str(thing.get("description") or thing.get("schema", {}).get("description", ""))


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(choice) for choice in schema[several])
    if "const" in schema:
        return _code(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    kind = escape(schema.get("format") or schema.get("type", "anything"))
    names = {"minimum": "at least", "maximum": "at most", "maxLength": "max. length", "default": "default"}
    limits = [f"{word} {escape(str(schema[key]))}" for key, word in names.items() if schema.get(key, "") != ""]
    return ", ".join([kind, *limits])


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table with these rows of HTML; empty without rows."""
    lines = ["".join(_tag("td", cell) for cell in row) for row in rows]
    titles = _tag("tr", "".join(_tag("th", escape(title)) for title in head))
    return f"<table>{titles}{''.join(_tag('tr', line) for line in lines)}</table>" if lines else ""


def _prose(text: str) -> str:
    """HTML of a text with `code` in backquotes."""
    parts = text.split("`")
    return "".join(_code(part) if number % 2 else escape(part) for number, part in enumerate(parts))


def _code(text: object) -> str:
    return _tag("code", escape(str(text)))


def _tag(name: str, inside: str) -> str:
    return f"<{name}>{inside}</{name}>"
