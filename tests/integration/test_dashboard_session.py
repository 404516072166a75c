"""Sessions of the dashboard: login, lifetime, and requests from other sites."""

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import parse_qs, urlsplit

import pytest

from api.dashboard.routes import ACTIONS, PAGES
from api.dashboard.session import COOKIE, EVENTS, local
from tests.integration.browsing import Browser, Dashboard, dashboard_of
from tests.integration.conftest import Cell
from tests.integration.test_streams import Stream
from worker.store.access.tokens import Permission

PAUSE = "/ops/nodes/n1/pause/"
FORM = {"reason": "a new disk"}


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell, failed_logins_per_minute=10, heartbeat_seconds=0.2) as dashboard:
        yield dashboard


def key_of(browser: Browser) -> str:
    return f"token:session:{hashlib.sha256(browser.session.encode()).hexdigest()}"


def filled(path: str) -> str:
    path = re.sub(r"\{action:(\w+)[^}]*\}", r"\1", path)
    return (
        path.replace("{node}", "n1")
        .replace("{job_id}", "0" * 32)
        .replace("{server_id}", "12345")
        .replace("{token_id}", "0" * 12)
        .replace("{snapshot_id}", "801")
    )


async def is_paused(dashboard: Dashboard) -> bool:
    return bool(await dashboard.cell.raw("HEXISTS", "node:n1", "paused_ms"))


class TestLogin:
    async def test_an_operator_gets_a_cookie_that_no_script_and_no_other_site_can_use(
        self, dashboard: Dashboard
    ) -> None:
        page = await dashboard.stranger().login(dashboard.token, to="/ops/jobs/?state=failed")
        assert (page.status, page.headers["Location"]) == (303, "/ops/jobs/?state=failed")
        (cookie,) = page.cookies
        name, *flags = cookie.split("; ")
        assert name.startswith(f"{COOKIE}=")
        assert COOKIE.startswith("__Host-")
        assert set(flags) == {"HttpOnly", "Secure", "SameSite=Strict", "Path=/"}

    async def test_a_customers_token_is_refused_as_such(self, dashboard: Dashboard) -> None:
        of_account = await dashboard.api.new_token(permissions=set(Permission))
        service = await dashboard.api.new_token(account=None)
        for token, status, code in (
            ("vps_" + "x" * 43, 401, "token_invalid"),
            ("", 401, "token_missing"),
            ("<script>alert(1)</script>", 401, "token_invalid"),
            (of_account, 403, "permission_denied"),
            (service, 403, "permission_denied"),
        ):
            page = await dashboard.stranger().login(token)
            assert (page.status, page.cookies) == (status, ())
            assert code in page.text
            assert "<script>alert" not in page.text

    async def test_bad_tokens_are_counted_for_their_address_with_those_of_the_api(self, dashboard: Dashboard) -> None:
        for _ in range(5):
            await dashboard.stranger().login("vps_" + "x" * 43)
            await dashboard.api.call("GET", token="vps_" + "x" * 43)
        refused = await dashboard.stranger().login("vps_" + "x" * 43)
        assert refused.status == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert (await dashboard.stranger().login(dashboard.token)).status == 303

    async def test_another_site_can_log_nobody_in(self, dashboard: Dashboard) -> None:
        page = await dashboard.stranger().login(dashboard.token, **{"Sec-Fetch-Site": "cross-site"})
        assert (page.status, page.cookies) == (403, ())

    @pytest.mark.parametrize(
        "path",
        [
            *("https://evil.example/", "//evil.example/", "/\\evil.example", "/ops/\\evil", "javascript:alert(1)"),
            *(
                "/api/v1/ops/",
                "/opsx/",
                "ops/",
                "",
                "/ops/../api/",
                "/ops/login/",
                "/ops/\n/evil",
                " /ops/",
                "/ops/" + "x" * 3000,
            ),
            *("https:/ops/", "http:///ops/", "///ops/", "\t//evil.example/ops/"),
        ],
    )
    def test_it_leads_to_pages_of_ours_only(self, path: str) -> None:
        assert local(path) == "/ops/"

    def test_it_leads_back_to_a_page_with_its_filter(self) -> None:
        assert local("/ops/jobs/?state=failed&text=a%20b") == "/ops/jobs/?state=failed&text=a%20b"


