"""A node's store that counts its calls, so that a test can wait until some have been answered or have failed."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from worker.store.nodes.node_store import NodeStore


@dataclass(frozen=True, kw_only=True)
class Calls:
    """How many calls of each name have begun, and how many have ended."""

    begun: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)


class _Counted:
    def __init__(self, store: NodeStore, calls: Calls) -> None:
        self._store = store
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            self._calls.begun[name] += 1
            try:
                return await found(*arguments, **named)
            finally:
                self._calls.ended[name] += 1

        return call


def counted(store: NodeStore) -> tuple[NodeStore, Calls]:
    calls = Calls()
    return cast("NodeStore", _Counted(store, calls)), calls
