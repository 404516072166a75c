"""The limits that settings, requests and messages state."""

import pkgutil
from collections import Counter
from collections.abc import Iterator
from importlib import import_module

import annotated_types
import pytest
from pydantic import BaseModel, ValidationError

import api
import worker
from worker.store.bounds import Bounds

LIMITS = (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt)


def test_no_field_states_a_limit_that_its_type_states_too() -> None:
    """pydantic would apply the type's, and ignore the field's without an error."""
    for package in (api, worker):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    stated_twice = [
        f"{model.__module__}.{model.__name__}.{name}"
        for model in _models(BaseModel)
        for name, field in model.model_fields.items()
        if any(count > 1 for count in Counter(type(one) for one in field.metadata if isinstance(one, LIMITS)).values())
    ]
    assert stated_twice == []


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for narrower in model.__subclasses__():
        yield narrower
        yield from _models(narrower)


def test_failed_snapshots_cannot_fill_the_list_of_a_server() -> None:
    with pytest.raises(ValidationError, match="failed_snapshots_per_server"):
        Bounds(failed_snapshots_per_server=201)