class TestSession:
    async def test_without_one_every_page_leads_to_the_login_and_back(self, dashboard: Dashboard) -> None:
        stranger = dashboard.stranger()
        for path in PAGES:
            page = await stranger.get(f"{filled(path)}?a=b")
            to = urlsplit(page.headers["Location"])
            assert (page.status, to.path) == (303, "/ops/login/"), path
            assert parse_qs(to.query) == {"next": [f"{filled(path)}?a=b"]}

    async def test_without_one_nothing_can_be_done(self, dashboard: Dashboard) -> None:
        stranger = dashboard.stranger()
        stranger.csrf = "x"
        for path in ACTIONS:
            page = await stranger.post(filled(path), FORM)
            assert (page.status, urlsplit(page.headers["Location"]).path) == (303, "/ops/login/"), path
        assert not await is_paused(dashboard)

    async def test_a_part_of_a_page_takes_the_whole_page_to_the_login(self, dashboard: Dashboard) -> None:
        headers = {"HX_Request": "true", "HX_Current_URL": "http://x/ops/nodes/?state=silent"}
        page = await dashboard.stranger().get("/ops/nodes/", **headers)
        assert page.status == 401
        assert page.headers["HX-Redirect"] == "/ops/login/?next=%2Fops%2Fnodes%2F%3Fstate%3Dsilent"

    async def test_redis_holds_nothing_that_opens_it(self, dashboard: Dashboard) -> None:
        session = dashboard.browser.session
        for key in [key async for key in dashboard.cell.redis.scan_iter("token:*")]:
            assert session.encode() not in key + await dashboard.cell.redis.dump(key)
            assert dashboard.token.encode() not in key + await dashboard.cell.redis.dump(key)

    async def test_it_ends_with_its_token_at_once(self, dashboard: Dashboard) -> None:
        (token,) = [one for one in await dashboard.api.tokens.all() if Permission.OPERATOR in one.permissions]
        assert (await dashboard.browser.get("/ops/")).status == 200
        await dashboard.api.tokens.revoke(token.id)
        page = await dashboard.browser.get("/ops/")
        assert (page.status, parse_qs(urlsplit(page.headers["Location"]).query)["ended"]) == (303, ["true"])
        assert "has ended" in (await dashboard.stranger().get(page.headers["Location"])).text
        assert not await dashboard.cell.redis.exists(key_of(dashboard.browser))

    async def test_it_ends_when_the_operator_leaves(self, dashboard: Dashboard) -> None:
        page = await dashboard.browser.post("/ops/logout/")
        assert (page.status, page.headers["Location"]) == (303, "/ops/login/")
        assert "Max-Age=0" in page.cookies[0]
        assert (await dashboard.browser.get("/ops/")).status == 303

    async def test_a_persons_activity_extends_it_and_automatic_refreshes_do_not(self, dashboard: Dashboard) -> None:
        key, cell = key_of(dashboard.browser), dashboard.cell

        async def idle_after(**headers: str) -> float:
            """The remaining seconds after two minutes of inactivity, of an hour."""
            seconds, _ = await cell.redis.time()
            await cell.raw("HSET", key, "seen_ms", (seconds - 120) * 1000)
            assert (await dashboard.browser.get("/ops/jobs/", **headers)).status == 200
            return float(seconds - int(await cell.raw("HGET", key, "seen_ms")) / 1000)

        assert await idle_after(X_Live="idle") == 120
        assert await idle_after(X_Live="used") < 60
        assert await idle_after() < 60
        await cell.raw("HINCRBY", key, "seen_ms", -3_600_000)
        assert (await dashboard.browser.get("/ops/jobs/", X_Live="used")).status == 303
        assert not await cell.redis.exists(key)

    async def test_a_stream_that_is_opened_again_is_no_person(self, dashboard: Dashboard) -> None:
        key, url = key_of(dashboard.browser), f"http://127.0.0.1:{dashboard.api.port}{EVENTS}"
        seen_ms = int(await dashboard.cell.raw("HINCRBY", key, "seen_ms", -120_000))
        async with dashboard.api.client.get(
            url, headers={"Cookie": f"{COOKIE}={dashboard.browser.session}"}
        ) as response:
            assert response.status == 200
            assert int(await dashboard.cell.raw("HGET", key, "seen_ms")) == seen_ms

    async def test_its_maximum_lifetime_cannot_be_extended(self, dashboard: Dashboard) -> None:
        key, redis = key_of(dashboard.browser), dashboard.cell.redis
        ends_ms = int(await dashboard.cell.raw("HGET", key, "ends_ms"))
        seconds, _ = await redis.time()
        assert 0 < ends_ms - seconds * 1000 <= 43_201_000
        await dashboard.cell.raw("HSET", key, "ends_ms", seconds * 1000 + 50_000, "seen_ms", (seconds - 120) * 1000)
        assert (await dashboard.browser.get("/ops/")).status == 200
        assert int(await dashboard.cell.raw("HGET", key, "ends_ms")) == seconds * 1000 + 50_000
        assert 0 < await redis.pttl(key) <= 2 * 51_000
        await dashboard.cell.raw("HSET", key, "ends_ms", seconds * 1000)
        assert (await dashboard.browser.get("/ops/")).status == 303

    async def test_looking_often_costs_no_write_to_the_disk(self, cell: Cell) -> None:
        async def written() -> int:
            return int((await cell.redis.info("persistence"))["aof_current_size"])

        async with dashboard_of(cell, calls_per_minute=20) as dashboard:
            before = await written()
            for _ in range(5):
                await dashboard.browser.seen("/ops/jobs/")
            assert await written() == before

    async def test_its_calls_are_counted_on_its_token(self, cell: Cell) -> None:
        async with dashboard_of(cell, calls_per_minute=5) as dashboard:
            pages = [await dashboard.browser.get("/ops/") for _ in range(5)]
            assert [page.status for page in pages] == [200] * 4 + [429]  # and the login
            assert "Too many calls" in pages[-1].text
            assert int(pages[-1].headers["Retry-After"]) > 0

    async def test_its_stream_tells_of_changes_and_ends_with_it(self, dashboard: Dashboard) -> None:
        url = f"http://127.0.0.1:{dashboard.api.port}/ops/events/"
        async with dashboard.api.client.get(
            url, headers={"Cookie": f"{COOKIE}={dashboard.browser.session}"}
        ) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
            stream = Stream(response)
            await stream.block()
            await dashboard.api.create("a")
            assert (await stream.job())[0]
        assert (await dashboard.stranger().get("/ops/events/")).status == 401

    async def test_operators_have_a_number_of_streams_of_their_own(self, cell: Cell) -> None:
        async with dashboard_of(cell, operators_streams=2, streams_per_account=1) as dashboard:
            url, cookie = f"http://127.0.0.1:{dashboard.api.port}/ops/events/", f"{COOKIE}={dashboard.browser.session}"
            async with AsyncExitStack() as stack:
                answers = [
                    await stack.enter_async_context(dashboard.api.client.get(url, headers={"Cookie": cookie}))
                    for _ in range(3)
                ]
                assert [answer.status for answer in answers] == [200, 200, 429]


