"""Validation errors in words for developers."""

import re
from collections.abc import Collection
from difflib import get_close_matches

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from api.http.fields import PATTERNS
from api.http.problems import FieldError, Problem, invalid

ERRORS_MAX = 20
FIELD_MAX = 100  # characters of a field's name in a problem: a key of the body can be any text
_FORM = re.compile(rb"\s*(--|[\w.%+-]+(\[\])?=)")

# by pydantic's error type; its context fills the placeholders
_RULES = {
    "missing": "Required.",
    "model_type": "Must be a JSON object.",
    "string_type": "Must be a string.",
    "int_type": "Must be an integer.",
    "int_from_float": "Must be an integer.",
    "int_parsing_size": "Must be an integer.",
    "bool_type": "Must be true or false.",
    "dict_type": "Must be an object.",
    "list_type": "Must be a list.",
    "tuple_type": "Must be a list.",
    "literal_error": "Must be {expected}.",
    "enum": "Must be {expected}.",
    "greater_than_equal": "Must be at least {ge}.",
    "less_than_equal": "Must be at most {le}.",
    "string_too_short": "Must have {min_length} or more characters.",
    "string_too_long": "Must have at most {max_length} characters.",
    "too_short": "Must have {min_length} or more items.",
    "too_long": "Must have at most {max_length} items.",
}


def refused(error: ValidationError, model: type[BaseModel], raw: bytes = b"") -> Problem:
    """The problem for a body or query that does not match its model. `raw`: the body."""
    found = found_in(error)
    if found[0]["type"] == "json_invalid":
        return invalid(FieldError(field="body", detail=_no_json(found[0], model, raw)))
    return invalid(*(_field_error(each, model) for each in found))


def found_in(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False)[:ERRORS_MAX]


def meant(given: str, known: Collection[str]) -> str:
    """A suggestion of the most similar known name, as a question; "" if none is similar."""
    like = get_close_matches(given[:FIELD_MAX], known, n=1)
    return f" Did you mean {like[0]}?" if like else ""


def _no_json(error: ErrorDetails, model: type[BaseModel], raw: bytes) -> str:
    wanted = f"Send a JSON object with Content-Type: application/json. Its fields: {', '.join(model.model_fields)}."
    if not raw.strip():
        return f"The body is empty. {wanted}"
    if _FORM.match(raw):
        return f"The body is a form. {wanted}"
    return error["msg"].removesuffix(".") + "."


def _field_error(error: ErrorDetails, model: type[BaseModel]) -> FieldError:
    field = str(error["loc"][0])[:FIELD_MAX] if error["loc"] else ""
    return FieldError(field=field or "body", detail=_rule(error, model))


def _rule(error: ErrorDetails, model: type[BaseModel]) -> str:
    """The rule that the field violates."""
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden" if len(error["loc"]) == 1:
            guess = meant(str(error["loc"][0]), model.model_fields)
            return f"Unknown field.{guess} Known fields: {', '.join(model.model_fields)}."
        case "string_pattern_mismatch" if context["pattern"] in PATTERNS:
            return PATTERNS[context["pattern"]]
        case kind if kind in _RULES:
            return _RULES[kind].format(**context)
    return error["msg"].removesuffix(".") + "."
