"""Response times of the operators' lists and pages with many jobs: `make bench-ops N=100000`. Each time is shown
beside that with 1,000 jobs, the baseline: a page that does not read all jobs takes about as long. Medians of the
rounds."""

import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable

import uvloop
from aiohttp import ClientSession

from tests.bench.figures import took
from tests.bench.seeding import Size, in_bulk, seed
from tests.browser.stage import Stage, staged
from worker.store.calls import Cursor
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import AccountId, JobKind, JobState, ServerId
from worker.store.operators.operator_store import JobFilter, OperatorStore

ROUNDS = 20
BASELINE, DEFAULT = 1_000, 100_000  # jobs
NODES, SERVERS_PER_NODE = 1_000, 20
OPEN_JOBS = 200
PAGE = Cursor(limit=100)


def looks(operators: OperatorStore) -> dict[str, Callable[[], Awaitable[object]]]:
    def jobs(**wanted: object) -> Callable[[], Awaitable[object]]:
        return lambda: operators.jobs(JobFilter(**wanted), PAGE)  # type: ignore[arg-type] # named where they are given

    return {
        "overview": operators.overview,
        "jobs": jobs(),
        "jobs, failed": jobs(state=JobState.FAILED),
        "jobs, of a node": jobs(node="node-7"),
        "jobs, failed, of a node": jobs(node="node-7", state=JobState.FAILED),
        "jobs, queued, of a node": jobs(node="node-7", state=JobState.QUEUED),
        "jobs, undone, failed": jobs(kind=JobKind.UNDO, state=JobState.FAILED),
        "jobs, of an account": jobs(account_id=AccountId(7)),
        "jobs, of a server": jobs(server_id=ServerId(7)),
        "jobs, of an error": jobs(error_code="disk_failed"),
        "jobs, with a text that none has": jobs(text="nowhere"),
        "nodes": lambda: operators.nodes(state=None, sort="-queued", cursor=PAGE),
        "nodes, silent": lambda: operators.nodes(state="silent", sort="name", cursor=PAGE),
        "servers": lambda: operators.servers(node=None, account_id=None, stranded=False, cursor=PAGE),
        "servers, of a node": lambda: operators.servers(node="node-7", account_id=None, stranded=False, cursor=PAGE),
    }


async def pages(stage: Stage, visitor: ClientSession, jobs: int) -> dict[str, Callable[[], Awaitable[object]]]:
    """Load each page as a browser does after the login."""

    def page(path: str) -> Callable[[], Awaitable[object]]:
        async def get() -> None:
            async with visitor.get(f"{stage.url}/ops/{path}", allow_redirects=False) as response:
                await response.read()
                assert response.status == 200, (path, response.status)

        return get

    middle = f"{jobs // 2:032x}"
    score = await stage.redis.zscore("jobs", middle)
    assert score is not None
    return {
        "page: overview": page(""),
        "page: jobs": page("jobs/"),
        "page: jobs, from the middle on": page(f"jobs/?after={score:.0f}:{middle}"),
        "page: jobs, failed": page("jobs/?state=failed"),
        "page: jobs, failed, of a node": page("jobs/?state=failed&node=node-7"),
        "page: jobs, undone, failed": page("jobs/?state=failed&kind=undo"),
        "page: jobs, of an account": page("jobs/?account_id=7"),
        "page: jobs, with a text": page("jobs/?text=web-7777"),
        "page: jobs, with a text that none has": page("jobs/?text=nowhere"),
        "page: a job": page(f"jobs/{middle}/"),
        "page: nodes": page("nodes/"),
        "page: nodes, by queue": page("nodes/?sort=-queued"),
        "page: a node": page("nodes/node-7/"),
        "page: servers": page("servers/"),
        "page: servers, of a node": page("servers/?node=node-7"),
        "page: a server": page("servers/7/"),
        "page: findings": page("findings/"),
        "page: audit": page("audit/"),
    }


async def fill(stage: Stage, jobs: int) -> None:
    began = time.perf_counter()
    async with in_bulk(stage.redis):
        await seed(stage.redis, Size(nodes=NODES, servers_per_node=SERVERS_PER_NODE, jobs=jobs, open_jobs=OPEN_JOBS))
    print(f"{jobs:,} jobs written in {time.perf_counter() - began:.0f} s", flush=True)


async def medians(stage: Stage, jobs: int) -> dict[str, float]:
    await stage.redis.flushdb()
    await fill(stage, jobs)
    await stage.stop_front_end()
    await stage.start_front_end()  # it caches counts of the previous cell
    async with ClientSession() as visitor:
        await log_in(stage, visitor)
        wanted = looks(OperatorStore(stage.redis, CustomerStore(stage.redis))) | await pages(stage, visitor, jobs)
        first = await took(wanted["page: overview"]())
        return {"page: overview, the first": first} | {name: await median_of(look) for name, look in wanted.items()}


async def log_in(stage: Stage, visitor: ClientSession) -> None:
    secret = (await stage.new_operator()).secret
    from_here = {"Sec-Fetch-Site": "same-origin"}
    form = {"token": secret}
    async with visitor.post(f"{stage.url}/ops/login/", data=form, headers=from_here, allow_redirects=False) as answer:
        assert answer.status == 303, await answer.text()
        session = next(iter(answer.cookies.values()))
    visitor.headers["Cookie"] = f"{session.key}={session.value}"


async def median_of(look: Callable[[], Awaitable[object]]) -> float:
    return statistics.median([await took(look()) for _ in range(ROUNDS)])


async def main(jobs: int) -> None:
    async with staged() as stage:
        few, many = await medians(stage, BASELINE), await medians(stage, jobs)
    print(f"{'ms, medians':<40}{f'{BASELINE:,} jobs':>14}{f'{jobs:,} jobs':>18}{'ratio':>8}")
    for name, baseline in few.items():
        print(f"{name:<40}{baseline:>14.1f}{many[name]:>18.1f}{many[name] / baseline:>7.1f}x")
    print(json.dumps({"rounds": ROUNDS, "medians_ms": {str(BASELINE): few, str(jobs): many}}))


if __name__ == "__main__":
    uvloop.run(main(int(os.environ.get("N") or DEFAULT)))
