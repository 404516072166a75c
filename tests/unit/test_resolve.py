"""What a text stands for in a command of the command line."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from api.cli import resolve
from api.cli.client import Client, Reply


class Named:
    """A service in which one object has the name: the one with this number."""

    number = 1

    async def send(self, *_: Any, **__: Any) -> Reply:
        server = {"id": self.number, "name": "nightly"}
        found = {"id": f"{self.number:012x}", "name": "nightly", "exact": True, "server": server}
        return Reply(status=200, headers={}, raw=json.dumps({"count": 1, "results": [found]}).encode())


LOOK_UPS: dict[str, Callable[[Client], Awaitable[str | int]]] = {
    "server": lambda client: resolve.server(client, "nightly"),
    "snapshot": lambda client: resolve.snapshot(client, "nightly"),
    "token": lambda client: resolve.token(client, "nightly"),
    "schedule": lambda client: resolve.listed(client, "schedule", "schedules/", "nightly", named="name"),
    "webhook": lambda client: resolve.in_whole_list(client, "webhook", "webhooks/", "nightly", named="name"),
}


@pytest.mark.parametrize("kind", LOOK_UPS)
async def test_a_command_changes_the_object_that_its_question_named(kind: str) -> None:
    """While the question waits for an answer, the name can be given to another object."""
    service = Named()
    client = Client(service, account=5)  # type: ignore[arg-type]  # it has no stream
    asked = await LOOK_UPS[kind](client)
    service.number = 2
    assert await LOOK_UPS[kind](client) == asked
