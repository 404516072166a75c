"""Server-sent events: what a customer sees of running jobs."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, ClientTimeout

from api.events.streams import QUEUE, TOGETHER
from tests.conftest import RedisServer
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import FrontEnd, serving
from tests.queueing import until_told
from worker.store.customers.events import Events, place
from worker.store.model import AccountId

EVENTS = "/api/v1/events/"
OTHERS = AccountId(78)

EVENT = {
    "account": "77",
    "server": "1",
    "snapshot": "1",
    "job": "0" * 32,
    "kind": "create",
    "state": "queued",
    "step": "",
}
FLOOD = 30_000  # events: more than all buffers between the two ends can hold

Sse = dict[str, str]


class Stream:
    """Reads a stream as a browser's EventSource does."""

    opening: Sse  # its first block

    def __init__(self, response: ClientResponse) -> None:
        self.response = response

    async def block(self) -> Sse:
        """The next block of lines, including comments. Raises EOFError at the end."""
        fields: Sse = {}
        async with asyncio.timeout(60):
            async for line in self.response.content:
                text = line.decode().rstrip("\n")
                if not text:
                    return fields
                name, _, value = text.partition(": ")
                fields[name] = value
        raise EOFError

    async def event(self) -> Sse:
        while "data" not in (block := await self.block()):
            pass
        return block

    async def job(self) -> tuple[str, dict[str, Any]]:
        event = await self.event()
        assert event["event"] == "job"
        return event["id"], json.loads(event["data"])


