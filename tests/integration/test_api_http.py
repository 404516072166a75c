"""HTTP rules, hostile input and internal failures: what all answers have in common."""

import asyncio
import gzip
import io
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import urlencode

import pytest
from aiohttp import ClientSession, web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from api.app import build
from api.http.reading import BODY_MAX_BYTES
from api.http.server import listening
from api.settings import ApiSettings
from tests.conftest import RedisServer
from tests.integration.conftest import SERVER, Cell
from tests.integration.front_end import SNAPSHOTS, FrontEnd, serving
from worker.program.log_fields import with_fields

PATHS = {
    SNAPSHOTS: {"GET", "HEAD", "POST"},
    f"{SNAPSHOTS}1/": {"GET", "HEAD", "PATCH", "DELETE"},
    f"{SNAPSHOTS}1/restore/": {"POST"},
    "/api/v1/jobs/": {"GET", "HEAD"},
    "/api/v1/jobs/1/": {"GET", "HEAD"},
    "/api/v1/jobs/1/cancel/": {"POST"},
    "/api/v1/servers/1/": {"GET", "HEAD", "PATCH"},
    "/healthz": {"GET", "HEAD"},
    "/readyz": {"GET", "HEAD"},
}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, body_seconds=0.2) as front_end:
        yield front_end


@pytest.mark.parametrize(("path", "known"), PATHS.items())
async def test_a_wrong_method_is_405_and_says_which_are_right(api: FrontEnd, path: str, known: set[str]) -> None:
    for method in METHODS:
        answer = await api.call(method, path)
        assert (answer.status == 405) is (method not in known), method
        if method not in known:
            if method != "HEAD":
                answer.refused(405, "method_not_allowed")
            assert set(answer.headers["Allow"].split(", ")) == known


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("/api/")])
async def test_a_path_without_its_slash_is_308_to_the_right_one(api: FrontEnd, method: str, path: str) -> None:
    answer = await api.call(method, f"{path.removesuffix('/')}?page=2&x=%26%2F")

    assert answer.status == 308
    assert answer.headers["Location"] == f"{path}?page=2&x=%26%2F"


async def test_a_create_that_forgot_the_slash_arrives(api: FrontEnd) -> None:
    headers = {"Authorization": f"Bearer {api.token}"}
    body = {"server_id": SERVER, "name": "a"}
    url = f"http://127.0.0.1:{api.port}/api/v1/snapshots"
    async with api.client.post(url, json=body, headers=headers) as response:
        assert response.status == 201


@pytest.mark.parametrize(
    "path",
    ["/api/v1/", "/api/v1/snapshots//", "//api/v1/snapshots/", "//evil.example/..", "/api/v1/snapshots/1/x/"],
)
async def test_any_other_path_is_404(api: FrontEnd, path: str) -> None:
    (await api.call("GET", path)).refused(404, "not_found")


async def test_a_head_is_a_get_without_its_body(api: FrontEnd) -> None:
    got, asked = await api.call("GET"), await api.call("HEAD")

    assert (asked.status, asked.raw) == (200, b"")
    assert {asked.headers[name] for name in ("Content-Length", "Link")} == {
        got.headers[name] for name in ("Content-Length", "Link")
    }


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""]
)
async def test_a_body_is_json_whatever_its_type_is_called(api: FrontEnd, kind: str) -> None:
    body = json.dumps({"server_id": SERVER, "name": "a", "description": "ünï"}, ensure_ascii=False).encode()

    answer = await api.call("POST", data=body, headers={"Content-Type": kind})

    assert (answer.status, answer.body["description"]) == (201, "ünï")


async def test_a_body_over_the_limit_is_refused_by_name(api: FrontEnd) -> None:
    fits = b'{"server_id": 999, "name": "a"}'.ljust(BODY_MAX_BYTES)

    (await api.call("POST", data=fits)).refused(404, "server_not_found")
    assert (await api.call("POST", data=fits + b" ")).refused_fields() == ["body"]
    assert (await api.call("POST", data=io.BytesIO(b"x" * 10_000_000))).refused_fields() == ["body"]
    (await api.call("POST", "/api/v1/schedules/", data=fits)).refused(400, "invalid_request")
    for path in ("/api/v1/schedules/", "/api/v1/webhooks/", f"{SNAPSHOTS}1/restore/"):
        (await api.call("POST", path, data=fits + b" ")).refused(413, "content_too_large")


