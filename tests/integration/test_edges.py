"""Malformed HTTP from strangers, and the security headers of every answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import SNAPSHOTS, FrontEnd, serving
from worker.store.access.tokens import Permission

READ, WRITE = Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE
CREATE, RESTORE, DELETE = Permission.SNAPSHOTS_CREATE, Permission.SNAPSHOTS_RESTORE, Permission.SNAPSHOTS_DELETE
HEADERS = [
    *("Cookie", "Expect", "Origin", "Sec-Fetch-Site", "X-CSRF-Token", "HX-Current-URL", "HX-Request", "X-Live"),
    *("X-Forwarded-For", "X-Request-Id", "X-Account-Id", "Authorization", "If-Match", "If-None-Match", "Range"),
    *("Accept-Encoding", "Content-Encoding", "Content-Type", "traceparent", "Idempotency-Key", "Last-Event-ID"),
]
PATHS = [
    SNAPSHOTS,
    f"{SNAPSHOTS}1/",
    "/ops/",
    "/ops/login/",
    "/ops/logout/",
    "/api/v1/ops/tokens/",
    "/metrics",
    "/none",
]
MALFORMED = [
    b"GET\r\n\r\n",
    b"\xff\xff\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /api/v1/snapshots/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, trusted_proxies=("127.0.0.0/8",), calls_per_minute=100_000) as front_end:
        yield front_end


async def said(api: FrontEnd, sent: bytes) -> bytes:
    """The front end's answer to these bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def head(method: str, path: str, *fields: tuple[str, bytes]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: x", b"Connection: close"]
    return b"\r\n".join([*lines, *(name.encode() + b": " + text for name, text in fields), b"", b""])


@pytest.mark.parametrize("sent", MALFORMED)
async def test_what_is_not_http_gets_a_problem_document_and_no_traceback(api: FrontEnd, sent: bytes) -> None:
    with capture_logs() as logs:
        answer = await said(api, sent)

    first, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 Bad Request\r\n" in first
    for line in (b"X-Request-Id: ", b"application/problem+json", b"nosniff", b"no-store"):
        assert line in first
    assert b'"code": "bad_request"' in body
    assert [line for line in logs if line["log_level"] in {"warning", "error"}] == []


@pytest.mark.parametrize("field", [("Cookie", b"__Host-ops=\xff"), ("Expect", b"\xff"), ("Expect", b"a miracle")])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_cookie_or_expectation_that_is_not_text_is_no_internal_error(
    api: FrontEnd, method: str, path: str, field: tuple[str, bytes]
) -> None:
    with capture_logs() as logs:
        answer = await said(api, head(method, path, field))

    assert answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 3", b"HTTP/1.1 4"))
    assert b"X-Request-Id: " in answer
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_a_client_that_expects_100_continue_gets_it(api: FrontEnd) -> None:
    fields = (("Expect", b"100-Continue"), ("Content-Length", b"2"))
    answer = await said(api, head("POST", "/ops/login/", *fields) + b"{}")

    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 4")


TEXTS = st.binary(max_size=40).filter(lambda text: not set(text) & set(b"\r\n\x00")) | st.sampled_from(
    [
        b"http://[",
        b"https://x]",
        b"__Host-ops=\xff",
        b"\xff",
        b"[",
        b"*",
        b"%",
        b"fe80::1%25",
        b"1.2.3.4:5",
        b"\xed\xa0\x80",
    ]
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(["GET", "POST", "PATCH", "DELETE"]),
    path=st.sampled_from(PATHS),
    fields=st.lists(st.tuples(st.sampled_from(HEADERS), TEXTS), max_size=4),
    known=st.booleans(),
)
async def test_no_header_is_an_internal_error(
    api: FrontEnd, method: str, path: str, fields: list[tuple[str, bytes]], known: bool
) -> None:
    token = [("Authorization", f"Bearer {api.token}".encode())] if known else []
    with capture_logs() as logs:
        answer = await said(api, head(method, path, *token, *fields))

    assert not answer.startswith(b"HTTP/1.1 5"), answer
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_half_sent_login_forms_hold_no_places(cell: Cell) -> None:
    half = b"POST /ops/login/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\ntoken="
    async with serving(cell, connections=20, body_seconds=60) as api:
        strangers = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(20)]
        for reader, writer in strangers:
            writer.write(half)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        with capture_logs() as logs:
            answers = [await said(api, head("GET", "/healthz")) for _ in range(10)]
        for _, writer in strangers:
            await closed(writer)

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert [line for line in logs if line["log_level"] == "error"] == []


