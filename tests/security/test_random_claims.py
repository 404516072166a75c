"""A hostile node makes thousands of random claims: nothing of other nodes or accounts changes."""

import random
from contextlib import suppress

import pytest

from tests.claims import Liar
from tests.integration.conftest import ACCOUNT, SERVER
from tests.integration.front_end import DONE
from tests.security.conftest import ITS_ACCOUNT, ITS_SERVER, Hostile, kept
from tests.security.test_claims import victim_of
from worker.store.nodes.claims import BeginRefused, ClaimRefused
from worker.store.nodes.node_store import NodeStore, Placement

CALLS = 1500


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_of_another_changes(hostile: Hostile, seed: int) -> None:
    cell = hostile.cell
    victim = await victim_of(hostile, begin=bool(seed % 2))
    # only declared servers are accepted: otherwise it could add new ones to any account
    hostile.node = NodeStore(
        cell.redis,
        node="n2",
        machine="m2",
        who="pid 2",
        placement=Placement.DECLARED,
        refused=lambda call, why: hostile.refused.append((call, why)),
    )
    await hostile.node.take_lease(seconds=60)
    liar = Liar(
        random.Random(seed),  # noqa: S311 - no secret
        servers=(SERVER, ITS_SERVER, ITS_SERVER),
        accounts=(ACCOUNT, ITS_ACCOUNT),
        snapshots=(victim.snapshot,),
        jobs=(victim.job,),
    )

    async def theirs() -> dict[bytes, object]:
        kinds = (f"server:{SERVER}", f"account:{ACCOUNT}:", f"job:{victim.job}", f"snapshot:{victim.snapshot}")
        starts = tuple(start.encode() for start in (*kinds, "node:n1", "arq:queue:n1", "jobs:node:n1"))
        keys = [k async for k in cell.redis.scan_iter(count=1000) if k.startswith(starts) and not k.endswith(b":told")]
        return {k: await kept(cell, k) for k in keys}

    before = await theirs()
    for _ in range(CALLS):
        call, claimed = liar.claim()
        with suppress(ClaimRefused, BeginRefused):
            await getattr(hostile.node, call)(**claimed)
    assert await theirs() == before
    assert len(hostile.refused) > 100
    assert await cell.redis.scard("nodes") == 2  # type: ignore[misc]
    if not seed % 2:
        await cell.node.begin(victim.job)
    assert await cell.node.finish(victim.job, DONE) == "published"
    created = (await cell.create("next")).snapshot
    assert (await cell.store.snapshot(account_id=ACCOUNT, snapshot_id=created.id)).account_id == ACCOUNT
