"""Tokens, permissions and accounts."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from api.http.callers import ACCOUNT_HEADER
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import READ_WRITE, SNAPSHOTS, FrontEnd, serving
from worker.store.access.tokens import Limits, Permission, Presented, Tokens, granting
from worker.store.model import AccountId

CALLS = [
    ("GET", SNAPSHOTS, Permission.SNAPSHOTS_READ),
    ("HEAD", SNAPSHOTS, Permission.SNAPSHOTS_READ),
    ("POST", SNAPSHOTS, Permission.SNAPSHOTS_CREATE),
    ("GET", f"{SNAPSHOTS}1/", Permission.SNAPSHOTS_READ),
    ("DELETE", f"{SNAPSHOTS}1/", Permission.SNAPSHOTS_DELETE),
    ("POST", f"{SNAPSHOTS}1/restore/", Permission.SNAPSHOTS_RESTORE),
    ("GET", f"/api/v1/jobs/{'0' * 32}/", Permission.SNAPSHOTS_READ),
]
each_call = pytest.mark.parametrize(("method", "path", "permission"), CALLS)


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell) as front_end:
        yield front_end


@each_call
async def test_without_a_token_every_call_is_401(api: FrontEnd, method: str, path: str, permission: Permission) -> None:
    for header in ["", "Basic dXNlcjpwYXNz", "Bearer"]:
        answer = await api.call(method, path, headers={"Authorization": header})
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
        if method != "HEAD":
            answer.refused(401, "token_missing")


@each_call
async def test_a_token_that_is_not_ours_is_401(api: FrontEnd, method: str, path: str, permission: Permission) -> None:
    for token in ["x", "vps_" + "A" * 43, api.token[:-1], api.token + "A", api.token.upper(), "vps_\xff" + "A" * 42]:
        answer = await api.call(method, path, token=token)
        assert answer.status == 401
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


@each_call
async def test_every_call_needs_its_own_permission(
    api: FrontEnd, method: str, path: str, permission: Permission
) -> None:
    token = await api.new_token(permissions=set(Permission) - set(granting(permission)))

    answer = await api.call(method, path, token=token)

    assert answer.status == 403
    if method != "HEAD":
        assert permission in answer.refused(403, "permission_denied")["detail"]


@each_call
async def test_a_permission_is_enough_for_its_calls(
    api: FrontEnd, method: str, path: str, permission: Permission
) -> None:
    token = await api.new_token(permissions={permission})

    assert (await api.call(method, path, token=token)).status in {200, 400, 404}


async def test_the_scheme_is_read_in_any_case(api: FrontEnd) -> None:
    assert (await api.call("GET", headers={"Authorization": f"bearer {api.token}"})).status == 200


async def test_a_revoked_token_is_401_at_once(api: FrontEnd) -> None:
    new = await api.tokens.create(name="short", account_id=ACCOUNT, permissions=READ_WRITE)
    assert (await api.call("GET", token=new.secret)).status == 200

    assert await api.tokens.revoke(new.token.id)

    (await api.call("GET", token=new.secret)).refused(401, "token_invalid")
    assert not await api.tokens.revoke(new.token.id)
    assert new.token not in await api.tokens.all()


async def test_a_token_that_has_ended_is_401_and_not_listed(api: FrontEnd) -> None:
    new = await api.tokens.create(
        name="short", account_id=ACCOUNT, permissions=READ_WRITE, lifetime=timedelta(seconds=60)
    )
    assert (await api.call("GET", token=new.secret)).status == 200
    assert new.token in await api.tokens.all()

    (key,) = [key async for key in api.cell.redis.scan_iter("token:*") if await api.cell.redis.ttl(key) > 0]
    await api.cell.redis.pexpireat(key, datetime(2020, 1, 1, tzinfo=UTC))

    (await api.call("GET", token=new.secret)).refused(401, "token_invalid")
    assert new.token not in await api.tokens.all()
    assert not await api.tokens.revoke(new.token.id)


async def test_redis_never_sees_a_tokens_secret(cell: Cell) -> None:
    secrets = [
        (await Tokens(cell.redis).create(name="a", account_id=account, permissions=READ_WRITE)).secret
        for account in [ACCOUNT, None]
    ]

    stored = [await cell.redis.dump(key) + key async for key in cell.redis.scan_iter("token*")]

    assert len(stored) == 5  # each token, the indexes by ID and by name, and the one of the account
    assert len(set(secrets)) == 2
    assert not any(secret.encode() in found or secret[4:].encode() in found for secret in secrets for found in stored)


async def test_a_token_is_remembered_as_it_was_made(cell: Cell) -> None:
    tokens = Tokens(cell.redis)
    new = await tokens.create(
        name="ünï", account_id=None, permissions=frozenset({Permission.OPERATOR}), lifetime=timedelta(days=30)
    )

    limits = Limits(calls=1, failed_logins=1)
    assert (await tokens.authenticate(Presented(secret=new.secret, address=""), limits)).token == new.token
    assert await tokens.all() == [new.token]
    assert new.token.expires_at == new.token.created_at + timedelta(days=30)


async def test_a_service_acts_for_the_account_that_it_names(api: FrontEnd) -> None:
    service = await api.new_token(account=None)
    await api.cell.give(AccountId(78))

    async def create(account: int) -> int:
        headers = {ACCOUNT_HEADER: str(account)}
        body = {"server_id": SERVER, "name": f"for-{account}"}
        return (await api.call("POST", body=body, token=service, headers=headers)).status

    assert await create(77) == 404
    assert await create(78) == 201


@pytest.mark.parametrize("account", [None, "", "x", "0", "-1", "1.0", "077", "7 7", "9" * 19, "9" * 5000, "\xff"])
async def test_a_service_must_name_an_account(api: FrontEnd, account: str | None) -> None:
    service = await api.new_token(account=None)

    answer = await api.call("GET", token=service, headers={} if account is None else {ACCOUNT_HEADER: account})

    assert answer.refused_fields() == [ACCOUNT_HEADER]


@pytest.mark.parametrize(("account", "status"), [("77", 200), ("78", 403), ("x", 403), ("", 403)])
async def test_a_customers_token_acts_for_its_own_account_only(api: FrontEnd, account: str, status: int) -> None:
    answer = await api.call("GET", headers={ACCOUNT_HEADER: account})

    assert answer.status == status
    if status == 403:
        answer.refused(403, "account_mismatch")


async def test_the_token_is_checked_before_the_body_is_read(api: FrontEnd) -> None:
    reader = await api.new_token(permissions={Permission.SNAPSHOTS_READ})

    (await api.call("POST", data=b"{", token="x")).refused(401, "token_invalid")  # noqa: S106 - none that lets anyone in
    (await api.call("POST", data=b"{", token=reader)).refused(403, "permission_denied")
