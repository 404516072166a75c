"""The calls that a customer makes in a campaign."""

import contextlib
import random

import aiohttp

from deploy.demo.client import Answer
from tests.acceptance.cell import AcceptanceCell
from tests.chaos.model import SAFETY_PREFIX, Expected

OPERATIONS = ("create", "live", "restore", "restore", "restore", "delete", "undo")

CREATES = {"create", "live"}  # live: without a stop, if the server is running


class Asking:
    def __init__(self, cell: AcceptanceCell, chance: random.Random) -> None:
        self._cell = cell
        self._chance = chance
        self._names = 0

    def possible(self, expected: Expected) -> str:
        operation = self._chance.choice(OPERATIONS)
        if operation == "undo" and expected.undoable is None:
            operation = "restore"
        if operation in {"restore", "delete"} and not expected.snapshots:
            operation = "create"
        if operation in CREATES and len(expected.snapshots) == 5:
            operation = "delete"
        return operation

    async def ask(self, operation: str, expected: Expected) -> Answer | None:
        """Make the call. None: the front end died, or did not know the outcome."""
        self._names += 1
        assert self._cell.client is not None
        call = self._cell.client.call
        snapshot = self._chance.choice(sorted(expected.snapshots)) if expected.snapshots else 0
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            if operation in CREATES:
                body = {"server_id": expected.server.id, "name": f"n{self._names}"}
                body |= {"consistency": "live"} if operation == "live" else {}
                return await call("POST", "/api/v1/snapshots/", body)
            if operation == "restore":
                return await call(
                    "POST", f"/api/v1/snapshots/{snapshot}/restore/{self._of(expected, f'vps-{snapshot}')}"
                )
            if operation == "delete":
                return await call("DELETE", f"/api/v1/snapshots/{snapshot}/")
            assert expected.undoable is not None
            safety = f"{SAFETY_PREFIX}{expected.undoable}"
            return await call("POST", f"/api/v1/restores/{expected.undoable}/undo/{self._of(expected, safety)}")
        return None

    def _of(self, expected: Expected, tag: str) -> str:
        """For a server whose disks differ from the snapshot's: a restore of the present disks, or a refusal."""
        return "?disks=present" if expected.differs(tag) and self._chance.random() < 0.6 else ""