@pytest.mark.parametrize("path", [SNAPSHOTS, "/api/v1/webhooks/"])
async def test_a_description_that_is_null_is_none(api: FrontEnd, path: str) -> None:
    key = {"Idempotency-Key": "once"}
    body = {SNAPSHOTS: {"server_id": SERVER, "name": "a"}}.get(path, {"url": "https://hooks.example.com/"})
    answers = [await api.call("POST", path, body=sent, headers=key) for sent in (body | {"description": None}, body)]
    assert [(answer.status, answer.body["description"]) for answer in answers] == [(201, "")] * 2


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "unheard-of"])
async def test_a_compressed_body_is_refused_by_name(api: FrontEnd, encoding: str) -> None:
    bomb = gzip.compress(b" " * 50_000_000)

    answer = await api.call("POST", data=bomb, headers={"Content-Encoding": encoding})

    assert answer.refused_fields() == ["Content-Encoding"]


@pytest.mark.parametrize("body", [b"", b"{}", b"{", b"x" * 100_000])
async def test_a_body_is_left_alone_where_nothing_is_changed_and_refused_where_something_is(
    api: FrontEnd, body: bytes
) -> None:
    path, is_taken = f"{SNAPSHOTS}{await api.have_snapshot()}/", body in {b"", b"{}"}

    assert (await api.call("GET", data=body)).status == 200
    restored = await api.call("POST", f"{path}restore/", data=body)
    if is_taken:
        await api.work(restored)
    deleted = await api.call("DELETE", path, data=body)
    if is_taken:
        assert (restored.status, deleted.status) == (200, 204)
    else:
        is_large = len(body) > BODY_MAX_BYTES
        for answer in (restored, deleted):
            answer.refused(*((413, "content_too_large") if is_large else (400, "invalid_request")))


@pytest.mark.parametrize("given_id", ["a", "A.b_c-9", "x" * 64])
async def test_a_sane_request_id_comes_back(api: FrontEnd, given_id: str) -> None:
    assert (await api.call("GET", headers={"X-Request-Id": given_id})).headers["X-Request-Id"] == given_id


@pytest.mark.parametrize("given_id", ["", "x" * 65, "a b", "a;b", "\xff", "{}"])
async def test_any_other_request_id_is_replaced(api: FrontEnd, given_id: str) -> None:
    answer = await api.call("GET", headers={"X-Request-Id": given_id})

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


async def test_the_request_id_goes_with_the_job(api: FrontEnd) -> None:
    body = {"server_id": SERVER, "name": "a"}
    await api.call("POST", body=body, headers={"X-Request-Id": "from-the-public-tier"})

    assert await api.cell.raw("HGET", f"job:{await api.cell.holder()}", "request_id") == b"from-the-public-tier"


async def test_every_answer_has_a_request_id_and_hides_what_serves_it(api: FrontEnd) -> None:
    for method, path in [
        ("GET", SNAPSHOTS),
        ("PUT", SNAPSHOTS),
        ("GET", "/x"),
        ("GET", "/healthz"),
        ("GET", SNAPSHOTS[:-1]),
    ]:
        answer = await api.call(method, path)
        assert answer.headers["X-Request-Id"]
        assert answer.headers["Server"] == "vps-snapshots"


async def test_unknown_expectations_are_ignored(api: FrontEnd) -> None:
    answer = await api.call("POST", body={"server_id": SERVER, "name": "a"}, headers={"Expect": "a-wonder"})
    assert answer.status == 201
    assert answer.headers["X-Request-Id"]


async def test_a_request_is_one_log_line_without_secrets(api: FrontEnd) -> None:
    with capture_logs(processors=[with_fields]) as lines:
        answer = await api.create("secret-name", "secret words")

    (line,) = lines
    assert line["event"] == "request.done"
    assert (line["method"], line["route"], line["status"]) == ("POST", SNAPSHOTS, 201)
    assert (line["account"], line["token_name"]) == (77, "a customer")
    assert (line["request_id"], line["job_id"]) == (answer.headers["X-Request-Id"], answer.headers["X-Job-Id"])
    assert line["milliseconds"] >= 0
    assert "code" not in line
    assert not any(secret in repr(line) for secret in ("secret", api.token, api.token[4:20]))


async def test_one_request_leaves_nothing_in_the_log_of_the_next(api: FrontEnd) -> None:
    await api.call("GET")
    with capture_logs(processors=[with_fields]) as lines:
        await api.call("GET", "/api/v1/nothing/7/")

    said = {"method", "route", "status", "code", "address", "milliseconds", "request_id"}
    assert set(lines[0]) == {"event", "log_level", *said}
    assert lines[0]["route"] == "unknown"


