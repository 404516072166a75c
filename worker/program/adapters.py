"""pydantic's adapters of types that are no models, each made when it is first used: it takes milliseconds."""

from typing import Any, TypeVar

from pydantic import TypeAdapter

Read = TypeVar("Read")

_MADE: dict[Any, TypeAdapter[Any]] = {}


def adapter(kind: type[Read]) -> TypeAdapter[Read]:
    if kind not in _MADE:
        _MADE[kind] = TypeAdapter(kind)
    return _MADE[kind]
