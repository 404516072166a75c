"""The processes of the cell that `make_cell` records, with the code of the older version, and calls of its API."""

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from deploy.demo.processes import Child
from drivers.fake_faults import Effect, Rule, write_rules
from drivers.fake_state import StateFile
from tests.browser.stage import Stage
from tests.queueing import until_told

ACCOUNT = 77
NODES = ("n1", "n2")
OPEN, QUEUED = 12_001, 12_101  # the first IDs of the servers on n1 and n2
DESCRIPTION = "as <written>\r\non two lines 🎉"

# n1: the server's name states which job is running at the kill, and its step.
HANGS = {
    "create-preflight": Effect.LOOK,
    "create-stopping": Effect.PRESS,
    "create-snapshotting": Effect.SNAPSHOT_DISK,
    "create-cleaning": Effect.DELETE_TAG,
    "create-starting": Effect.START,
    "create-measuring": Effect.MEASURE,
    "restore-preflight": Effect.LOOK,
    "restore-stopping": Effect.CUT,
    "restore-safeguarding": Effect.SNAPSHOT_DISK,
    "restore-reverting": Effect.REVERT_DISK,
    "restore-undoing": Effect.REVERT_DISK,
    "restore-cleaning": Effect.DELETE_TAG,
    "restore-starting": Effect.START,
    "delete-deleting": Effect.DELETE_TAG,
    "undo-reverting": Effect.REVERT_DISK,
    "check_create-preflight": Effect.LOOK,
    "check_restore-preflight": Effect.LOOK,
}
OTHERS = (
    *("untold", "twice-restored", "restored", "torn", "lost", "full", "kept", "expiring", "scheduled", "undeleted"),
    *("stranded", "stranded-restore", "resolved", "failed", "retried", "deleted", "quiet"),
)
KINDS = ("create", "restore", "delete", "undo", "check_create", "check_restore")
NAMES = {name: OPEN + n for n, name in enumerate((*HANGS, *OTHERS))}
NAMES |= {f"{kind}-queued": QUEUED + n for n, kind in enumerate((*KINDS, "cancelled"))}


async def until(what: Callable[[], bool]) -> None:
    """Wait up to half a minute, for retries and rounds of the worker."""
    async with asyncio.timeout(120):
        while not what():  # noqa: ASYNC110 - it waits for what another process does
            await asyncio.sleep(0.01)


def of_node(node: str) -> dict[str, int]:
    first = {"n1": OPEN, "n2": QUEUED}[node]
    return {name: server_id for name, server_id in NAMES.items() if first <= server_id < first + 100}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)


@dataclass(kw_only=True)
class Cell:
    """The service's processes and its callers."""

    stage: Stage
    secrets: dict[str, str] = field(default_factory=dict)  # of tokens, by owner's name
    workers: dict[str, Child] = field(default_factory=dict)
    rules: dict[str, list[Rule]] = field(default_factory=dict)  # by server's name
    snapshots: dict[str, int] = field(default_factory=dict)  # the one named `base`, by server's name
    jobs: dict[str, str] = field(default_factory=dict)  # running or queued at the end, by server's name
    replays: list[dict[str, Any]] = field(default_factory=list)  # requests with an idempotency key

    def folder(self, node: str) -> Path:
        return self.stage.folder / node

    def state(self, node: str) -> StateFile:
        return StateFile(self.folder(node) / "fake.json")

    async def call(self, method: str, path: str, body: Any = None, *, by: str = "customer", **headers: str) -> Answer:
        sent = {"Authorization": f"Bearer {self.secrets[by]}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.stage.url}/api/v1/{path}"
        async with ClientSession() as session, session.request(method, url, json=body, headers=sent) as answer:
            text = await answer.text()
            assert answer.status < 400, (method, path, text)
            return Answer(answer.status, answer.headers, text)

    async def ask(self, method: str, path: str, body: Any = None) -> str:
        """Make a call. Returns the ID of its job."""
        return (await self.call(method, path, body)).headers["X-Job-Id"]

    async def create(self, name: str, snapshot: str = "base") -> str:
        answer = await self.call(
            "POST", "snapshots/", {"server_id": NAMES[name], "name": snapshot, "description": DESCRIPTION}
        )
        self.snapshots.setdefault(name, answer.body["id"])
        return answer.headers["X-Job-Id"]

    async def restore(self, name: str) -> str:
        return await self.ask("POST", f"snapshots/{self.snapshots[name]}/restore/")

    async def job(self, job_id: str) -> Any:
        return (await self.call("GET", f"ops/jobs/{job_id}/", by="operator")).body

    async def ended(self, job_id: str, state: str = "completed") -> str:
        async def over() -> bool:
            return (await self.job(job_id))["state"] in {"completed", "failed"}

        await until_told(over)
        assert (await self.job(job_id))["state"] == state, await self.job(job_id)
        return job_id

    async def at_step(self, job_id: str, step: str) -> None:
        async def there() -> bool:
            return any(taken["step"] == step for taken in (await self.job(job_id))["steps"])

        await until_told(there)

    def befall(self, name: str, *rules: Rule) -> None:
        """Replace the faults of that server of n1."""
        self.rules[name] = [
            Rule(effect=one.effect, server_id=NAMES[name], fails=one.fails, seconds=one.seconds) for one in rules
        ]
        write_rules(self.folder("n1") / "faults.json", [rule for these in self.rules.values() for rule in these])

    async def start_worker(self, node: str) -> None:
        settings = {
            "NODE": node,
            "DRIVER": "fake",
            "FAKE_SERVERS": "0",
            "STATE_DIR": str(self.folder(node)),
            "MAX_JOBS": "100",
            "GRACE_SECONDS": "5",
            "DRAIN_SECONDS": "0",
        }
        program = Path(sys.executable).parent / "vps-snapshots-worker"
        environment = {f"VPS_SNAPSHOTS_{name}": value for name, value in settings.items()}
        environment |= await self.stage.gateway_of(node)
        log = self.stage.folder / f"{node}.log"
        self.workers[node] = await Child.start(node, (program, "run"), settings=environment, log=log)
        await until_told(lambda: self._are_known(node))

    async def _are_known(self, node: str) -> bool:
        async with self.stage.redis.pipeline(transaction=False) as pipe:
            for server_id in of_node(node).values():
                pipe.hmget(f"server:{server_id}", ["node", "unpublished"])
            return all(where and unpublished is None for where, unpublished in await pipe.execute())