async def _broken(_: web.Request) -> web.Response:
    raise ValueError("nonsense-from-inside")


async def test_an_internal_error_is_500_logged_once_and_shown_to_no_one(cell: Cell) -> None:
    given_port = ApiSettings(port=0)
    app = build(cell.redis, given_port)
    app.router.add_get("/broken/", _broken)
    async with listening(app, given_port) as address, ClientSession() as client:
        url = f"http://127.0.0.1:{address[1]}/broken/"
        with capture_logs(processors=[with_fields]) as lines:
            async with client.get(url) as answer:
                body = await answer.text()

    assert (answer.status, json.loads(body)["code"]) == (500, "internal_error")
    assert "nonsense" not in body
    assert [line["event"] for line in lines] == ["request.failed", "request.done"]
    assert {line["request_id"] for line in lines} == {answer.headers["X-Request-Id"]}
    assert lines[0]["exc_info"]


async def test_without_redis_the_answer_is_503_and_then_all_works_again(
    api: FrontEnd, redis_server: RedisServer
) -> None:
    snapshot_id = await api.have_snapshot()
    redis_server.kill()
    try:
        for method, path in [
            ("GET", SNAPSHOTS),
            ("POST", SNAPSHOTS),
            ("POST", f"{SNAPSHOTS}{snapshot_id}/restore/"),
            ("DELETE", f"{SNAPSHOTS}{snapshot_id}/"),
            ("GET", "/readyz"),
        ]:
            answer = await api.call(method, path)
            answer.refused(503, "store_unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        assert (await api.call("GET", "/healthz")).status == 200
    finally:
        redis_server.start()

    assert (await api.call("GET", "/readyz")).status == 200
    assert (await api.call("GET")).body["results"][0]["id"] == snapshot_id


async def raw(api: FrontEnd, *sent: bytes, delay: float = 0) -> bytes:
    """The server's answer to these bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    for part in sent:
        writer.write(part)
        await asyncio.sleep(delay)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return answer


def post(api: FrontEnd, *headers: str, body: bytes) -> bytes:
    lines = [
        f"POST {SNAPSHOTS} HTTP/1.1",
        "Host: a",
        f"Authorization: Bearer {api.token}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_a_body_that_does_not_come_is_given_up(api: FrontEnd) -> None:
    answer = await raw(api, post(api, "Content-Length: 100", body=b'{"server_id"'))

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "request_timeout"' in answer


@pytest.mark.parametrize("head", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: a\r\n"])
async def test_a_client_that_never_finishes_its_headers_is_cut_off(cell: Cell, head: bytes) -> None:
    async with serving(cell, keepalive_seconds=0.2) as api:
        assert await raw(api, head) == b""


async def test_a_client_that_takes_nothing_of_its_answers_is_cut_off(cell: Cell) -> None:
    async with serving(cell, stalled_seconds=0.5) as api:
        with socket.create_connection(("127.0.0.1", api.port)) as client:
            client.setblocking(False)
            for _ in range(300):  # answers that exceed all buffers in between, none of which is read
                with suppress(BlockingIOError):
                    client.send(b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
            with pytest.raises(ConnectionError):  # noqa: PT012 - the kernel tells at the second send after it
                for _ in range(60):
                    await asyncio.sleep(0.5)
                    with suppress(BlockingIOError):
                        client.send(b"GET")


PROBE = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
LAST_PROBE = PROBE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


async def test_connections_beyond_the_limit_are_turned_away_and_then_let_in_again(cell: Cell) -> None:
    async with serving(cell, connections=2, body_seconds=600) as api:
        busy = []
        for _ in range(2):  # each during a request
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(post(api, "Content-Length: 100", "Expect: 100-continue", body=b""))
            assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
            busy.append(writer)
        with suppress(ConnectionError):
            assert await raw(api, LAST_PROBE) == b""
        for writer in busy:
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(60):
            while True:
                with suppress(ConnectionError):
                    if b" 200 " in await raw(api, LAST_PROBE):
                        return


@pytest.mark.parametrize("said", [b"", b"GET /heal", PROBE], ids=["nothing", "half a head", "one request"])
async def test_many_idle_connections_lock_nobody_out(cell: Cell, said: bytes) -> None:
    async with serving(cell, connections=20) as api:
        crowd = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(60)]
        for reader, writer in crowd:
            writer.write(said)
            with suppress(ConnectionError):
                assert said != PROBE or b" 200 " in await reader.readline() or reader.at_eof()
        assert b" 200 " in await raw(api, LAST_PROBE)
        for _, writer in crowd:
            writer.close()


async def test_connections_without_a_request_are_replaced_first(cell: Cell) -> None:
    async with serving(cell, connections=3) as api:
        kept_reader, kept = await asyncio.open_connection("127.0.0.1", api.port)
        kept.write(PROBE)
        assert b" 200 " in await kept_reader.readline()
        silent = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(2)]
        assert b" 200 " in await raw(api, LAST_PROBE)
        kept.write(LAST_PROBE)
        assert b" 200 " in await asyncio.wait_for(kept_reader.read(), 5)
        for writer in (kept, *(writer for _, writer in silent)):
            writer.close()


async def test_a_call_that_the_store_makes_wait_too_long_is_503(cell: Cell) -> None:
    async with serving(cell, request_seconds=0.2) as api:
        await cell.raw("CLIENT", "PAUSE", "60000", "WRITE")
        try:
            answer = await api.call("GET")
        finally:
            await cell.raw("CLIENT", "UNPAUSE")
    assert answer.refused(503, "store_unavailable")["detail"]
    assert answer.headers["Retry-After"]


async def test_a_body_in_broken_chunks_is_the_callers_fault(api: FrontEnd, caplog: pytest.LogCaptureFixture) -> None:
    chunks = [b"5\r\nabcde\r\n", b"ZZZ\r\n"]
    with capture_logs() as lines:
        at_once = await raw(api, post(api, "Transfer-Encoding: chunked", body=b"".join(chunks)))
        in_turn = await raw(api, post(api, "Transfer-Encoding: chunked", body=chunks[0]), chunks[1], delay=0.05)

    assert b" 400 " in at_once.splitlines()[0]
    assert b" 408 " in in_turn.splitlines()[0]
    assert not caplog.records
    assert not any(line["log_level"] == "error" for line in lines)


async def test_a_client_that_goes_away_midway_is_no_error_of_ours(api: FrontEnd) -> None:
    with capture_logs() as lines:
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(post(api, "Content-Length: 100", body=b'{"server_id"'))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await api.call("GET", "/healthz")).status == 200

    assert not any(line["log_level"] == "error" for line in lines)


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GARBAGE\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "bad_request"),
        (b"GET\x00 / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\x01\r\n\r\n", 400, "bad_request"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: /TOKEN" + b"a" * 9000 + b"\r\n\r\n", 431, "header_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"TOKEN" * 4000 + b": y\r\n\r\n", 431, "header_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 1000 + b"\r\n", 431, "header_too_large"),
    ],
)
async def test_malformed_and_oversized_requests_are_logged_without_their_text(
    api: FrontEnd, head: bytes, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await raw(api, head)

    assert int(answer.split()[1]) == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == code
    assert b"TOKEN" not in answer
    assert not caplog.records


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
BODY = st.fixed_dictionaries(
    {},
    optional={
        "server_id": st.just(SERVER) | ANY,
        "name": st.from_regex(r"[a-z]{1,64}", fullmatch=True) | ANY,
        "description": st.text() | ANY,
        "more": ANY,
    },
)
BYTES = st.binary() | st.one_of(ANY, BODY).map(lambda value: json.dumps(value).encode())


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BYTES)
async def test_no_body_ever_makes_a_500(api: FrontEnd, body: bytes) -> None:
    answer = await api.call("POST", data=body)

    assert answer.status in {201, 400, 404}
    if answer.status == 400 and answer.body["code"] == "invalid_request":
        assert all(error["field"] and error["detail"] for error in answer.body["errors"])


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(METHODS),
    path=st.sampled_from([*PATHS, SNAPSHOTS[:-1]]),
    junk=st.text(
        st.characters(codec="ascii", exclude_characters="#", min_codepoint=33, max_codepoint=126), max_size=40
    ),
    query=st.dictionaries(st.sampled_from(["server_id", "page", "page_size", "x"]), st.text(max_size=30), max_size=3),
)
async def test_no_request_line_ever_makes_a_500(
    api: FrontEnd, method: str, path: str, junk: str, query: dict[str, str]
) -> None:
    for target in [f"{path}?{urlencode(query)}", f"{path}{junk}", f"{path}?{junk}"]:
        assert (await api.call(method, target)).status < 500
