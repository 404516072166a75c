"""What metrics are told about each call of the store."""

from typing import Protocol


class Observer(Protocol):
    """Receives the result of each call: of a command to Redis or, on a node, of a call to the gateway."""

    def answered(self, seconds: float) -> None: ...

    def failed(self, error: Exception) -> None: ...
