"""The running service behaves as documented, whatever is sent: Schemathesis with all its checks.

`make schemathesis EXAMPLES=200 SEED=7` is the long form.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from api.document import served
from api.http.calls import OPS
from api.http.probes import PROBES
from api.resources import CUSTOMERS_CALLS, OPERATORS_CALLS
from deploy.demo.client import Client
from deploy.demo.service import SERVER_ID, Service
from deploy.demo.state import State
from tests.integration.whole_service import running
from worker.store.access.tokens import Permission, Tokens
from worker.store.model import AccountId
from worker.store.redis_client import RedisSettings, connect

# CI must not fail at random; changing the seed is a change like any other
SEED = int(os.environ.get("SEED") or 20261123)
EXAMPLES = int(os.environ.get("EXAMPLES") or 8)  # per operation and phase
LIMIT_SECONDS = 60.0 * EXAMPLES  # an idle machine needs a tenth of it
CUSTOMERS, OPERATORS = "--exclude-tag=operators", "--include-tag=operators"
STREAMS = "/events/$"  # endless: it would wait for their end

CONFIGURATION = """
hooks = "{hooks}"
seed = {seed}
continue-on-failure = true
{auth}

[generation]
mode = "all"
max-examples = {examples}
database = "none"
# HTTP wants a header that is not known left alone
allow-extra-parameters = false

[phases.stateful]
max-steps = 12

[checks.positive_data_acceptance]
# 400 is the contract's code for what the server's state forbids; the hooks see that it is never `invalid_request`
# 422: the key of an earlier request; 429: a webhook's deliveries were sent again in the last minute
expected-statuses = ["2xx", 304, 400, 401, 403, 404, 409, 422, 429, 503]

# All checks run unless something names some: `--checks=all` names each, and so would overrule what follows.
[[operations]]
include-path = "/api/v1/ops/nodes/{{node}}/credentials/"
# a list that a DELETE has emptied is still there
checks.use_after_free.enabled = false
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with closing(State.open(tmp_path / "state")) as state:
        yield state


@pytest.fixture
async def service(state: State) -> AsyncIterator[Service]:
    async with running(state) as service:
        yield service


async def token(state: State, account: AccountId | None) -> str:
    redis = connect(RedisSettings(url=f"unix://{state.runtime / 'redis.sock'}"))
    try:
        new = await Tokens(redis).create(name="a test", account_id=account, permissions=frozenset(Permission))
        return new.secret
    finally:
        await redis.aclose(close_connection_pool=True)


async def tried(service: Service, folder: Path, *, auth: str, calls: str = CUSTOMERS) -> str:
    """Schemathesis's summary; fails if it has found anything."""
    configuration = folder / "schemathesis.toml"
    hooks = Path(__file__).with_name("schemathesis_hooks.py")
    configuration.write_text(CONFIGURATION.format(hooks=hooks, seed=SEED, auth=auth, examples=EXAMPLES))
    program = Path(sys.executable).with_name("st")
    process = await asyncio.create_subprocess_exec(
        *(
            program,
            "--config-file",
            configuration,
            "run",
            f"{service.url}{served.PATH}",
            f"--exclude-path-regex={STREAMS}",
            calls,
        ),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    said = output.decode()
    assert process.returncode == 0, said
    return said


async def test_nothing_that_is_sent_makes_an_answer_that_the_document_does_not_have(
    service: Service, tmp_path: Path
) -> None:
    said = await tried(service, tmp_path, auth=f'[auth.openapi.token]\nbearer = "{service.client.token}"')

    # the document does not list itself
    assert f"{len(CUSTOMERS_CALLS) - 1 + len(PROBES)} selected" in said


async def test_operators_calls_match_the_document_too(service: Service, state: State, tmp_path: Path) -> None:
    secret = await token(state, None)
    await have_a_job_that_failed(service.client, Client(service.url, secret))
    said = await tried(service, tmp_path, auth=f'[auth.openapi.token]\nbearer = "{secret}"', calls=OPERATORS)

    assert f"{len(OPERATORS_CALLS) - 1} selected" in said


async def have_a_job_that_failed(customer: Client, operator: Client) -> None:
    """Create a failed job for the operator: cancelled while its node was paused."""
    node = f"{OPS}nodes/node-1/"
    await operator.call("POST", f"{node}pause/", {"reason": "a test"})
    created = await customer.call("POST", "/api/v1/snapshots/", {"server_id": SERVER_ID, "name": "a"})
    cancelled = await customer.call("POST", f"{created.headers['Operation-Location']}cancel/")
    await operator.call("POST", f"{node}resume/", {"reason": "a test"})
    assert (cancelled.status, cancelled.body["state"]) == (200, "failed")


async def test_no_account_can_access_anothers_objects(service: Service, state: State, tmp_path: Path) -> None:
    tokens = {"one": service.client.token, "other": await token(state, AccountId(78))}
    headers = {name: {"name": "Authorization", "value": f"Bearer {secret}"} for name, secret in tokens.items()}
    users = [{"name": name, "fixedHeaders": [header]} for name, header in headers.items()]
    (tmp_path / "auth.json").write_text(json.dumps({"auth": users}))

    await tried(service, tmp_path, auth='[auth.wfc]\npath = "auth.json"\npeers = ["one", "other"]')