@pytest.mark.parametrize("path", [SNAPSHOTS, "/healthz", "/docs", "/ops/login/", "/none", "/api/v1/openapi.json"])
async def test_no_answer_is_sniffed(api: FrontEnd, path: str) -> None:
    assert (await api.call("GET", path)).headers["X-Content-Type-Options"] == "nosniff"


async def test_an_answer_with_a_secret_is_not_stored(api: FrontEnd) -> None:
    webhook = await api.call("POST", "/api/v1/webhooks/", body={"url": "https://hooks.example.com/"})
    rotated = await api.call("POST", f"/api/v1/webhooks/{webhook.body['id']}/rotate-secret/")
    operator = await api.new_token(account=None, permissions={Permission.OPERATOR})
    token = await api.call(
        "POST", "/api/v1/ops/tokens/", body={"name": "new", "permissions": ["operator"]}, token=operator
    )

    for answer in (webhook, rotated, token):
        assert answer.body["secret"]
        assert answer.headers["Cache-Control"] == "no-store"


async def test_a_precondition_is_refused_and_not_ignored(api: FrontEnd) -> None:
    snapshot_id = await api.have_snapshot()
    one = f"{SNAPSHOTS}{snapshot_id}/"
    tag = (await api.call("GET", one)).headers["ETag"]

    for match in (tag, '"another"', f'{tag}, "another"'):
        (await api.call("DELETE", one, headers={"If-Match": match})).refused(412, "precondition_failed")
        edited = await api.call("PATCH", one, body={"description": "new"}, headers={"If-Match": match})
        edited.refused(412, "precondition_failed")
    assert (await api.call("GET", one)).headers["ETag"] == tag
    assert (await api.call("DELETE", one, headers={"If-Match": "*"})).status == 204


@pytest.mark.parametrize("written", ["unknown", "_hidden", "\xff", "192.0.2.1:4711", "[2001:db8::1]:4711"])
async def test_callers_whose_address_a_proxy_hides_are_not_one(cell: Cell, written: str) -> None:
    async with serving(cell, trusted_proxies=("127.0.0.0/8",), failed_logins_per_minute=2) as api:
        wrong = ("Authorization", b"Bearer wrong")
        first = [
            await said(api, head("GET", SNAPSHOTS, wrong, ("X-Forwarded-For", written.encode("latin-1"))))
            for _ in range(3)
        ]
        other = await said(api, head("GET", SNAPSHOTS, wrong, ("X-Forwarded-For", b"_another")))

    assert [answer[9:12] for answer in first] == [b"401", b"401", b"429"]
    assert other[9:12] == b"401"


async def test_a_port_that_a_proxy_adds_makes_no_other_caller(cell: Cell) -> None:
    async with serving(cell, trusted_proxies=("127.0.0.0/8",), failed_logins_per_minute=2) as api:
        wrong = ("Authorization", b"Bearer wrong")
        answers = [
            await said(api, head("GET", SNAPSHOTS, wrong, ("X-Forwarded-For", f"192.0.2.1:{port}".encode())))
            for port in (1, 2, 3)
        ]

    assert [answer[9:12] for answer in answers] == [b"401", b"401", b"429"]


@pytest.mark.parametrize(
    ("permissions", "may"),
    [
        ({CREATE}, {"create"}),
        ({RESTORE}, {"restore"}),
        ({DELETE}, {"delete"}),
        ({WRITE}, {"create", "restore", "delete", "edit"}),
        ({READ}, set()),
    ],
)
async def test_a_permission_allows_what_it_says(api: FrontEnd, permissions: set[Permission], may: set[str]) -> None:
    token = await api.new_token(account=ACCOUNT, permissions=permissions)
    body = {"server_id": SERVER + 1, "name": "a"}
    asked = {
        "create": await api.call("POST", SNAPSHOTS, body=body, token=token),
        "edit": await api.call("PATCH", f"{SNAPSHOTS}1/", body={"description": ""}, token=token),
        "restore": await api.call("POST", f"{SNAPSHOTS}1/restore/", token=token),
        "delete": await api.call("DELETE", f"{SNAPSHOTS}1/", token=token),
    }

    for name, answer in asked.items():
        if name in may:
            assert answer.status == 404, name
        else:
            answer.refused(403, "permission_denied")


async def test_operator_read_changes_nothing(api: FrontEnd) -> None:
    token = await api.new_token(account=None, permissions={Permission.OPERATOR_READ})

    for path in ("overview/", "nodes/", "jobs/", "servers/", "findings/", "audit/", "tokens/"):
        assert (await api.call("GET", f"/api/v1/ops/{path}", token=token)).status == 200, path
    for path in ("nodes/n1/pause/", "tokens/", "jobs/bulk/"):
        answer = await api.call("POST", f"/api/v1/ops/{path}", body={}, token=token)
        answer.refused(403, "permission_denied")
