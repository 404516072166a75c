"""Customers who create, restore and delete snapshots while the cell is upgraded."""

from http import HTTPStatus
from uuid import uuid4

import aiohttp

from tests.chaos.customers import SNAPSHOTS, Customers


class Restoring(Customers):
    async def _live(self, session: aiohttp.ClientSession, server: int) -> None:
        while not self._stopped:
            name = uuid4().hex
            status, made = await self._once_free(session, "POST", SNAPSHOTS, {"server_id": server, "name": name})
            if status != HTTPStatus.CREATED:
                self.violations.append(f"a create was refused: {status} {made}")
                return
            path = f"{SNAPSHOTS}{made['id']}/"
            if not await self._completes(session, path):
                return
            status, answer = await self._once_free(session, "POST", f"{path}restore/")
            if status >= HTTPStatus.BAD_REQUEST:
                self.violations.append(f"a restore was refused: {status} {answer}")
            await self._deleted(session, path)
