"""Webhooks: what an account's receivers get, retries until they have it, and where nothing is ever sent."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import ClientConnectorError, web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs

from api.webhooks.sender import AT_ONCE, JITTER, PATIENCE_SECONDS, RETRIES, signed
from api.webhooks.ssrf import AddressRefused, Reach, client, is_public, url_error
from tests.conftest import RedisServer
from tests.integration.conftest import ACCOUNT, Cell
from tests.integration.front_end import DONE, FrontEnd, Names, serving
from tests.integration.test_api_program import Program
from tests.queueing import until, until_told
from worker.store.model import AccountId, JobId, JobState, Step
from worker.store.webhooks.deliveries import Deliveries, Result
from worker.store.webhooks.webhooks import JobEvent, WebhookChange, Webhooks

WEBHOOKS = "/api/v1/webhooks/"
OTHERS = AccountId(78)
EVERY = [str(event) for event in JobEvent]
PATIENCE_SECONDS_FOR_END = 60.0  # an upper bound: normally it takes milliseconds
URL = "https://hooks.example.com/snapshots"


@dataclass(kw_only=True)
class Receiver:
    """A customer's endpoint. `answers`: the status of each response; the last one is repeated."""

    answers: list[int] = field(default_factory=lambda: [200])
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        await self.open.wait()
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, headers={"Location": f"{self.url}inside/"})

    def messages(self, secret: str) -> list[Any]:
        """The received messages, each verified by the specification's own library."""
        return [Webhook(secret).verify(body, headers) for headers, body in self.got]

    async def has(self, count: int) -> None:
        await until(lambda: len(self.got) >= count)


@asynccontextmanager
async def receiving(**given: Any) -> AsyncIterator[Receiver]:
    receiver = Receiver(**given)
    receiver.open.set()
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", receiver.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield receiver
    receiver.open.set()
    await runner.cleanup()


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, webhooks_to_private=True, webhook_seconds=2.0) as front_end:
        yield front_end


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


async def made(api: FrontEnd, url: str, **more: Any) -> dict[str, Any]:
    answer = await api.call("POST", WEBHOOKS, body={"url": url, **more})
    assert answer.status == 201, answer.raw
    return dict(answer.body)


