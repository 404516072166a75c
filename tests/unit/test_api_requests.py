"""What callers may send; everything else is refused by name."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.http.fields import NOT_STORABLE, PATTERNS
from api.http.problems import Problem
from api.http.reading import parse
from api.resources import CALLS
from api.snapshots.bodies import CreateBody

GOOD: dict[str, Any] = {"server_id": 12345, "name": "before-update", "description": "Before the update"}


def parse_create(raw: bytes) -> CreateBody:
    return parse(raw, CreateBody)


def refused(raw: bytes) -> Problem:
    with pytest.raises(Problem) as caught:
        parse_create(raw)
    problem = caught.value
    assert (problem.status, problem.code) == (400, "invalid_request")
    assert problem.fields
    assert all(field.field in problem.detail and field.detail for field in problem.fields)
    return problem


def fields_of(raw: bytes) -> list[str]:
    return [field.field for field in refused(raw).fields]


def test_a_body_is_read() -> None:
    assert parse_create(json.dumps(GOOD).encode()) == CreateBody(**GOOD)


def test_a_description_may_be_left_out() -> None:
    assert parse_create(b'{"server_id": 1, "name": "a"}').description == ""
    assert parse_create(b'{"server_id": 1, "name": "a", "description": null}').description == ""


@pytest.mark.parametrize("number", ["7", "7.0", "70e-1"])
def test_a_number_is_what_it_stands_for(number: str) -> None:
    assert parse_create(b'{"server_id": %s, "name": "a"}' % number.encode()).server_id == 7


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"17",
        b"NaN",
        b"server_id=1&name=a",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        json.dumps(GOOD).encode("utf-16"),
        b'{"server_id": 1, "name": "a", "description": "\xff"}',
        b'{"server_id": 1, "name": "a", "description": "\\ud800"}',
        b'{"server_id": 1, "name": "a", "description": "\\udc00"}',
        b'{"server_id": 1, "name": "a"} more',
        b'{"server_id": 1, "name": "a", "": 1}',
        b"[" * 60_000,
        b'{"a":' * 12_000 + b"1" + b"}" * 12_000,
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(raw: bytes) -> None:
    assert fields_of(raw) == ["body"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("server_id", "12345"),
        ("server_id", True),
        ("server_id", 12345.5),
        ("server_id", 1e400),
        ("server_id", 2.0**53 + 2),
        ("server_id", None),
        ("server_id", [12345]),
        ("server_id", 0),
        ("server_id", -1),
        ("server_id", 2**63),
        ("server_id", 10**4000),
        ("name", 7),
        ("name", None),
        ("name", ""),
        ("name", "a" * 65),
        ("name", "two words"),
        ("name", "dot.ted"),
        ("name", "line\n"),
        ("name", "\nline"),
        ("name", "ünï"),
        ("name", "\N{FULLWIDTH DIGIT ONE}"),
        ("name", "a\x00"),
        ("description", 7),
        ("description", "a" * 1001),
        ("description", "nul \x00"),
        ("description", "escape \x1b[2J"),
        ("description", "delete \x7f"),
        ("description", "c1 \x9b"),
        ("description", "no character \ufffe"),
        ("description", "no character \uffff"),
        ("status", "completed"),
        ("Name", "a"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(field: str, value: object) -> None:
    assert fields_of(json.dumps(GOOD | {field: value}).encode()) == [field]


@pytest.mark.parametrize("field", ["server_id", "name"])
def test_a_missing_field_is_refused_by_its_name(field: str) -> None:
    assert fields_of(json.dumps({key: value for key, value in GOOD.items() if key != field}).encode()) == [field]


def test_every_wrong_field_is_named_at_once() -> None:
    assert sorted(fields_of(b'{"server_id": "1", "name": "", "more": 1}')) == ["more", "name", "server_id"]


@pytest.mark.parametrize("name", ["a", "A-Z_09", "-", "a" * 64])
def test_letters_digits_hyphens_and_underscores_make_a_name(name: str) -> None:
    assert parse_create(json.dumps(GOOD | {"name": name}).encode()).name == name


@pytest.mark.parametrize("text", ["", "a" * 1000, "\N{GRINNING FACE}" * 1000, "tab\tline\r\nünï", "<b>&amp;]]>"])
def test_a_description_is_kept_as_it_came(text: str) -> None:
    assert parse_create(json.dumps(GOOD | {"description": text}).encode()).description == text


def test_the_refusal_of_a_hostile_body_stays_short() -> None:
    problem = refused(json.dumps({f"{n}" + "x" * 500: 1 for n in range(100)}).encode())

    assert len(problem.fields) <= 20
    assert len(problem.detail) < 5000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "server_id": st.just(1) | JSON,
        "name": st.just("a") | JSON,
        "description": st.text() | JSON,
        "more": JSON,
    },
)


@settings(deadline=None)
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | NEARLY.map(lambda v: json.dumps(v).encode()))
def test_any_body_is_either_right_or_refused_by_name(raw: bytes) -> None:
    try:
        body = parse_create(raw)
    except Problem:
        refused(raw)
    else:
        assert body.server_id > 0
        assert 1 <= len(body.name) <= 64
        assert len(body.description or "") <= 1000


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"name": "two words"}, "Must be 1 to 64 letters (A-Z, a-z), digits, hyphens or underscores."),
        ({"server_id": "1"}, "Must be an integer."),
        ({"server_id": 0}, "Must be at least 1."),
        ({"description": "a" * 1001}, "Must have at most 1000 characters."),
        ({"description": "a\x00"}, "The character U+0000 is not allowed."),
        ({"more": 1}, "Unknown field. Known fields: server_id, name, description, consistency."),
        (
            {"serverId": 1},
            "Unknown field. Did you mean server_id? Known fields: server_id, name, description, consistency.",
        ),
    ],
)
def test_the_refusal_says_what_the_field_must_be(change: dict[str, object], detail: str) -> None:
    (field,) = refused(json.dumps(GOOD | change).encode()).fields
    assert field.detail == detail


WANTED = (
    "Send a JSON object with Content-Type: application/json. Its fields: server_id, name, description, consistency."
)


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        (b"server_id=12345&name=x", f"The body is a form. {WANTED}"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--', f"The body is a form. {WANTED}"),
        (b"", f"The body is empty. {WANTED}"),
        (b'{"server_id": 1,}', "Invalid JSON: trailing comma at line 1 column 17."),
    ],
)
def test_a_body_that_is_no_json_is_told_what_to_send(raw: bytes, detail: str) -> None:
    (field,) = refused(raw).fields
    assert (field.field, field.detail) == ("body", detail)


def patterns(thing: Any) -> Iterator[str]:
    if isinstance(thing, dict):
        yield from ([thing["pattern"]] if isinstance(thing.get("pattern"), str) else [])
        yield from thing.get("patternProperties", {})
        thing = list(thing.values())
    for each in thing if isinstance(thing, list) else ():
        yield from patterns(each)


def test_no_refusal_tells_a_pattern() -> None:
    models = [model for call in CALLS for model in (call.body, call.query) if model is not None]
    found = {pattern for model in models for pattern in patterns(model.model_json_schema())}
    storable = f"^[^{NOT_STORABLE}]*$"
    not_blank = rf"^[^{NOT_STORABLE}]*[^{NOT_STORABLE}\s][^{NOT_STORABLE}]*$"

    assert len(found) > 5
    # the first two have their own validators; the last one is only in the document
    assert found - set(PATTERNS) <= {storable, not_blank, r"\S"}
