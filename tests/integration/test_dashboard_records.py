"""The dashboard's pages of servers, findings, the audit log and tokens."""

import re
from collections.abc import AsyncIterator
from html import unescape

import pytest

from api.dashboard.findings import MEANINGS
from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import DONE
from tests.integration.test_dashboard import audited, failed, made, visible
from worker.reconcile import FindingKind
from worker.store.access.tokens import Permission
from worker.store.model import AccountId, ServerId

OTHERS, OTHER_ACCOUNT = ServerId(20_000), AccountId(78)
TORN = {"finding": "torn_snapshot", "tag": "vps-1", "at": "1737044100"}


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


async def listed(dashboard: Dashboard, path: str) -> list[str]:
    """The IDs of the rows of a page's list."""
    return re.findall(r'<tr id="\w+-([^"]+)"', await dashboard.browser.seen(path))


class TestServers:
    async def test_they_are_listed_by_the_filter_in_the_address(self, dashboard: Dashboard) -> None:
        await dashboard.cell.have([OTHERS], account=OTHER_ACCOUNT)
        await dashboard.cell.have([SERVER, OTHERS])
        await made(dashboard, failed("start_failed", stranded=True))
        assert await listed(dashboard, "/ops/servers/") == [str(SERVER), str(OTHERS)]
        assert await listed(dashboard, "/ops/servers/?node=n1&account_id=&stranded=true") == [str(SERVER)]
        assert await listed(dashboard, "/ops/servers/?node=n1&limit=1") == [str(SERVER)]
        assert await listed(dashboard, "/ops/servers/?account_id=9") == []
        assert "No matching servers" in await dashboard.browser.seen("/ops/servers/?node=n9")

    async def test_next_leads_through_all_of_them(self, dashboard: Dashboard) -> None:
        await dashboard.cell.have([ServerId(n) for n in range(1, 6)])
        path, seen = "/ops/servers/?limit=2&node=n1", list[str]()
        while path:
            page = await dashboard.browser.seen(path)
            seen += re.findall(r'<tr id="server-(\d+)"', page)
            found = re.search(r'rel="next" href="([^"]+)"', page)
            path = unescape(found[1]) if found else ""
        assert seen == ["1", "2", "3", "4", "5"]

    async def test_one_is_shown_with_its_snapshots_jobs_and_findings(self, dashboard: Dashboard) -> None:
        bad, good = await made(dashboard, failed(), name="bad"), await made(dashboard, DONE, name="good")
        await dashboard.cell.node.tell_findings(SERVER, [TORN])
        page = await dashboard.browser.seen(f"/ops/servers/{SERVER}/")
        text = visible(page)
        for said in (
            "web-server-01",
            "active",
            "1 of 5",
            "good completed 5 GiB",
            "bad failed",
            "torn snapshot vps-1",
        ):
            assert said in text, said
        assert MEANINGS["torn_snapshot"] in text
        assert re.findall(r'<tr id="job-(\w+)"', page) == [good, bad]

    async def test_a_stranded_server_links_to_its_job_and_the_instructions(self, dashboard: Dashboard) -> None:
        job = await made(dashboard, failed("start_failed", detail="It does not start.", stranded=True))
        page = await dashboard.browser.seen(f"/ops/servers/{SERVER}/")
        assert "It does not start." in visible(page)
        assert f'href="/ops/jobs/{job}/"' in page
        assert re.search(r'href="[^"]*#start_failed"', page)
        await dashboard.browser.done(f"/ops/jobs/{job}/resolve/", {"reason": "started by hand"})
        page = await dashboard.browser.seen(f"/ops/servers/{SERVER}/")
        assert "stranded" not in visible(page)
        assert "resolved" in visible(page)

    async def test_a_server_that_its_node_no_longer_has_is_marked(self, dashboard: Dashboard) -> None:
        await dashboard.cell.node.report([])
        assert "no longer reports this server" in await dashboard.browser.seen(f"/ops/servers/{SERVER}/")


class TestFindings:
    async def test_they_are_listed_and_explained_until_they_are_gone(self, dashboard: Dashboard) -> None:
        assert "No findings" in await dashboard.browser.seen("/ops/findings/")
        await dashboard.cell.node.tell_findings(SERVER, [TORN])
        assert "No findings at that time." in await dashboard.browser.seen("/ops/findings/?until=2025-01-16T16:15")
        text = visible(await dashboard.browser.seen("/ops/findings/?since=2025-01-16T16:15"))
        assert f"{SERVER} web-server-01 {ACCOUNT} n1 torn snapshot vps-1 {MEANINGS['torn_snapshot']}" in text
        await dashboard.cell.node.tell_findings(SERVER, [])
        assert "torn" not in await dashboard.browser.seen("/ops/findings/")

    def test_each_kind_has_its_meaning(self) -> None:
        assert set(MEANINGS) == {*FindingKind, "missing_server"}


