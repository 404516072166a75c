"""pydantic's type adapters, each created at its first use because that takes milliseconds."""

from typing import Any, TypeVar

from pydantic import TypeAdapter

Read = TypeVar("Read")

_MADE: dict[Any, TypeAdapter[Any]] = {}


def adapter(kind: type[Read]) -> TypeAdapter[Read]:
    if kind not in _MADE:
        _MADE[kind] = TypeAdapter(kind)
    return _MADE[kind]
