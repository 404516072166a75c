"""Errors of libvirt, QEMU or qemu-img in a failed job: shown to operators, but never to customers."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.cli import Cli
from tests.integration.conftest import SERVER, Cell
from tests.integration.front_end import SNAPSHOTS
from tests.integration.test_dashboard import visible
from tests.integration.test_webhooks import EVERY, WEBHOOKS, latest, receiving
from worker.store.model import CAUSE_MAX, Failure, JobId, JobState, SnapshotStatus
from worker.store.outcome import Outcome

SAID = "starting: qemu-system-x86_64: -blockdev /srv/secret-pool/vm.qcow2: cannot set up guest memory"
FAILED = Outcome(
    state=JobState.FAILED,
    failure=Failure(code="start_failed", detail="The server did not start.", stranded=True),
    snapshot_status=SnapshotStatus.FAILED,
    cause=SAID,
)
HOSTILE = f"a\x1b[2Jb\x00c <script>{'x' * 3000} the reason\u202e"


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell, webhooks_to_private=True) as dashboard:
        yield dashboard


async def fail(dashboard: Dashboard, outcome: Outcome = FAILED) -> JobId:
    answer = await dashboard.api.create()
    await dashboard.api.work(answer, outcome)
    return JobId(answer.headers["X-Job-Id"])


READ = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", 0, -1),
    b"stream": ("XRANGE", "-", "+"),
}


async def holding(cell: Cell, text: str) -> list[str]:
    """The keys that contain the text."""
    found = []
    async for key in cell.redis.scan_iter("*"):
        if (kind := await cell.raw("TYPE", key)) == b"none":  # it has expired
            continue
        command, *rest = READ[kind]
        if text in repr(await cell.raw(command, key, *rest)):
            found.append(key.decode())
    return found


async def test_operators_see_it_on_the_api_the_pages_and_the_command_line(dashboard: Dashboard) -> None:
    job = await fail(dashboard)
    shown = await dashboard.api.call("GET", f"/api/v1/ops/jobs/{job}/", token=dashboard.token)
    assert shown.body["cause"] == SAID
    for page in (f"jobs/{job}/", f"servers/{SERVER}/"):
        assert SAID in visible(await dashboard.browser.seen(f"/ops/{page}"))
    cli = Cli(url=f"http://127.0.0.1:{dashboard.api.port}", token=dashboard.token)
    done = await cli.run("job", "show", job)
    assert SAID in " ".join(done.out.split())


async def test_customers_see_it_nowhere(dashboard: Dashboard) -> None:
    api = dashboard.api
    async with receiving() as receiver:
        hook = (await api.call("POST", WEBHOOKS, body={"url": receiver.url, "events": EVERY})).body
        job = await fail(dashboard)
        await latest(api, hook, lambda delivery: delivery["status_code"] == 200)
        assert receiver.got
        assert "secret-pool" not in repr(receiver.got)
    for path in (
        *("/api/v1/jobs/", f"/api/v1/jobs/{job}/", SNAPSHOTS, f"/api/v1/servers/{SERVER}/"),
        *(WEBHOOKS, f"{WEBHOOKS}{hook['id']}/deliveries/"),
    ):
        answer = await api.call("GET", path)
        assert answer.status == 200
        assert b"secret-pool" not in answer.raw
        assert b"cause" not in answer.raw
    customer = await Cli(url=f"http://127.0.0.1:{api.port}", token=api.token).run("job", "show", job, "--json")
    assert "secret-pool" not in customer.out
    # nothing else in Redis has it: no event, no message, no list that a customer's call could read
    assert await holding(dashboard.cell, "secret-pool") == [f"job:{job}"]


async def test_long_texts_of_a_node_are_truncated_and_cleaned(dashboard: Dashboard) -> None:
    job = await fail(dashboard, replace(FAILED, cause=HOSTILE))
    shown = await dashboard.api.call("GET", f"/api/v1/ops/jobs/{job}/", token=dashboard.token)
    cause = shown.body["cause"]
    assert len(cause) <= CAUSE_MAX
    assert cause.startswith("a [2Jb c <script>xx")
    assert cause.rstrip().endswith("the reason")
    assert "<script>" not in await dashboard.browser.seen(f"/ops/jobs/{job}/")
