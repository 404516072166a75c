"""asyncio, loaded when a command first uses it: `--help` needs none of it, and would take a quarter longer."""

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType
from typing import TYPE_CHECKING


def _later(name: str) -> ModuleType:
    """Import lazily, as in "Implementing lazy imports" in Python's documentation of importlib."""
    spec = find_spec(name)
    if name in sys.modules or spec is None or spec.loader is None:
        return sys.modules[name]
    spec.loader = LazyLoader(spec.loader)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    import asyncio as asyncio  # noqa: PLC0414 - exported
else:
    asyncio = _later("asyncio")
