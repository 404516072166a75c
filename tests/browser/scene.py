"""A cell with incidents at night, for the screenshots in the documents."""

import time
from collections.abc import Iterator
from http import HTTPStatus
from random import Random
from typing import Any

from deploy.demo.client import Client
from drivers.fake_faults import Effect, Rule
from drivers.fake_state import FakeServer
from tests.bench import seeding
from tests.browser.stage import Stage, StagedNode, running
from tests.queueing import until_told
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import AccountId, JobId, JobKind, JobState, ServerId, SnapshotId, snapshot_tag
from worker.store.reports import NodeFacts, Pool

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
NAMES = (
    *("web-01", "web-02", "shop-db", "mail", "wiki", "ci-runner", "staging", "vpn", "nextcloud", "game-eu", "metrics"),
    *("erp", "crm", "forum", "builds", "proxy", "blog", "tickets", "search", "cache-01", "cache-02", "files", "ldap"),
)
PER_NODE = 4
NODES = tuple(f"fra1-hv{number:02}" for number in range(1, 7))
BUSY, PAUSED, BROKEN, ODD, SILENT, FULL = NODES
SNAPSHOTS = ("nightly", "before-update", "pre-migration", "pre-deploy", "before-kernel-6.12", "known-good")
SILENT_MS = 14 * 60_000
FAILING_SHARE = 0.004
KINDS = (*[JobKind.CREATE] * 14, *[JobKind.RESTORE] * 3, *[JobKind.DELETE] * 3)


