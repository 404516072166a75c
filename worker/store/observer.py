"""What is told of each call of the store, for metrics."""

from typing import Protocol


class Observer(Protocol):
    """Receives the result of each call: of a command to Redis or, on a node, of a call to the gateway."""

    def answered(self, seconds: float) -> None: ...

    def failed(self, error: Exception) -> None: ...
