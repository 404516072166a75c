"""Rate limits, and audit entries for who did what."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest

from api.processes import Process
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import SNAPSHOTS, FrontEnd, serving
from tests.queueing import until_told
from worker.store.access.audit import NEW, STREAM, Audit, AuditKeeper
from worker.store.calls import Cursor
from worker.store.operators.operator_store import OperatorStore
from worker.store.operators.records import AuditEntry

KEPT = timedelta(days=90)
CALLS, FAILED = 8, 3
BAD = "vps_" + "A" * 43


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, calls_per_minute=CALLS, failed_logins_per_minute=FAILED) as front_end:
        yield front_end


@pytest.fixture
async def behind_proxy(cell: Cell) -> AsyncIterator[FrontEnd]:
    proxies: Any = [ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8")]
    async with serving(cell, failed_logins_per_minute=FAILED, trusted_proxies=proxies) as front_end:
        yield front_end


async def entries(cell: Cell, **wanted: str) -> list[AuditEntry]:
    """Oldest first. Entries of jobs appear shortly after the call."""
    await AuditKeeper(cell.redis, kept=KEPT).keep()
    operators = OperatorStore(cell.redis, cell.store)
    since, found, after = datetime.now(UTC) - timedelta(hours=1), list[AuditEntry](), None
    while True:
        part = await operators.audit(wanted, Cursor(limit=500, after=after, since=since))
        found += part.results
        after = part.after
        if after is None:
            return found[::-1]


class TestCalls:
    async def test_a_token_has_a_limit_and_sees_what_is_left(self, api: FrontEnd) -> None:
        answers = [await api.call("GET") for _ in range(CALLS + 1)]

        assert [answer.status for answer in answers] == [200] * CALLS + [429]
        left = [re.fullmatch(r'"token";r=(\d+);t=(\d+)', answer.headers["RateLimit"]) for answer in answers]
        assert [int(match[1]) for match in left if match] == [*range(CALLS - 1, -1, -1), 0]
        assert {answer.headers["RateLimit-Policy"] for answer in answers} == {f'"token";q={CALLS};w=60'}
        answers[-1].refused(429, "rate_limited")
        waits = [int(match[2]) for match in left if match]
        assert all(0 < wait <= 60 // CALLS + 1 for wait in waits)
        # the draft: a client that waits for `Retry-After` never comes too early
        assert int(answers[-1].headers["Retry-After"]) == waits[-1]

    async def test_no_more_concurrent_calls_are_admitted(self, api: FrontEnd) -> None:
        answers = await asyncio.gather(*[api.call("GET") for _ in range(50)])
        assert [answer.status for answer in answers].count(200) == CALLS

    async def test_each_token_has_its_own_and_a_service_one_for_each_account(self, api: FrontEnd) -> None:
        service = await api.new_token(account=None)
        for _ in range(CALLS):
            await api.call("GET")
            await api.call("GET", token=service, headers={"X-Account-Id": "77"})

        assert (await api.call("GET")).status == 429
        assert (await api.call("GET", token=service, headers={"X-Account-Id": "77"})).status == 429
        assert (await api.call("GET", token=service, headers={"X-Account-Id": "78"})).status == 200
        assert (await api.call("GET", token=await api.new_token())).status == 200

    async def test_the_allowance_returns_and_leaves_no_key(self, api: FrontEnd) -> None:
        await api.call("GET")
        (key,) = [key async for key in api.cell.redis.scan_iter("calls:*")]
        assert 0 < await api.cell.redis.pttl(key) <= 60_000 / CALLS

    async def test_probes_and_the_document_are_free(self, api: FrontEnd) -> None:
        for _ in range(CALLS + 1):
            for path in ("/healthz", "/readyz", "/api/v1/openapi.json"):
                assert (await api.call("GET", path)).status == 200

    async def test_they_are_counted_in_memory_only(self, api: FrontEnd) -> None:
        async def written() -> int:
            return int((await api.cell.redis.info("persistence"))["aof_current_size"])

        before = await written()
        for _ in range(CALLS):
            await api.call("GET")
        assert await written() == before

    async def test_a_clock_that_was_set_back_locks_nobody_out(self, api: FrontEnd) -> None:
        await api.call("GET")
        (key,) = [key async for key in api.cell.redis.scan_iter("calls:*")]
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        await api.cell.redis.set(key, f"{tomorrow.timestamp() * 1000:.3f}", px=86_400_000)

        assert [(await api.call("GET")).status for _ in range(CALLS + 1)] == [200] * CALLS + [429]

    async def test_a_stream_tells_them_too(self, api: FrontEnd) -> None:
        url, headers = f"http://127.0.0.1:{api.port}/api/v1/events/", {"Authorization": f"Bearer {api.token}"}
        async with api.client.get(url, headers=headers) as stream:
            assert stream.headers["RateLimit"].startswith(f'"token";r={CALLS - 1};')
            assert stream.headers["X-Request-Id"]


class TestFailedLogins:
    async def test_an_address_has_so_many_and_good_tokens_still_get_in(self, api: FrontEnd) -> None:
        for _ in range(FAILED):
            (await api.call("GET", token=BAD)).refused(401, "token_invalid")
        refused = await api.call("GET", token=BAD)

        refused.refused(429, "rate_limited")
        (await api.call("GET", headers={"Authorization": "none"})).refused(
            429, "rate_limited"
        )  # no token counts like a bad one
        assert "RateLimit" not in refused.headers
        assert (await api.call("GET")).status == 200

    async def test_behind_our_proxies_the_address_is_the_one_before_them(self, behind_proxy: FrontEnd) -> None:
        async def status(forwarded: str) -> int:
            headers = {"X-Forwarded-For": forwarded}
            return (await behind_proxy.call("GET", token=BAD, headers=headers)).status

        assert [await status("203.0.113.7, 10.1.1.1") for _ in range(FAILED + 1)] == [401] * FAILED + [429]
        assert await status("203.0.113.8, 10.1.1.1") == 401
        # a client's own claim is to the left of what our proxies have added
        assert await status("203.0.113.9, 203.0.113.7") == 429

    async def test_an_ipv6_caller_is_its_network(self, behind_proxy: FrontEnd) -> None:
        async def status(forwarded: str) -> int:
            return (await behind_proxy.call("GET", token=BAD, headers={"X-Forwarded-For": forwarded})).status

        assert [await status(f"2001:db8:0:1::{n}") for n in range(FAILED + 1)] == [401] * FAILED + [429]
        assert await status("2001:db8:0:2::1") == 401

    async def test_a_strangers_forwarded_address_is_ignored(self, api: FrontEnd) -> None:
        answers = [
            await api.call("GET", token=BAD, headers={"X-Forwarded-For": f"203.0.113.{n}"}) for n in range(FAILED + 1)
        ]
        assert answers[-1].status == 429


class TestAudit:
    async def test_each_call_that_changes_something_is_written_down_and_no_other(self, api: FrontEnd) -> None:
        created = await api.create()
        await api.call("GET")
        refused = await api.call("DELETE", f"{SNAPSHOTS}999/")
        await api.call("DELETE", f"{SNAPSHOTS}999/", token=BAD)

        first, second = await entries(api.cell)
        assert datetime.now(UTC) - first.at < timedelta(minutes=1)
        (token,) = await api.tokens.all()
        who = {"token": token.id, "token_name": "a customer", "account": str(ACCOUNT), "address": "127.0.0.1"}
        assert {*first.fields} >= {"seq", "chain"}
        assert {name: text for name, text in first.fields.items() if name not in {"seq", "chain"}} == who | {
            "method": "POST",
            "path": SNAPSHOTS,
            "server": str(SERVER),
            "job": created.headers["X-Job-Id"],
            "made": f"snapshot {created.body['id']}",
            "status": "201",
            "request_id": created.headers["X-Request-Id"],
        }
        assert (second.fields["code"], second.fields["status"]) == ("snapshot_not_found", "404")
        assert second.fields["request_id"] == refused.headers["X-Request-Id"]

    async def test_created_and_named_objects_are_in_the_entry(self, api: FrontEnd) -> None:
        created = await api.create()
        job_id = created.headers["X-Job-Id"]
        schedule = await api.call(
            "POST", "/api/v1/schedules/", body={"server_id": SERVER, "name": "n", "when": "daily"}
        )
        webhook = await api.call("POST", "/api/v1/webhooks/", body={"url": "https://hooks.example.com/"})
        assert (await api.call("POST", f"/api/v1/jobs/{job_id}/cancel/")).status == 200
        for stranger in ("f" * 500, "..%2f..%2flogout"):
            await api.call("POST", f"/api/v1/jobs/{stranger}/cancel/")

        told = [(entry.fields.get("job"), entry.fields.get("made")) for entry in await entries(api.cell)]
        assert told == [
            (job_id, f"snapshot {created.body['id']}"),
            (None, f"schedule {schedule.body['id']}"),
            (None, f"webhook {webhook.body['id']}"),
            (job_id, None),
            (None, None),
            (None, None),
        ]

    async def test_strangers_and_callers_over_the_limit_displace_no_entry(
        self, api: FrontEnd, capsys: pytest.CaptureFixture[str]
    ) -> None:
        await api.call("POST", body={}, token=BAD)
        await api.call("POST", body={}, headers={"Authorization": "none"})
        await api.call("POST", "/nowhere/", body={})
        for _ in range(CALLS + 5):
            await api.call("POST", body={})

        assert len(await entries(api.cell)) == CALLS
        log = capsys.readouterr().out
        assert "token_invalid" in log
        assert "token_missing" in log
        assert "127.0.0.1" in log

    async def test_no_secret_and_no_text_of_the_customers_is_in_it(self, api: FrontEnd) -> None:
        await api.call("POST", body={"server_id": SERVER, "name": "n", "description": "their own words"})
        await api.call("POST", "/api/v1/" + "x" * 5000)
        written = json.dumps([dict(entry.fields) for entry in await entries(api.cell)])
        assert api.token not in written
        assert "their own words" not in written
        assert len(written) < 2000

    async def test_it_is_filtered_by_caller_and_object(self, api: FrontEnd) -> None:
        other = await api.new_token()
        await api.create()
        given = await api.call("POST", body={}, token=other)

        (found,) = await entries(api.cell, request_id=given.headers["X-Request-Id"])
        assert await entries(api.cell, token=found.fields["token"]) == [found]
        assert len(await entries(api.cell, account=str(ACCOUNT))) == 2
        assert await entries(api.cell, account="78") == []

    async def test_many_entries_are_read_in_batches_and_old_ones_go(self, cell: Cell) -> None:
        audit, now = Audit(cell.redis, keeper=AuditKeeper(cell.redis, kept=KEPT)), datetime.now(UTC)
        oldest = round((now - timedelta(days=91)).timestamp() * 1000)
        for n in range(300):
            await cell.redis.xadd(STREAM, {"path": "old"}, id=str(oldest + n))
        for n in range(1100):
            await audit.write({"path": str(n)})

        assert [entry.fields["path"] for entry in await entries(cell)] == [str(n) for n in range(1100)]
        assert await cell.redis.xlen(STREAM) <= 1100 + 100  # Redis trims whole nodes of a stream, not single entries

    async def test_each_process_of_a_front_end_moves_its_own_entries(self, cell: Cell) -> None:
        async with serving(cell, process=Process(index=1)) as api:
            await api.create()
            await until_told(lambda: self._has_moved(cell))

    async def _has_moved(self, cell: Cell) -> bool:
        return bool(await cell.raw("XLEN", STREAM))

    async def test_a_call_succeeds_if_its_entry_cannot_be_written(
        self, api: FrontEnd, capsys: pytest.CaptureFixture[str]
    ) -> None:
        await api.cell.redis.set(NEW, "in the way")
        assert (await api.create()).status == 201
        assert "audit.failed" in capsys.readouterr().out

    async def test_a_refused_call_whose_entry_could_not_be_moved_is_in_the_log(
        self, api: FrontEnd, capsys: pytest.CaptureFixture[str]
    ) -> None:
        await api.cell.redis.set(STREAM, "in the way")
        (await api.call("DELETE", f"{SNAPSHOTS}1/")).refused(404, "snapshot_not_found")
        assert "audit.failed" in capsys.readouterr().out


class TestBudgetOfTheAuditLog:
    @pytest.fixture
    async def api(self, cell: Cell) -> AsyncIterator[FrontEnd]:
        async with serving(cell, audit_entries_per_hour=3) as front_end:
            yield front_end

    async def test_beyond_it_calls_without_a_job_are_omitted_and_the_log_says_so(self, api: FrontEnd) -> None:
        other = await api.new_token()
        for _ in range(3):
            (await api.call("DELETE", f"{SNAPSHOTS}1/")).refused(404, "snapshot_not_found")
        for _ in range(3):
            await api.call("DELETE", f"{SNAPSHOTS}2/")
            await api.call("POST", f"{SNAPSHOTS}?dry_run=true", body={"server_id": 4, "name": "x"})
        (await api.call("DELETE", f"{SNAPSHOTS}3/", token=other)).refused(404, "snapshot_not_found")
        found = await entries(api.cell)
        paths = [entry.fields["path"] for entry in found]
        assert paths == [f"{SNAPSHOTS}1/"] * 3 + [f"{SNAPSHOTS}3/"]
        assert ["program's log" in entry.fields.get("reason", "") for entry in found] == [False, False, True, False]

    async def test_a_job_is_always_in_it(self, api: FrontEnd) -> None:
        for _ in range(5):
            await api.call("DELETE", f"{SNAPSHOTS}1/")
        assert (await api.create()).status == 201
        assert [entry.fields["method"] for entry in await entries(api.cell)] == ["DELETE"] * 3 + ["POST"]