async def log_of(api: FrontEnd, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    return list((await api.call("GET", f"{WEBHOOKS}{webhook['id']}/deliveries/")).body["results"])


async def latest(api: FrontEnd, webhook: dict[str, Any], is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the newest delivery when it matches."""

    async def look() -> bool:
        return is_so((await log_of(api, webhook))[0])

    await until_told(look)
    return (await log_of(api, webhook))[0]


async def attempted(api: FrontEnd, webhook: dict[str, Any], times: int = 1) -> dict[str, Any]:
    return await latest(api, webhook, lambda delivery: delivery["attempts"] == times)


async def time_passes(cell: Cell, webhook_id: str) -> None:
    """Let the time pass for which the webhook waits: for a retry or the end of a claim."""
    queue = f"webhook:{webhook_id}:due"
    async with cell.redis.pipeline(transaction=True) as pipe:
        for delivery_id in await cell.redis.zrange(queue, 0, -1):
            pipe.zadd(queue, {delivery_id: 1}, xx=True)
        pipe.hdel(f"webhook:{webhook_id}", "claimed_until_ms")
        pipe.zadd("webhooks:due", {webhook_id: 1})
        pipe.lpush("webhooks:wake", "1")
        await pipe.execute()


async def send_test(api: FrontEnd, webhook: dict[str, Any]) -> None:
    assert (await api.call("POST", f"{WEBHOOKS}{webhook['id']}/test/")).status == 202


class TestCalls:
    async def test_one_is_made_shown_changed_and_deleted(self, api: FrontEnd) -> None:
        answer = await api.call("POST", WEBHOOKS, body={"url": URL, "description": "ours"})
        webhook = dict(answer.body)
        path = answer.headers["Location"]

        assert len(Webhook(webhook.pop("secret"))._whsecret) == 32
        assert webhook | {"id": "", "created_at": ""} == {
            "id": "",
            "url": URL,
            "description": "ours",
            "events": ["job.completed", "job.failed"],
            "enabled": True,
            "disabled_reason": None,
            "failing_since": None,
            "created_at": "",
        }
        assert (await api.call("GET", path)).body == webhook
        assert (await api.call("GET", WEBHOOKS)).body == {"count": 1, "results": [webhook]}
        change = {"events": ["job.failed"], "enabled": False}
        assert (await api.call("PATCH", path, body=change)).body == webhook | change
        assert (await api.call("PATCH", path, body={})).body == webhook | change

        assert (await api.call("DELETE", path)).status == 204
        for method, call in (("GET", path), ("DELETE", path), ("GET", f"{path}deliveries/"), ("POST", f"{path}test/")):
            (await api.call(method, call)).refused(404, "webhook_not_found")
        assert [key async for key in api.cell.redis.scan_iter("*webhook*")] == []

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"url": None}, "url"),
            ({"url": "hooks.example.com"}, "url"),
            ({"url": "ftp://hooks.example.com/"}, "url"),
            ({"url": "https://"}, "url"),
            ({"url": "https://hooks.example.com:99999/"}, "url"),
            ({"url": "https://user:word@hooks.example.com/"}, "url"),
            ({"url": "https://hooks.example.com/#x"}, "url"),
            ({"url": "https://hooks.example.com/\n"}, "url"),
            ({"url": "https://hooks.example.com/" + "x" * 2048}, "url"),
            ({"events": []}, "events"),
            ({"events": ["job.lost"]}, "events"),
            ({"events": ["job.failed", "job.failed"]}, "events"),
            ({"enabled": None}, "enabled"),
            ({"secret": "whsec_x"}, "secret"),
        ],
    )
    async def test_what_cannot_be_is_named(self, api: FrontEnd, change: dict[str, Any], field: str) -> None:
        assert (await api.call("POST", WEBHOOKS, body={"url": URL} | change)).refused_fields() == [field]
        path = f"{WEBHOOKS}{(await made(api, URL))['id']}/"
        assert (await api.call("PATCH", path, body=change)).refused_fields() == [field]

    async def test_what_a_newer_release_has_written_is_left_out_and_kept(self, api: FrontEnd) -> None:
        webhook = await made(api, URL)
        path, key = f"{WEBHOOKS}{webhook['id']}/", f"webhook:{webhook['id']}"
        new = {"events": "job.failed job.paused", "disabled_reason": "moved", "enabled": ""}
        await api.cell.redis.hset(key, mapping=new)  # type: ignore[misc] # redis-py's types

        seen = (await api.call("GET", path)).body
        assert (seen["events"], seen["disabled_reason"], seen["enabled"]) == (["job.failed"], None, False)
        assert (await api.call("GET", WEBHOOKS)).body == {"count": 1, "results": [seen]}
        assert (await api.call("PATCH", path, body={"description": "x"})).body == seen | {"description": "x"}
        assert await api.cell.redis.hget(key, "events") == b"job.failed job.paused"  # type: ignore[misc] # as above

    async def test_one_that_cannot_be_shown_hides_no_other_and_is_not_changed(self, api: FrontEnd) -> None:
        odd, good = await made(api, URL), await made(api, URL)
        path, key = f"{WEBHOOKS}{odd['id']}/", f"webhook:{odd['id']}"
        await api.cell.redis.hset(key, "created_ms", "today")  # type: ignore[misc] # redis-py's types

        (await api.call("GET", path)).refused(409, "record_unreadable")
        (await api.call("PATCH", path, body={"enabled": False})).refused(409, "record_unreadable")
        (await api.call("POST", f"{path}rotate-secret/")).refused(409, "record_unreadable")
        assert await api.cell.redis.hget(key, "enabled") == b"1"  # type: ignore[misc] # redis-py's types
        assert [found["id"] for found in (await api.call("GET", WEBHOOKS)).body["results"]] == [good["id"]]
        assert (await api.call("DELETE", path)).status == 204

    async def test_ten_are_enough(self, api: FrontEnd) -> None:
        for _ in range(10):
            await made(api, URL)
        (await api.call("POST", WEBHOOKS, body={"url": URL})).refused(400, "webhook_limit_reached")

    async def test_a_retried_call_does_it_once_and_no_secret_is_where_nodes_may_read(
        self, api: FrontEnd, receiver: Receiver
    ) -> None:
        key, body = {"Idempotency-Key": "k"}, {"url": receiver.url}
        answers = await asyncio.gather(*[api.call("POST", WEBHOOKS, body=body, headers=key) for _ in range(10)])
        assert len({answer.raw for answer in answers}) == 1
        path = answers[0].headers["Location"]
        for call in ("rotate-secret", "test"):
            key = {"Idempotency-Key": call}
            first, again = [await api.call("POST", f"{path}{call}/", headers=key) for _ in range(2)]
            assert first.raw == again.raw
            assert [answer.headers.get("Idempotent-Replayed") for answer in (first, again)] == [None, "true"]
        assert len(await log_of(api, answers[0].body)) == 1

        redis = api.cell.redis
        for readable in [name async for name in redis.scan_iter("[^t]*")]:
            assert b"whsec_" not in (await redis.dump(readable) or b"")
        assert (await redis.keys("token:answer:*")) != []


class TestRedeliveries:
    async def given_up(self, api: FrontEnd, webhook: dict[str, Any], name: str) -> dict[str, Any]:
        """A delivery for a job, all of whose attempts have failed."""
        await api.work(await api.create(name))
        failed = await attempted(api, webhook)
        await api.cell.raw("HSET", f"delivery:{failed['id']}", "attempts", str(len(RETRIES)))
        await time_passes(api.cell, webhook["id"])
        return await attempted(api, webhook, len(RETRIES) + 1)

    def path(self, webhook: dict[str, Any], delivery_id: str = "") -> str:
        one = f"deliveries/{delivery_id}/" if delivery_id else ""
        return f"{WEBHOOKS}{webhook['id']}/{one}redeliver/"

    async def test_one_that_was_given_up_is_sent_again_as_the_same_message(self, api: FrontEnd) -> None:
        async with receiving(answers=[500]) as receiver:
            webhook = await made(api, receiver.url)
            failed = await self.given_up(api, webhook, "first")
            assert (failed["next_attempt_at"], failed["delivered_at"]) == (None, None)
            receiver.answers[:] = [500, 200]
            key = {"Idempotency-Key": "again"}
            answers = [await api.call("POST", self.path(webhook, failed["id"]), headers=key) for _ in range(2)]
            assert [answer.status for answer in answers] == [202, 202]
            assert answers[0].raw == answers[1].raw
            assert (answers[0].body["id"], answers[0].body["attempts"]) == (failed["id"], 0)
            assert answers[0].body["next_attempt_at"] is not None

            again = await attempted(api, webhook)
            assert (again["error"], again["next_attempt_at"] is None) == ("bad_status", False)  # it is retried as usual
            await time_passes(api.cell, webhook["id"])
            done = await attempted(api, webhook, 2)
            assert (done["status_code"], done["delivered_at"] is None) == (200, False)
            assert len(receiver.got) == 4
            assert {headers["webhook-id"] for headers, _ in receiver.got} == {failed["id"]}
            assert len({body for _, body in receiver.got}) == 1
            assert receiver.messages(webhook["secret"])[-1]["data"]["state"] == "completed"
            arrived = await api.call("POST", self.path(webhook, failed["id"]))
            assert "succeeded" in arrived.refused(409, "delivery_not_redeliverable")["detail"]
            assert await api.cell.raw("ZCARD", f"account:{ACCOUNT}:deliveries") == 0

    async def test_one_that_waits_is_sent_now(self, api: FrontEnd) -> None:
        async with receiving(answers=[500, 500, 200]) as receiver:
            webhook = await made(api, receiver.url)
            await send_test(api, webhook)
            await attempted(api, webhook)
            await time_passes(api.cell, webhook["id"])
            waits = await attempted(api, webhook, 2)
            again = await api.call("POST", self.path(webhook, waits["id"]))
            assert (again.status, again.body["attempts"]) == (202, 2)
            assert (await attempted(api, webhook, 3))["delivered_at"] is not None

    async def test_all_that_failed_are_sent_again_and_nothing_else(self, api: FrontEnd) -> None:
        async with receiving(answers=[500]) as receiver:
            webhook = await made(api, receiver.url)
            up = await self.given_up(api, webhook, "first")
            await send_test(api, webhook)
            waits = await attempted(api, webhook)
            old = await self.given_up(api, webhook, "second")
            await api.cell.raw("HDEL", f"delivery:{old['id']}", "job")  # as an earlier version left it
            receiver.answers[:] = [200]
            await api.work(await api.create("third"))
            arrived = await latest(api, webhook, lambda delivery: delivery["delivered_at"] is not None)
            receiver.got.clear()

            sent = await api.call("POST", self.path(webhook))
            assert (sent.status, sent.body) == (202, {"redelivered": 2, "not_kept": 1})

            async def have_arrived() -> bool:
                log = {one["id"]: one["delivered_at"] for one in await log_of(api, webhook)}
                return {one for one, at in log.items() if at is None} == {old["id"]}

            await until_told(have_arrived)
            assert {headers["webhook-id"] for headers, _ in receiver.got} == {up["id"], waits["id"]} - {arrived["id"]}
            gone = await api.call("POST", self.path(webhook, old["id"]))
            assert "no longer kept" in gone.refused(409, "delivery_not_redeliverable")["detail"]
            soon = await api.call("POST", self.path(webhook))
            soon.refused(429, "redelivered_recently")
            assert soon.headers["Retry-After"] == "60"
            await api.cell.raw("HINCRBY", f"webhook:{webhook['id']}", "redelivered_ms", -60_000)  # a minute later
            for _ in range(2):  # a call that sends nothing blocks no later one
                assert (await api.call("POST", self.path(webhook))).body == {"redelivered": 0, "not_kept": 1}

    async def test_a_disabled_webhook_gets_none_until_it_is_enabled(self, api: FrontEnd, receiver: Receiver) -> None:
        webhook = await made(api, receiver.url)
        failed = await api.have_failed_delivery(webhook["id"])
        await api.call("PATCH", f"{WEBHOOKS}{webhook['id']}/", body={"enabled": False})
        for path in (self.path(webhook), self.path(webhook, failed)):
            (await api.call("POST", path)).refused(409, "webhook_disabled")
        assert await api.cell.raw("ZCARD", f"webhook:{webhook['id']}:due") == 0
        await api.call("PATCH", f"{WEBHOOKS}{webhook['id']}/", body={"enabled": True})
        assert (await api.call("POST", self.path(webhook))).body == {"redelivered": 1, "not_kept": 0}
        await receiver.has(1)

    async def test_a_delivery_of_another_webhook_is_not_found(self, api: FrontEnd, receiver: Receiver) -> None:
        mine, other = await made(api, receiver.url), await made(api, receiver.url)
        of_other = await api.have_failed_delivery(other["id"])
        for delivery_id in (of_other, "0" * 32, "no-id"):
            (await api.call("POST", self.path(mine, delivery_id))).refused(404, "delivery_not_found")
        await api.cell.raw("DEL", f"delivery:{of_other}")  # it has expired after a week
        (await api.call("POST", self.path(other, of_other))).refused(404, "delivery_not_found")
        stranger = await api.new_token(account=OTHERS)
        for path in (self.path(other), self.path(other, of_other)):
            (await api.call("POST", path, token=stranger)).refused(404, "webhook_not_found")


class TestDeliveries:
    async def test_each_subscribed_event_is_sent_with_the_job_as_it_was(
        self, api: FrontEnd, receiver: Receiver
    ) -> None:
        webhook = await made(api, receiver.url, events=EVERY)
        created = await api.create()
        job_id = JobId(created.headers["X-Job-Id"])
        await api.cell.node.begin(job_id)
        await api.cell.node.progress(job_id, Step.STOPPING)
        await api.cell.node.finish(job_id, DONE)
        await receiver.has(4 - 1)

        told = sorted(receiver.messages(webhook["secret"]), key=lambda message: EVERY.index(message["type"]))
        assert [message["type"] for message in told] == ["job.queued", "job.in_progress", "job.completed"]
        assert [message["data"]["state"] for message in told] == ["queued", "in_progress", "completed"]
        assert [message["data"]["attempts"] for message in told] == [0, 1, 1]
        shown = (await api.call("GET", f"/api/v1/jobs/{job_id}/")).body
        assert told[-1]["data"] == shown
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 3
        done = await latest(api, webhook, lambda delivery: delivery["delivered_at"] is not None)
        assert (done["status_code"], done["error"], done["next_attempt_at"]) == (200, None, None)

    async def test_unsubscribed_events_and_those_of_others_are_not_sent(
        self, api: FrontEnd, receiver: Receiver
    ) -> None:
        stranger = await api.new_token(account=OTHERS)
        await api.call("POST", WEBHOOKS, body={"url": receiver.url, "events": EVERY}, token=stranger)
        off = await made(api, receiver.url, events=EVERY, enabled=False)
        failed = await made(api, receiver.url, events=["job.failed"])
        await api.work(await api.create())
        await send_test(api, failed)
        await receiver.has(1)

        (message,) = receiver.messages(failed["secret"])
        assert (message["type"], message["data"]) == ("webhook.test", {"webhook_id": failed["id"]})
        assert await log_of(api, off) == []
        (await api.call("POST", f"{WEBHOOKS}{off['id']}/test/")).refused(409, "webhook_not_ready")
        shown = await api.call("POST", f"{WEBHOOKS}{off['id']}/test/")
        assert shown.body["detail"] == "The webhook is disabled. Enable it first."

    async def test_the_old_secret_also_signs_for_a_day(self, api: FrontEnd, receiver: Receiver) -> None:
        webhook = await made(api, receiver.url)
        rotated = (await api.call("POST", f"{WEBHOOKS}{webhook['id']}/rotate-secret/")).body
        assert rotated["secret"] != webhook["secret"]
        await send_test(api, webhook)
        await receiver.has(1)
        assert receiver.messages(webhook["secret"]) == receiver.messages(rotated["secret"])

        receiver.got.clear()
        await api.cell.redis.hset(f"token:webhook:{webhook['id']}", "old_until_ms", "1")  # type: ignore[misc]  # typed for the blocking client too
        await send_test(api, webhook)
        await receiver.has(1)
        assert receiver.messages(rotated["secret"])
        with pytest.raises(WebhookVerificationError):
            receiver.messages(webhook["secret"])

    async def test_a_failure_is_tried_again_as_the_same_message_until_it_is_delivered(self, api: FrontEnd) -> None:
        async with receiving(answers=[500, 302, 204]) as receiver:
            webhook = await made(api, receiver.url)
            await send_test(api, webhook)
            for times, status in ((1, 500), (2, 302)):
                failed = await attempted(api, webhook, times)
                assert (failed["status_code"], failed["error"]) == (status, "bad_status")
                since = (await api.call("GET", f"{WEBHOOKS}{webhook['id']}/")).body["failing_since"]
                wait = datetime.fromisoformat(failed["next_attempt_at"]) - datetime.fromisoformat(since)
                assert RETRIES[times - 1] <= wait <= RETRIES[times - 1] * (1 + JITTER)
                if times == 1:  # so that the second failure is the first of a series
                    await api.cell.raw("HDEL", f"webhook:{webhook['id']}", "failing_since_ms")
                await time_passes(api.cell, webhook["id"])
            delivered = await attempted(api, webhook, 3)

            assert (delivered["status_code"], delivered["error"]) == (204, None)
            assert delivered["delivered_at"] is not None
            assert (await api.call("GET", f"{WEBHOOKS}{webhook['id']}/")).body["failing_since"] is None
            assert len({body for _, body in receiver.got}) == 1
            assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1

    async def test_after_the_last_attempt_it_is_given_up(self, api: FrontEnd) -> None:
        async with receiving(answers=[500]) as receiver:
            webhook = await made(api, receiver.url)
            await send_test(api, webhook)
            for times in range(1, len(RETRIES) + 1):
                await attempted(api, webhook, times)
                await time_passes(api.cell, webhook["id"])
            last = await attempted(api, webhook, len(RETRIES) + 1)
            assert (last["next_attempt_at"], last["delivered_at"]) == (None, None)
            assert await api.cell.redis.zcard(f"webhook:{webhook['id']}:due") == 0

    async def test_a_deleted_webhook_gets_nothing(self, api: FrontEnd, capsys: pytest.CaptureFixture[str]) -> None:
        async with receiving(answers=[410]) as receiver:
            webhook = await made(api, receiver.url)
            await send_test(api, webhook)
            await attempted(api, webhook)
            shown = (await api.call("GET", f"{WEBHOOKS}{webhook['id']}/")).body
            assert (shown["enabled"], shown["disabled_reason"]) == (False, "gone")
            on = (await api.call("PATCH", f"{WEBHOOKS}{webhook['id']}/", body={"enabled": True})).body
            assert (on["enabled"], on["disabled_reason"]) == (True, None)

    async def test_a_webhook_that_fails_for_days_is_disabled(self, api: FrontEnd) -> None:
        async with receiving(answers=[500]) as receiver:
            webhook = await made(api, receiver.url)
            days_ago = (datetime.now(UTC) - timedelta(seconds=PATIENCE_SECONDS + 60)).timestamp() * 1000
            key = f"webhook:{webhook['id']}"
            await api.cell.redis.hset(key, "failing_since_ms", str(round(days_ago)))  # type: ignore[misc]  # typed for the blocking client too
            await send_test(api, webhook)
            await attempted(api, webhook)
            shown = (await api.call("GET", f"{WEBHOOKS}{webhook['id']}/")).body
            assert (shown["enabled"], shown["disabled_reason"]) == (False, "failing")

    async def test_a_hanging_receiver_does_not_delay_others(self, api: FrontEnd, receiver: Receiver) -> None:
        async with receiving() as slow:
            slow.open.clear()
            hangs = await made(api, slow.url)
            for _ in range(20):
                await send_test(api, hangs)
            await slow.has(1)
            works = await made(api, receiver.url)
            await send_test(api, works)
            await attempted(api, works)

            await slow.has(2)  # the first two time out; then the waiting ones follow, some at a time
            assert len(slow.got) <= 1 + AT_ONCE

    async def test_accounts_whose_receivers_all_hang_hold_no_other_account_back(self, cell: Cell) -> None:
        async with (
            receiving() as slow,
            receiving() as works,
            serving(cell, webhooks_to_private=True, webhook_seconds=600.0) as api,
        ):
            slow.open.clear()
            webhooks = Webhooks(cell.redis)
            for account in range(1000, 1030):
                for _ in range(10):
                    change = WebhookChange(url=slow.url, description="", events=list(JobEvent), enabled=True)
                    made_by = await webhooks.create(account_id=AccountId(account), change=change)
                    await webhooks.test(account_id=AccountId(account), webhook_id=made_by.webhook.id)
            await send_test(api, await made(api, works.url))
            await works.has(1)  # none of the others has ended
            await slow.has(300)  # and they delay each other only for seconds
            slow.open.set()

    async def test_accounts_take_turns(self, cell: Cell) -> None:
        webhooks, deliveries = Webhooks(cell.redis), Deliveries(cell.redis)
        owners = {}
        for account in (1, 1, 1, 1, 2, 2, 3):
            change = WebhookChange(url=URL, description="", events=list(JobEvent), enabled=True)
            made_by = await webhooks.create(account_id=AccountId(account), change=change)
            await webhooks.test(account_id=AccountId(account), webhook_id=made_by.webhook.id)
            owners[made_by.webhook.id] = account
        turns = []
        while claim := await deliveries.claim(lease_seconds=60, most=8):
            turns.append(owners[claim.webhook_id])
            await asyncio.sleep(0.002)  # another millisecond
        assert turns == [1, 2, 3, 1, 2, 1, 1]

    async def test_the_log_is_paged_and_bounded(self, api: FrontEnd, receiver: Receiver) -> None:
        webhook = await made(api, receiver.url)
        await send_test(api, webhook)
        await send_test(api, webhook)
        answer = await api.call("GET", f"{WEBHOOKS}{webhook['id']}/deliveries/?page_size=1")
        assert (answer.body["count"], len(answer.body["results"])) == (2, 1)
        assert 'rel="next"' in answer.headers["Link"]
        redis, log = api.cell.redis, f"webhook:{webhook['id']}:log"
        await redis.zadd(log, {f"old-{n}": 1 for n in range(5)})  # more than 7 days ago
        await send_test(api, webhook)
        assert await redis.zcard(log) == 3

        now_ms = datetime.now(UTC).timestamp() * 1000
        await redis.zadd(log, {f"recent-{n:04}": now_ms - 5000 + n for n in range(1000)})
        await redis.hset("delivery:recent-0000", "v", "1")  # type: ignore[misc]  # typed for the blocking client too
        await send_test(api, webhook)
        assert await redis.zcard(log) == 1000
        assert not await redis.exists("delivery:recent-0000")


class TestSenders:
    """Without a front end: which sender gets which deliveries."""

    async def test_of_many_senders_one_claims_it_and_after_its_time_another(self, cell: Cell) -> None:
        async with serving(cell, webhooks=1) as api:
            webhook = await made(api, URL, enabled=False)
        # no sender is running from here on
        await cell.redis.hset(f"webhook:{webhook['id']}", "enabled", "1")  # type: ignore[misc]  # typed for the blocking client too
        await cell.create()
        await cell.store.cancel(account_id=AccountId(77), job_id=await cell.holder())
        claims = await asyncio.gather(*[Deliveries(cell.redis).claim(lease_seconds=60, most=8) for _ in range(20)])
        (claim,) = [claim for claim in claims if claim is not None]
        assert len(claim.deliveries) == 1
        assert claim.deliveries[0].job
        assert claim.deliveries[0].job.state is JobState.FAILED

        deliveries = Deliveries(cell.redis)
        await time_passes(cell, webhook["id"])
        second = await deliveries.claim(lease_seconds=60, most=8)
        assert second is not None
        assert second.deliveries == claim.deliveries
        results = {claim.deliveries[0].id: Result(status=200, error=None)}
        assert await deliveries.settle(claim, results, patience_seconds=60) is None  # too late: it has no effect
        assert await deliveries.claim(lease_seconds=60, most=8) is None
        await deliveries.settle(second, {}, patience_seconds=60)  # released: due at once
        third = await deliveries.claim(lease_seconds=60, most=8)
        assert third is not None
        await deliveries.settle(third, results, patience_seconds=60)
        assert await cell.redis.zcard("webhooks:due") == 0

    async def test_deliveries_of_a_killed_front_end_are_sent_by_another(
        self, cell: Cell, redis_server: RedisServer, receiver: Receiver
    ) -> None:
        receiver.open.clear()
        program = Program(redis_url=f"unix://{redis_server.socket}")
        settings = {"webhooks_to_private": "true", "port": "0"}
        async with program.serving(**settings) as process:
            async with serving(cell, webhooks_to_private=True) as api:
                webhook = await made(api, receiver.url, enabled=False)
            await cell.redis.hset(f"webhook:{webhook['id']}", "enabled", "1")  # type: ignore[misc]  # typed for the blocking client too
            await cell.create()
            await cell.store.cancel(account_id=AccountId(77), job_id=await cell.holder())
            await receiver.has(1)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        receiver.open.set()
        async with serving(cell, webhooks_to_private=True) as api:
            assert (await log_of(api, webhook))[0]["attempts"] == 0
            await time_passes(cell, webhook["id"])
            await attempted(api, webhook)
        first, second = receiver.messages(webhook["secret"])
        assert first == second
        assert receiver.got[0][0]["webhook-id"] == receiver.got[1][0]["webhook-id"]

    async def test_a_stopping_front_end_releases_its_deliveries(self, cell: Cell, receiver: Receiver) -> None:
        receiver.open.clear()
        async with serving(cell, webhooks_to_private=True, drain_seconds=0.1) as api:
            webhook = await made(api, receiver.url)
            await send_test(api, webhook)
            await receiver.has(1)
        receiver.open.set()
        async with serving(cell, webhooks_to_private=True) as api:
            await latest(api, webhook, lambda delivery: delivery["delivered_at"] is not None)

    async def test_a_front_end_stops_at_any_moment(self, cell: Cell) -> None:
        for n in range(100):
            async with asyncio.timeout(PATIENCE_SECONDS_FOR_END), serving(cell):
                await asyncio.sleep(n % 10 / 1000)


class TestWhere:
    @pytest.mark.parametrize(
        "address",
        [
            *("127.0.0.1", "0.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
            *("192.0.2.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%2", "fc00::1", "ff02::1"),
            *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
            *("2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1"),
        ],
    )
    async def test_no_address_but_a_public_one(self, cell: Cell, address: str) -> None:
        assert not is_public(address)
        host = f"[{address}]" if ":" in address else address
        assert url_error(f"https://{host}/", Reach())
        assert url_error(f"https://{host}/", Reach(to_private=True)) is None or "%" in host
        names = Names({"rebound.example": address.partition("%")[0]})
        async with serving(cell, names=names) as api:
            literal = await api.call("POST", WEBHOOKS, body={"url": f"https://{host}/"})
            assert literal.refused_fields() == ["url"]
            webhook = await made(api, "https://rebound.example/")
            await send_test(api, webhook)
            refused = await attempted(api, webhook)
            assert (refused["status_code"], refused["error"]) == (None, "address_refused")

    @pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
    def test_a_public_one(self, address: str) -> None:
        assert is_public(address)

    @pytest.mark.parametrize(
        ("url", "is_fine"),
        [
            ("https://hooks.example.com/", True),
            ("https://hooks.example.com:8443/", True),
            ("https://hooks.example.com:22/", False),
            ("https://hooks.example.com:0/", False),
            ("http://hooks.example.com/", False),
            ("https://user@hooks.example.com/", False),
            ("https://@hooks.example.com/", True),
            ("https://:word@hooks.example.com/", False),
        ],
    )
    def test_scheme_port_and_user(self, url: str, *, is_fine: bool) -> None:
        assert (url_error(url, Reach()) is None) is is_fine

    @pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001", "0177.0.0.1"])
    async def test_an_address_written_in_another_way_is_not_reached(
        self, cell: Cell, host: str, receiver: Receiver
    ) -> None:
        port = receiver.url.split(":")[-1]
        async with serving(cell, names=Names({host: "127.0.0.1"})) as api:
            answer = await api.call("POST", WEBHOOKS, body={"url": f"https://{host}:{port}"})
            if answer.status == 201:
                await send_test(api, answer.body)
                assert (await attempted(api, answer.body))["status_code"] is None
        assert receiver.got == []

    async def test_urls_accepted_under_other_settings_are_checked_again(self, cell: Cell, receiver: Receiver) -> None:
        async with serving(cell, webhooks_to_private=True) as lenient:
            webhook = await made(lenient, receiver.url)
        async with serving(cell) as api:
            await send_test(api, webhook)
            assert (await attempted(api, webhook))["error"] == "address_refused"
        assert receiver.got == []

    async def test_the_socket_is_checked_last(self, receiver: Receiver) -> None:
        """Regardless of what earlier checks have accepted."""
        async with client(Reach(), resolver=Names({}), seconds=5.0) as session:
            with pytest.raises(ClientConnectorError) as refused:
                await session.post(receiver.url)
        assert isinstance(refused.value.__cause__, AddressRefused)
        assert receiver.got == []

    @pytest.mark.parametrize(
        "host",
        [
            *("localhost", "localhost.", "LOCALHOST", "a.localhost", "printer.local", "redis.internal", "intranet"),
            *("2130706433", "0x7f.1", "127.1", "router.home.arpa", "localhost.localdomain"),
        ],
    )
    async def test_a_name_with_an_internal_address_is_refused_at_once(self, cell: Cell, host: str) -> None:
        async with serving(cell) as api:
            answer = await api.call("POST", WEBHOOKS, body={"url": f"https://{host}/"})
            assert answer.refused_fields() == ["url"]
        async with serving(cell, webhook_hosts=(host.lower().rstrip("."),)) as api:
            assert (await api.call("POST", WEBHOOKS, body={"url": f"https://{host}/"})).status in {201, 400}

    def test_the_provider_lists_its_own_networks_and_hosts(self) -> None:
        reach = Reach(
            networks=(ip_network("10.1.0.0/16"),),
            denied=(ip_network("10.1.9.0/24"), ip_network("198.41.0.0/16"), ip_network("2001:500::/32")),
            hosts=("hooks.internal", ".corp.internal"),
        )

        assert reach.allows("10.1.2.3")
        assert not reach.allows("10.2.0.1")
        assert reach.allows("::ffff:10.1.2.3")
        for denied in ("10.1.9.1", "198.41.0.4", "::ffff:198.41.0.4", "2001:500::1"):
            assert not reach.allows(denied)
            assert not reach.allows(denied, host="hooks.internal")
            host = f"[{denied}]" if ":" in denied else denied
            assert url_error(f"https://{host}/", reach)
        assert reach.allows("10.2.0.1", host="hooks.internal")
        assert reach.allows("10.2.0.1", host="a.corp.internal.")
        assert not reach.allows("10.2.0.1", host="corp.internal")
        assert url_error("https://hooks.internal/", reach) is None
        assert url_error("https://other.internal/", reach)
        assert url_error("https://10.1.2.3/", reach) is None

    @pytest.mark.parametrize(
        ("listed", "error"),
        [
            ({}, "address_refused"),
            ({"webhook_networks": ("127.0.0.0/8",)}, "tls_failed"),
            ({"webhook_hosts": ("hooks.example",)}, "tls_failed"),
            ({"webhook_hosts": ("other.example",)}, "address_refused"),
            ({"webhook_networks": ("127.0.0.0/8",), "webhook_denied_networks": ("127.0.0.1/32",)}, "address_refused"),
        ],
    )
    async def test_only_listed_networks_are_reached(
        self, cell: Cell, receiver: Receiver, listed: dict[str, Any], error: str
    ) -> None:
        port = receiver.url.split(":")[-1]
        async with serving(cell, names=Names({"hooks.example": "127.0.0.1"}), **listed) as api:
            webhook = await made(api, f"https://hooks.example:{port}")
            await send_test(api, webhook)
            # the receiver has no TLS: an attempt that reaches it fails
            assert (await attempted(api, webhook))["error"] in {
                error,
                "connection_failed" if error == "tls_failed" else error,
            }

    async def test_a_proxy_gets_the_request_and_resolves_the_name(self, cell: Cell, receiver: Receiver) -> None:
        proxy = receiver.url.replace("//", "//snapshots:secret@")
        with capture_logs() as logs:
            async with serving(cell, webhooks_to_private=True, webhook_proxy=proxy) as api:
                webhook = await made(api, "http://nobody-here-knows.example/hook")
                await send_test(api, webhook)
                assert (await attempted(api, webhook))["error"] is None
        ((headers, _),) = receiver.got
        assert headers["Proxy-Authorization"] == "Basic c25hcHNob3RzOnNlY3JldA=="  # snapshots:secret
        assert "secret@" not in str(logs)

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    async def test_no_redirect_is_followed(self, api: FrontEnd, status: int) -> None:
        async with receiving(answers=[status]) as receiver:
            webhook = await made(api, receiver.url)
            await send_test(api, webhook)
            assert (await attempted(api, webhook))["error"] == "bad_status"
            assert len(receiver.got) == 1

    @pytest.mark.parametrize(
        ("names", "url", "code"),
        [({}, "https://nowhere.example/", "name_not_found"), ({"x.example": "127.0.0.1"}, "", "connection_failed")],
    )
    async def test_errors_are_named(self, cell: Cell, names: dict[str, str], url: str, code: str) -> None:
        async with receiving() as closed:
            port = closed.url.split(":")[-1]
        async with serving(cell, names=Names(names), webhooks_to_private=True) as api:
            webhook = await made(api, url or f"https://x.example:{port}")
            await send_test(api, webhook)
            assert (await attempted(api, webhook))["error"] == code


def test_the_signature_is_that_of_the_specification() -> None:
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    headers = signed([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", body, moment=1614265330)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_there_is_an_event_for_each_state_of_a_job() -> None:
    assert [f"job.{state}" for state in JobState] == EVERY