class TestAudit:
    async def test_it_tells_who_did_what_why_and_what_came_of_it(self, dashboard: Dashboard) -> None:
        await dashboard.browser.done("/ops/nodes/n1/pause/", {"reason": "a new disk"})
        await dashboard.browser.post("/ops/jobs/" + "0" * 32 + "/retry/")
        refused, paused = (await dashboard.browser.seen("/ops/audit/")).split("<tbody>")[1].split("<tr")[1:3]
        assert "token a test paused n1 : a new disk" in visible(paused)
        assert 'href="/ops/nodes/n1/"' in paused
        assert "token a test tried to retry job 00000000 , refused: job not found" in visible(refused)
        (login,) = (await dashboard.browser.seen("/ops/audit/?what=logins")).split("<tbody>")[1].split("<tr")[1:]
        assert "token a test logged in to the dashboard" in visible(login)

    async def test_it_is_filtered_as_a_form_asks(self, dashboard: Dashboard) -> None:
        made_id = await made_by_customer(dashboard)
        await dashboard.browser.done("/ops/nodes/n1/pause/", {"reason": "a new disk"})
        for query, count in (
            ("", 2),  # without the login
            ("?what=logins", 1),
            ("?about=node+n1", 1),
            ("?about=n1", 1),
            ("?about=node+n2", 0),
            (f"?about=server+{SERVER}", 1),
            (f"?about={SERVER}", 1),
            (f"?about=job+{made_id}&by=a+customer", 1),
            (f"?about={made_id}&by=a+test", 0),
            (f"?account_id={ACCOUNT}&token_id=&method=POST", 1),
            (f"?job_id={made_id}", 1),
            ("?method=DELETE", 0),
            ("?since=2025-01-16T16:15", 2),
            ("?until=2025-01-16T16:15&since=", 0),
            ("?since=2025-01-16T16:15:30Z", 2),
        ):
            assert len(await listed(dashboard, f"/ops/audit/{query}")) == count, query
        page = await dashboard.browser.seen("/ops/audit/?since=2025-01-16T16:15")
        assert 'value="2025-01-16T16:15"' in page
        assert (await dashboard.browser.get("/ops/audit/?since=yesterday")).status == 400
        assert (await dashboard.browser.get("/ops/audit/?about=cat+5")).status == 400


async def made_by_customer(dashboard: Dashboard) -> str:
    answer = await dashboard.api.create()
    assert answer.status == 201
    return answer.headers["Operation-Location"].split("/")[-2]


class TestTokens:
    async def test_one_is_made_and_its_secret_shown_once(self, dashboard: Dashboard) -> None:
        form = {"name": "public tier", "permissions": ["snapshots:read", "snapshots:write"], "account_id": "77"}
        page = await dashboard.browser.post("/ops/tokens/", form | {"lifetime_hours": "12"})
        (secret,) = re.findall(r"vps_[\w-]{43}", page.text)
        assert page.headers["Cache-Control"] == "no-store"
        assert (await dashboard.api.call("GET", token=secret)).status == 200
        (token,) = [token for token in await dashboard.api.tokens.all() if token.name == "public tier"]
        assert token.account_id == ACCOUNT
        assert token.permissions == {Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE}
        assert token.expires_at is not None
        text = await dashboard.browser.seen("/ops/tokens/")
        assert "public tier" in text
        assert secret not in text
        written = await audited(dashboard)
        assert secret not in str(written)
        assert written[-1]["made"] == f"token {token.id}"
        assert f"token {token.id}" in await dashboard.browser.seen("/ops/audit/")

    @pytest.mark.parametrize(
        ("form", "field"),
        [
            ({"permissions": "operator"}, "name"),
            ({"name": "<b>", "permissions": "operator"}, "name"),
            ({"name": "a"}, "permissions"),
            ({"name": "a", "permissions": "root"}, "permissions"),
            ({"name": "a", "permissions": "operator", "account_id": "77"}, "account_id"),
            ({"name": "a", "permissions": "snapshots:read", "account_id": "mine"}, "account_id"),
            ({"name": "a", "permissions": "snapshots:read", "account_id": "9" * 5000}, "account_id"),
            ({"name": "a", "permissions": "operator", "lifetime_hours": "0"}, "lifetime_hours"),
        ],
    )
    async def test_what_can_not_be_is_refused_and_the_field_named(
        self, dashboard: Dashboard, form: dict[str, str], field: str
    ) -> None:
        before = len(await dashboard.api.tokens.all())
        page = await dashboard.browser.post("/ops/tokens/", form)
        assert page.status == 400
        assert field in visible(page.text)
        assert len(await dashboard.api.tokens.all()) == before

    async def test_one_is_revoked_after_a_question_and_its_calls_end(self, dashboard: Dashboard) -> None:
        new = await dashboard.api.tokens.create(name="old", account_id=ACCOUNT, permissions=frozenset(Permission))
        question = await dashboard.browser.seen(f"/ops/tokens/{new.token.id}/revoke/")
        assert "Revoke token old?" in visible(question)
        assert (await dashboard.api.call("GET", token=new.secret)).status == 200
        await dashboard.browser.done(f"/ops/tokens/{new.token.id}/revoke/")
        assert (await dashboard.api.call("GET", token=new.secret)).status == 401
        assert (await dashboard.browser.post(f"/ops/tokens/{new.token.id}/revoke/")).status == 404
        assert (await audited(dashboard))[0]["path"] == f"/ops/tokens/{new.token.id}/revoke/"

    async def test_revoking_ones_own_warns_that_the_session_ends(self, dashboard: Dashboard) -> None:
        (own,) = [token for token in await dashboard.api.tokens.all() if Permission.OPERATOR in token.permissions]
        assert "your session will end" in await dashboard.browser.seen(f"/ops/tokens/{own.id}/revoke/")
        await dashboard.browser.done(f"/ops/tokens/{own.id}/revoke/")
        assert (await dashboard.browser.get("/ops/")).headers["Location"].startswith("/ops/login/")
