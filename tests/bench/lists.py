"""Response times of a customer's lists and items by the number of snapshots and jobs: `make bench-lists N=1000000`.

One account has N snapshots, 100 of each server, and N jobs. The baseline has 1,000 of both; its pages are as long, so a
list that reads only its page takes about as long. One customer makes one call after the other to one front end over
HTTP. A round makes each call once, for random servers, snapshots and jobs. Redis keeps its file in memory: what these
calls write, their counts for the limit of calls, does not wait for a disk.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import uvloop
from aiohttp import ClientSession

from tests.bench import http, seeding
from tests.bench.figures import percentile, took
from tests.browser.stage import staged
from worker.store.access.tokens import Permission

ROUNDS = int(os.environ.get("ROUNDS") or 500)
BASELINE, DEFAULT = 1_000, 1_000_000  # snapshots, and jobs
OF_EACH = 100  # snapshots of a server
PAGE = 100  # the default of the API
SHARES = {"p50": 0.5, "p99": 0.99}

Times = dict[str, list[float]]  # in ms, by call


def calls(many: int, random: Random) -> dict[str, str]:
    """The path of each call."""
    return {
        "a server's snapshots": f"snapshots/?server_id={random.randint(1, many // OF_EACH)}",
        "an account's snapshots": "snapshots/",
        "an account's snapshots, last page": f"snapshots/?page={many // PAGE}",
        "a snapshot": f"snapshots/{random.randint(1, many)}/",
        "an account's jobs": "jobs/",
        "an account's jobs, last page": f"jobs/?page={many // PAGE}",
        "a job": f"jobs/{random.randrange(many):032x}/",
    }


@asynccontextmanager
async def account_with(many: int) -> AsyncIterator[ClientSession]:
    """A session of the account's customer, in a cell of its own."""
    async with staged() as stage:
        began = time.perf_counter()
        async with seeding.in_bulk(stage.redis):
            await seeding.write_rows(stage.redis, "nodes", seeding.nodes(http.NODES))
            await seeding.write_rows(stage.redis, "servers", http.servers(many // OF_EACH))
            await asyncio.gather(  # Redis writes one batch while the other is prepared
                seeding.write_rows(stage.redis, "snapshots", http.snapshots(many // OF_EACH, OF_EACH)),
                seeding.write_jobs(stage.redis, http.jobs(many // OF_EACH, OF_EACH, Random(7))),
            )
        print(f"{many:,} snapshots and jobs written in {time.perf_counter() - began:.0f} s", flush=True)
        may_read = frozenset({Permission.SNAPSHOTS_READ})
        token = await stage.tokens.create(name="a customer", account_id=http.ACCOUNT, permissions=may_read)
        headers = {"Authorization": f"Bearer {token.secret}"}
        async with ClientSession(f"{stage.url}/api/v1/", headers=headers) as session:
            yield session


async def get(session: ClientSession, path: str) -> None:
    async with session.get(path) as response:
        content = await response.read()
        assert response.status == 200, (path, content)


async def measure(sizes: Sequence[int]) -> dict[int, Times]:
    """The sizes take turns, so that load on the machine affects both."""
    found: dict[int, Times] = {many: {} for many in sizes}
    random = Random(7)
    async with AsyncExitStack() as stack:
        customers = {many: await stack.enter_async_context(account_with(many)) for many in sizes}
        for _ in range(ROUNDS):
            for many, session in customers.items():
                for name, path in calls(many, random).items():
                    found[many].setdefault(name, []).append(await took(get(session, path)))
    return found


async def main(many: int) -> None:
    found = await measure((BASELINE, many))
    print(f"{ROUNDS} rounds, ms, with {BASELINE:,} and with {many:,} snapshots and jobs")
    print(f"{'':<36}" + "".join(f"{name:>10}{name:>10}{'ratio':>8}" for name in SHARES))
    rows = []
    for name in found[BASELINE]:
        row: dict[str, tuple[float, float]] = {}
        for share_name, share in SHARES.items():
            few, more = (percentile(times[name], share) for times in found.values())
            row[share_name] = few, more
        cells = "".join(f"{few:>10.1f}{more:>10.1f}{more / few:>8.2f}" for few, more in row.values())
        print(f"{name:<36}{cells}")
        rows.append({"call": name, "ms": row})
    print(json.dumps({"rounds": ROUNDS, "sizes": list(found), "rows": rows}))


if __name__ == "__main__":
    uvloop.run(main(int(os.environ.get("N") or DEFAULT)))