@asynccontextmanager
async def listening(api: FrontEnd, *, token: str | None = None, after: str | None = None) -> AsyncIterator[Stream]:
    headers = {"Authorization": f"Bearer {token or api.token}"} | ({} if after is None else {"Last-Event-ID": after})
    url = f"http://127.0.0.1:{api.port}{EVENTS}"
    async with (
        ClientSession(timeout=ClientTimeout(total=None)) as client,
        client.get(url, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        stream = Stream(response)
        stream.opening = await stream.block()
        assert stream.opening["retry"] == "2000"
        yield stream


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, heartbeat_seconds=0.2, streams_per_account=3, streams=5) as front_end:
        yield front_end


async def test_each_change_of_a_job_arrives_in_order(api: FrontEnd) -> None:
    async with listening(api) as stream:
        created = await api.create()
        await api.work(created)
        heard = [await stream.job() for _ in range(3)]

    job_id = created.headers["X-Job-Id"]
    assert [data["state"] for _, data in heard] == ["queued", "in_progress", "completed"]
    assert heard[0][1] == {
        "job_id": job_id,
        "kind": "create",
        "state": "queued",
        "step": None,
        "server_id": SERVER,
        "snapshot_id": created.body["id"],
        "notes": [],
    }
    assert sorted(heard, key=lambda each: place(each[0])) == heard
    content = stream.response.headers
    assert content["Content-Type"] == "text/event-stream; charset=utf-8"
    assert (content["Cache-Control"], content["X-Accel-Buffering"]) == ("no-store", "no")
    assert content["X-Request-Id"]


async def test_a_reconnect_misses_and_repeats_nothing(api: FrontEnd) -> None:
    async with listening(api) as stream:
        first = await api.create()
        seen, _ = await stream.job()
    await api.work(first)

    async with listening(api, after=seen) as stream:
        second = await api.create("second")
        await api.work(second)
        heard = [(await stream.job())[1] for _ in range(5)]

    jobs = [first.headers["X-Job-Id"]] * 2 + [second.headers["X-Job-Id"]] * 3
    assert [data["job_id"] for data in heard] == jobs
    assert [data["state"] for data in heard] == ["in_progress", "completed", "queued", "in_progress", "completed"]


async def test_a_reconnect_gets_many_missed_events_in_order(api: FrontEnd) -> None:
    events = f"account:{ACCOUNT}:events"
    async with api.cell.redis.pipeline(transaction=False) as pipe:
        for _ in range(3 * TOGETHER + 1):
            pipe.xadd(events, EVENT)  # type: ignore[arg-type] # redis-py: a dict is invariant
        first, *missed = [raw.decode() for raw in await pipe.execute()]
    async with listening(api, after=first) as stream:
        assert [(await stream.job())[0] for _ in missed] == missed


async def test_a_stream_whose_queue_is_full_before_it_has_opened_ends(
    api: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, read = f"account:{ACCOUNT}:events", Events.after

    async def add(many: int) -> list[str]:
        async with api.cell.redis.pipeline(transaction=False) as pipe:
            for _ in range(many):
                pipe.xadd(events, EVENT)  # type: ignore[arg-type] # redis-py: a dict is invariant
            return [raw.decode() for raw in await pipe.execute()]

    async def read_slowly(self: Events, account_id: AccountId, event_id: str) -> Any:
        found = await read(self, account_id, event_id)
        last = (await add(QUEUE + 100))[-1]
        while place((await other.job())[0]) < place(last):  # the reader has passed all of them on by then
            pass
        return found

    first, missed = await add(2)
    async with listening(api) as other:
        monkeypatch.setattr(Events, "after", read_slowly)
        async with listening(api, after=first) as stream:
            assert (await stream.job())[0] == missed
            with pytest.raises(EOFError):
                await stream.block()  # and not a later event


async def test_a_client_that_was_away_too_long_gets_missed(api: FrontEnd) -> None:
    created = await api.create()
    async with listening(api, after="1-1") as stream:
        assert stream.opening["event"] == "missed"
        assert (await stream.job())[1]["job_id"] == created.headers["X-Job-Id"]


async def test_another_accounts_events_do_not_arrive(api: FrontEnd) -> None:
    stranger = await api.new_token(account=OTHERS)
    async with listening(api) as mine, listening(api, token=stranger) as theirs:
        await api.create()
        await mine.job()
        assert [await theirs.block() for _ in range(3)] == [{"": "still here"}] * 3


async def test_silence_is_broken_by_heartbeats(api: FrontEnd) -> None:
    async with listening(api) as stream:
        assert await stream.block() == {"": "still here"}


@pytest.mark.parametrize("after", ["", "x", "1", "-1-1", "1-1-1", "9" * 19 + "-1", "9" * 18 + "-1", "another:7"])
async def test_an_unknown_id_gets_missed_and_the_stream_continues(api: FrontEnd, after: str) -> None:
    async with listening(api, after=after) as stream:
        opening = stream.opening
        assert (opening["event"], opening["data"]) == ("missed", "{}")
        created = await api.create()
        assert (await stream.job())[1]["job_id"] == created.headers["X-Job-Id"]
    await api.work(created)

    async with listening(api, after=opening["id"]) as stream:
        assert [(await stream.job())[1]["state"] for _ in range(3)] == ["queued", "in_progress", "completed"]


@pytest.mark.parametrize("earlier", [0, 1])
async def test_a_client_that_is_cut_off_before_its_first_event_loses_none(api: FrontEnd, earlier: int) -> None:
    for _ in range(earlier):
        await api.have_snapshot("earlier")
    async with listening(api) as stream:
        opening = stream.opening
    created = await api.create()

    async with listening(api, after=opening["id"]) as stream:
        assert "event" not in stream.opening
        assert (await stream.job())[1]["job_id"] == created.headers["X-Job-Id"]


async def test_a_client_from_before_the_first_event_gets_missed(api: FrontEnd) -> None:
    async with listening(api) as stream:
        opening = stream.opening
    await api.have_snapshot()
    await api.cell.redis.xtrim("account:77:events", maxlen=1, approximate=False)

    async with listening(api, after=opening["id"]) as stream:
        assert stream.opening["event"] == "missed"


async def test_an_account_and_a_front_end_have_so_many_streams(api: FrontEnd) -> None:
    stranger = await api.new_token(account=OTHERS)
    async with listening(api), listening(api), listening(api):
        (await api.call("GET", EVENTS)).refused(429, "too_many_streams")
        async with listening(api, token=stranger), listening(api, token=stranger):
            refused = await api.call("GET", EVENTS, token=stranger)
            refused.refused(429, "too_many_streams")
            assert int(refused.headers["Retry-After"]) > 0


async def test_a_closed_stream_frees_its_slot_at_once(cell: Cell) -> None:
    async with serving(cell, heartbeat_seconds=3600, streams_per_account=1) as api:

        async def comes_in() -> bool:
            try:
                async with listening(api):
                    return True
            except AssertionError:
                return False

        for _ in range(3):
            await until_told(comes_in)


async def test_a_revoked_token_gets_no_more_events(api: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.app.TOKEN_CHECK_SECONDS", 0.1)
    async with serving(api.cell, heartbeat_seconds=0.05) as other, listening(other) as stream:
        await stream.block()
        for token in await other.tokens.all():
            await other.tokens.revoke(token.id)
        with suppress(EOFError):
            async with asyncio.timeout(60):
                while await stream.block():
                    pass


async def test_the_end_of_the_front_end_is_the_end_of_its_streams_at_once(cell: Cell) -> None:
    async with asyncio.timeout(60):
        async with serving(cell, heartbeat_seconds=600, drain_seconds=600) as api:
            stream = await api.client.get(
                f"http://127.0.0.1:{api.port}{EVENTS}", headers={"Authorization": f"Bearer {api.token}"}
            )
    stream.close()


async def test_a_listener_that_reads_nothing_is_cut_off_and_harms_no_other(api: FrontEnd) -> None:
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setblocking(False)
    await asyncio.get_running_loop().sock_connect(deaf, ("127.0.0.1", api.port))
    deaf.sendall(f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\n\r\n".encode())
    async with listening(api) as other:
        await other.block()
        for _ in range(FLOOD // 1000):
            async with api.cell.redis.pipeline(transaction=False) as pipe:
                for _ in range(1000):
                    pipe.xadd(f"account:{ACCOUNT}:events", EVENT)  # type: ignore[arg-type] # redis-py: a dict is invariant
                await pipe.execute()
        heard = [place((await other.job())[0]) for _ in range(FLOOD)]
    assert heard == sorted(set(heard))
    with deaf:
        assert (await _all_that_comes(deaf)).count(b"\nid: ") < FLOOD


async def _all_that_comes(deaf: socket.socket) -> bytes:
    """All data until the stream's end, whether regular or not."""
    received = b""
    with suppress(ConnectionResetError):
        while data := await asyncio.get_running_loop().sock_recv(deaf, 1 << 20):
            received += data
    return received


async def test_a_stream_survives_a_restart_of_redis(
    api: FrontEnd, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.events.streams.AGAIN_SECONDS", 0.05)
    async with listening(api) as stream:
        await api.create()
        await stream.job()
        await asyncio.to_thread(redis_server.kill)
        await stream.block()
        await asyncio.to_thread(redis_server.start)
        await api.call("POST", f"/api/v1/jobs/{await api.cell.holder()}/cancel/")
        assert (await stream.job())[1]["state"] == "failed"
