"""Samples of a call in each language, made from the OpenAPI document and its examples. They read `URL` and `TOKEN`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LANGUAGES: Mapping[str, str] = {"sh": "Shell", "python": "Python", "js": "JavaScript"}

Json = Mapping[str, Any]
_WIDTH = 100  # characters per line of a sample
_KEY = "Idempotency-Key"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The call of a sample. `body`: None if the call takes none."""

    method: str
    path: str  # with the IDs of the examples
    takes_key: bool
    needs_token: bool
    body: Any = None
    is_stream: bool = False
    has_answer: bool = True  # 204 has none


def path_of(path: str, parameters: list[Json]) -> str:
    """The path with an example for each ID."""
    examples = {each["name"]: each["schema"]["examples"][0] for each in parameters if each["in"] == "path"}
    return re.sub(r"{(\w+)}", lambda found: str(examples[found[1]]), path)


def all_of(sample: Sample) -> dict[str, str]:
    """The sample's text, by language."""
    return {"sh": _curl(sample), "python": _python(sample), "js": _js(sample)}


def _curl(sample: Sample) -> str:
    call = "curl -sSN" if sample.is_stream else "curl -sS --fail-with-body"
    method = "" if sample.method == ("GET" if sample.body is None else "POST") else f" -X {sample.method}"
    lines = [f'{call}{method} "$URL{sample.path}"']
    if sample.needs_token:
        lines.append('-H @- <<<"Authorization: Bearer $TOKEN"')  # other users can see arguments
    if sample.takes_key:
        lines.append(f'-H "{_KEY}: $(openssl rand -hex 16)"')
    if sample.body is not None:
        lines.append("-H 'Content-Type: application/json'")
        lines.append(f"-d '{json.dumps(sample.body)}'")
    return " \\\n    ".join(lines) + "\n"


def _python(sample: Sample) -> str:
    sender = '"Authorization": f"Bearer {os.environ[\'TOKEN\']}"'
    headers = [sender] if sample.needs_token else []
    headers += [f'"{_KEY}": str(uuid.uuid4())'] if sample.takes_key else []
    arguments = [f"f\"{{os.environ['URL']}}{sample.path}\""]
    arguments += [f"headers={{{', '.join(headers)}}}"] if headers else []
    arguments += [f"json={_literal(sample.body)}"] if sample.body is not None else []
    arguments += ["stream=True", "timeout=60"] if sample.is_stream else ["timeout=60"]
    imports = ["import os", *(["import uuid"] if sample.takes_key else [])]
    call = f"requests.{sample.method.lower()}(\n    " + ",\n    ".join(arguments) + ",\n)"
    if sample.is_stream:
        after = "for line in response.iter_lines(decode_unicode=True):\n    print(line)\n"
    else:
        after = f"print({'response.json()' if sample.has_answer else 'response.status_code'})\n"
    return "\n".join([*imports, "", "import requests", "", f"response = {call}", "response.raise_for_status()", after])


def _literal(value: Any) -> str:
    """The value as a Python literal, wrapped to the line length."""
    whole = _in_python(value)
    if len(whole) < _WIDTH or not isinstance(value, dict):
        return whole
    inside = "".join(f"        {json.dumps(key)}: {_in_python(each)},\n" for key, each in value.items())
    return f"{{\n{inside}    }}"


def _in_python(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_in_python(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_in_python, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _js(sample: Sample) -> str:
    headers = ["Authorization: `Bearer ${process.env.TOKEN}`"] if sample.needs_token else []
    headers += [f"'{_KEY}': crypto.randomUUID()"] if sample.takes_key else []
    headers += ["'Content-Type': 'application/json'"] if sample.body is not None else []
    options = [] if sample.method == "GET" else [f"method: '{sample.method}'"]
    if headers:
        options.append("headers: {\n" + "".join(f"    {header},\n" for header in headers) + "  }")
    if sample.body is not None:
        options.append(f"body: JSON.stringify({json.dumps(sample.body, ensure_ascii=False)})")
    given = ", {\n" + "".join(f"  {option},\n" for option in options) + "}" if options else ""
    if sample.is_stream:
        after = (
            "for await (const text of response.body.pipeThrough(new TextDecoderStream())) {\n  console.log(text)\n}\n"
        )
    else:
        after = f"console.log({'await response.json()' if sample.has_answer else 'response.status'})\n"
    return (
        f"const response = await fetch(`${{process.env.URL}}{sample.path}`{given})\n"
        f"if (!response.ok) throw new Error(await response.text())\n{after}"
    )