class TestOtherSites:
    @pytest.mark.parametrize(
        "headers",
        [
            {"X-CSRF-Token": ""},
            {"X-CSRF-Token": "x" * 43},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "none"},
        ],
        ids=str,
    )
    async def test_what_another_site_sends_is_refused(self, dashboard: Dashboard, headers: dict[str, str]) -> None:
        page = await dashboard.browser.post(PAUSE, FORM, **headers)
        assert page.status == 403
        assert "csrf_failed" in page.text
        assert not await is_paused(dashboard)

    async def test_a_browser_that_does_not_tell_the_site_tells_the_origin(self, dashboard: Dashboard) -> None:
        csrf = (await dashboard.browser.get("/ops/")).csrf
        url = f"http://127.0.0.1:{dashboard.api.port}{PAUSE}"

        async def status(origin: str | None) -> int:
            headers = {"Cookie": f"{COOKIE}={dashboard.browser.session}", "X-CSRF-Token": csrf}
            headers |= {"Origin": origin} if origin else {}
            async with dashboard.api.client.post(url, data=b"reason=x", headers=headers) as answer:
                return answer.status

        assert await status(None) == 403
        assert await status("null") == 403
        assert await status("https://evil.example") == 403
        assert not await is_paused(dashboard)
        assert await status(f"http://127.0.0.1:{dashboard.api.port}") == 200
        assert await is_paused(dashboard)

    async def test_the_token_of_one_session_is_no_other_sessions(self, dashboard: Dashboard) -> None:
        other = dashboard.stranger()
        await other.login(dashboard.token)
        other.csrf = (await dashboard.browser.get("/ops/")).csrf
        assert (await other.post(PAUSE, FORM)).status == 403

    async def test_a_page_runs_and_loads_only_what_is_ours_and_is_shown_in_no_frame(self, dashboard: Dashboard) -> None:
        for page in (
            await dashboard.browser.get("/ops/"),
            await dashboard.stranger().get("/ops/login/"),
            await dashboard.browser.get("/ops/no/"),
        ):
            policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
            assert policy["frame-ancestors"] == "'none'"
            assert page.headers["X-Frame-Options"] == "DENY"
            assert page.headers["X-Content-Type-Options"] == "nosniff"
            assert page.headers["Cache-Control"] == "no-store"
            for inline in ("<style", " style=", " onclick=", "<script>", "javascript:"):
                assert inline not in page.text
