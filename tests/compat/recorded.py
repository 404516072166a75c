"""A recorded cell on the current code: the front end, the nodes' workers, and the callers."""

import gzip
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from drivers.fake_state import FakeServer
from tests.browser.stage import Stage, StagedNode, staged
from tests.compat.recording import Shift, load, unpack
from tests.queueing import until_told
from worker.store.model import ServerId

FILES = ("journals", "files")  # parts of a recording
TIMES_IN = {"jobs": ("task", "facts", "outcome", "changed_at"), "spare_tags": ("drop_after",)}
DATA = Path(__file__).with_name("data")


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    body: Any
    job: str  # of the call; "": none


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """`found`: the older version's data and answers, with times moved to the cell's current age."""

    stage: Stage
    shift: Shift
    found: dict[str, Any]

    async def call(self, method: str, path: str, body: Any = None, *, by: str = "customer", **headers: str) -> Answer:
        """Call with the token that the older version gave to that caller."""
        sent = {"Authorization": f"Bearer {self.found['secrets'][by]}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.stage.url}/api/v1/{path}"
        async with ClientSession() as session, session.request(method, url, json=body, headers=sent) as answer:
            job = answer.headers.get("Operation-Location", "//").split("/")[-2]
            return Answer(status=answer.status, body=json.loads(await answer.text() or "null"), job=job)

    async def get(self, path: str, *, by: str = "customer") -> Any:
        answer = await self.call("GET", path, by=by)
        assert answer.status == 200, (path, answer.body)
        return answer.body

    def id_of(self, name: str) -> int:
        return int(self.found["servers"][name])

    def server(self, name: str) -> FakeServer:
        """The server in its node's file."""
        known = {server.name: server for node in self.stage.nodes.values() for server in node.state.read().values()}
        return known[name]

    async def start_worker(self, node: str) -> None:
        """Return when jobs for its servers would be admitted."""

        async def is_alive() -> bool:
            return bool((await self.get(f"ops/nodes/{node}/", by="operator"))["alive"])

        await self.stage.start_worker(self.stage.nodes[node])
        await until_told(is_alive)

    def _place(self, name: str) -> None:
        folder = self.stage.folder / name
        folder.mkdir()
        (folder / "fake.json").write_text(self.found["disks"][name])
        (folder / "journal.sqlite").write_bytes(unpack(self.found["journals"][name]))
        self.shift_journal(folder / "journal.sqlite")
        servers = [ServerId(server.server_id) for server in self._servers(folder) if server.server_id]
        self.stage.nodes[name] = StagedNode(name=name, folder=folder, servers=servers)

    def shift_journal(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.create_function("shifted", 1, self.shift.value)
            for table, columns in TIMES_IN.items():
                values = ", ".join(f"{column} = shifted({column})" for column in columns)
                db.execute(f"UPDATE {table} SET {values}")  # noqa: S608 - names of ours

    def _servers(self, folder: Path) -> list[FakeServer]:
        return list(StagedNode(name="", folder=folder, servers=[]).state.read().values())

    @classmethod
    @asynccontextmanager
    async def running(
        cls, recording: str = "cell", *, age_seconds: int = 0, hook: str = "", **settings: str
    ) -> AsyncIterator["Recorded"]:
        """The front end is running, but no worker. `hook`: the target of the webhooks' URLs."""
        raw = json.loads(gzip.decompress((DATA / f"{recording}.json.gz").read_bytes()))
        shift = Shift.to_age(raw["recorded_at"], age_seconds=age_seconds)
        texts = {"http://127.0.0.1:9/hook": hook} if hook else {}
        async with staged(VPS_SNAPSHOTS_WEBHOOKS_TO_PRIVATE="true", **settings) as stage:
            await stage.stop_front_end()
            await load(stage.redis, raw.pop("redis"), shift, age_seconds=age_seconds, texts=texts)
            found = {name: part if name in FILES else shift.value(part) for name, part in raw.items()}
            cell = cls(stage=stage, shift=shift, found=found)
            for node in raw["disks"]:
                cell._place(node)
            await stage.start_front_end()
            yield cell
