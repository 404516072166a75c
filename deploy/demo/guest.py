"""The node's one server: a real guest under the embedded libvirt, started and stopped from outside the worker."""

from deploy.demo.state import State


class GuestFailed(Exception):
    """The guest did not start or stop; the text says why."""


class Guest:
    def __init__(self, state: State, *, server_id: int, name: str, account_id: int) -> None:
        pass

    async def start(self) -> None:
        raise GuestFailed("not yet")

    async def stop(self) -> None:
        pass