def server(number: int) -> FakeServer:
    return running(12_345 + number, NAMES[number % len(NAMES)], account=77 + number // 3)


DETAILS = {
    "not_enough_space": "The storage has 612 MiB free; 1024 MiB must stay free for the guests' writes.",
    "disk_failed": "qemu-img ended with status 1 on disk vdb.",
    "start_failed": "The domain did not start: its first attempt timed out.",
    "hypervisor_unavailable": "The hypervisor did not answer.",
}


class Scene:
    """Olga, an operator, is working; some incidents are still open."""

    def __init__(self, stage: Stage, *, chance: int = 7) -> None:
        self._stage = stage
        self._random = Random(chance)
        self._store = CustomerStore(stage.redis)
        self.secret = ""  # of Olga's token

    async def play(self) -> None:
        for number, name in enumerate(NODES):
            await self._stage.start_node(name, [server(number * PER_NODE + n) for n in range(PER_NODE)])
        await seeding.write_jobs(self._stage.redis, self._history())
        self.secret = (await self._stage.new_operator("Olga Brandt")).secret
        olga = Client(self._stage.url, self.secret)
        await self._make_tokens(olga)
        for node in self._stage.nodes.values():
            _slow_down(node)
        made = [await self._create(BUSY, 0), await self._create(BUSY, 1), await self._create(ODD, 0)]
        made += [await self._create(ODD, 1), await self._create(BROKEN, 1), await self._create(PAUSED, 0)]
        for job_id, _ in made:
            assert (await self._stage.ended(job_id)).failure is None
        await self._find_differences(*made[2:4])
        await self._break(olga)
        await self._keep_busy(made[0])
        await self._pause(olga)
        await self._fall_silent()
        await self.dress()

    def _history(self) -> Iterator[dict[str, str]]:
        """Write 29 days of history. The nights have more jobs, because schedules run then."""
        ages = [self._random.uniform(10 * 60_000, 29 * DAY_MS) for _ in range(1000)]
        ages += [self._random.uniform(10 * 60_000, DAY_MS) for _ in range(3000)]
        ages += [self._random.triangular(20 * 60_000, 8 * HOUR_MS, 2 * HOUR_MS) for _ in range(2500)]
        for n, age_ms in enumerate(sorted(ages, reverse=True)):
            number = self._random.randrange(len(NODES) * PER_NODE)
            one, failed = server(number), self._random.random() < FAILING_SHARE
            row = seeding.job(
                n,
                state=JobState.FAILED if failed else JobState.COMPLETED,
                age_ms=round(age_ms),
                server=(one.server_id or 0, one.name),
                account=one.account_id,
                node=NODES[number // PER_NODE],
                random=self._random,
                kinds=KINDS,
            )
            yield row | {
                "id": f"{self._random.getrandbits(128):032x}",
                "snapshot_name": self._random.choice(SNAPSHOTS),
                "failure_detail": DETAILS.get(row["failure_code"], ""),
            }

    async def _make_tokens(self, olga: Client) -> None:
        operator, customer = ["operator"], ["snapshots:read", "snapshots:write"]
        wanted: list[dict[str, Any]] = [
            {"name": "public tier", "permissions": customer},
            {"name": "Ben Okafor", "permissions": operator, "lifetime_hours": 12},
            {"name": "billing export", "permissions": ["snapshots:read"], "lifetime_hours": 30 * 24},
            {"name": "customer 77 terraform", "permissions": customer, "account_id": 77},
        ]
        for token in wanted:
            await _done(olga, "POST", "tokens/", token)

    async def _create(self, node: str, n: int, name: str = "before-update") -> tuple[JobId, SnapshotId]:
        one = server(NODES.index(node) * PER_NODE + n)
        admitted = await self._store.create(
            account_id=AccountId(one.account_id),
            server_id=ServerId(one.server_id or 0),
            name=name,
            description="Before the update of tonight",
            request_id=f"{self._random.getrandbits(64):016x}",
        )
        return admitted.job.id, admitted.snapshot.id

    async def _find_differences(self, torn: tuple[JobId, SnapshotId], lost: tuple[JobId, SnapshotId]) -> None:
        """Change the disks while the worker is stopped, so that reconciliation finds differences."""
        node = self._stage.nodes[ODD]
        assert node.worker
        await node.worker.stop()
        state, names = node.state, [server(NODES.index(ODD) * PER_NODE + n).name for n in range(2)]
        servers = state.read()
        del servers[names[0]].disks["vdb"].tags[snapshot_tag(torn[1])]
        for disk in servers[names[1]].disks.values():
            del disk.tags[snapshot_tag(lost[1])]
        del servers[names[1]].listed[snapshot_tag(lost[1])]
        for name in names:
            state.write(servers[name])
        await self._stage.start_worker(node)
        await until_told(self._has_findings)

    async def _has_findings(self) -> bool:
        return (await self._stage.operators.node(ODD)).findings == len(("torn", "lost"))

    async def _break(self, olga: Client) -> None:
        """Strand one server that does not start again and one whose disk fails; another was fixed already."""
        node = self._stage.nodes[BROKEN]
        stranded, refused, resolved = (node.servers[n] for n in (0, 1, 2))
        _slow_down(
            node,
            *(Rule(effect=Effect.START, server_id=server_id, fails=True) for server_id in (stranded, resolved)),
            Rule(effect=Effect.SNAPSHOT_DISK, server_id=refused, fails=True),
        )
        jobs = [await self._create(BROKEN, n, "pre-deploy") for n in (0, 1, 2)]
        for job_id, _ in jobs:
            assert (await self._stage.ended(job_id)).failure
        _slow_down(node)
        reason = {"reason": "Host bridge br7 was missing; made it again and started the guest by hand."}
        await _done(olga, "POST", f"jobs/{jobs[2][0]}/resolve/", reason)
        await _done(olga, "POST", f"jobs/{jobs[1][0]}/retry/")

    async def _keep_busy(self, snapshot: tuple[JobId, SnapshotId]) -> None:
        node = self._stage.nodes[BUSY]
        _slow_down(node, Rule(effect=Effect.SNAPSHOT_DISK, seconds=3600))
        job_id, _ = await self._create(BUSY, 2, "before-kernel-6.12")
        await self._stage.at_step(job_id, "snapshotting")
        one = server(NODES.index(BUSY) * PER_NODE)
        restore = await self._store.restore(
            account_id=AccountId(one.account_id), snapshot_id=snapshot[1], request_id="5f0c2a9be1d34476"
        )
        await self._stage.at_step(restore.job.id, "safeguarding")

    async def _pause(self, olga: Client) -> None:
        await _done(olga, "POST", f"nodes/{PAUSED}/pause/", {"reason": "Kernel update, back at 04:00"})
        for n in range(3):
            await self._create(PAUSED, n, "known-good")

    async def _fall_silent(self) -> None:
        """Make a node silent, as if its machine had failed a while ago."""
        node = self._stage.nodes[SILENT]
        assert node.worker
        node.worker.kill()
        await node.worker.ended()
        heartbeat_ms = round(time.time() * 1000) - SILENT_MS
        await self._stage.redis.hset(f"node:{SILENT}", "heartbeat_ms", str(heartbeat_ms))  # type: ignore[misc] # redis-py: sync or async
        await self._stage.redis.zadd("nodes:by:heartbeat", {SILENT: heartbeat_ms})

    async def dress(self) -> None:
        """Report figures like real hypervisors', one nearly full. Workers report again after a minute."""
        for name in NODES:
            free_gib = 38 if name == FULL else 310 + 37 * (NODES.index(name) % 4)
            pool = Pool(path="/var/lib/libvirt/images", free_bytes=free_gib << 30, total_bytes=900 << 30)
            facts = NodeFacts(worker="1.0.0", hypervisor="libvirt 9.0.0", emulator="QEMU 7.2.0", pools=(pool,))
            await self._stage.redis.hset(f"node:{name}", "about", facts.model_dump_json())  # type: ignore[misc] # redis-py: sync or async
            await self._stage.redis.zadd("nodes:by:free", {name: pool.free_bytes})


def _slow_down(node: StagedNode, *rules: Rule) -> None:
    """Slow the simulated servers down to realistic durations; these faults are added to the others."""
    seconds = {Effect.PRESS: 0.8, Effect.SNAPSHOT_DISK: 0.2, Effect.START: 0.5, Effect.MEASURE: 0.1}
    node.befall(*rules, *(Rule(effect=effect, seconds=taken) for effect, taken in seconds.items()))


async def _done(operator: Client, method: str, path: str, body: dict[str, Any] | None = None) -> None:
    answer = await operator.call(method, f"/api/v1/ops/{path}", body)
    assert answer.status < HTTPStatus.BAD_REQUEST, answer.body
