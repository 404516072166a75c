"""Everything in the dashboard and the API is also in the command line: pages and actions, schedules, webhooks,
protection, contexts, names."""

import asyncio
import json
import re
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer

from api.cli.exits import Exit
from api.cli.main import app
from api.dashboard.routes import ACTIONS, PAGES
from tests.integration.cli import Cli, commands
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import serving
from tests.integration.test_cli import CHANGES
from tests.integration.test_cli import cli as cli  # noqa: PLC0414 - a fixture
from tests.integration.test_cli import customer as customer  # noqa: PLC0414 - a fixture
from tests.integration.test_ops_api import Ops, failed
from worker.store.access.tokens import Permission
from worker.store.model import ServerId, Step
from worker.store.reports import JobReport, StepBegun

OF_A_BROWSER = ""  # has no command, because it ends a session
OF_PAGES = {
    "/ops/": "overview",
    "/ops/nodes/": "nodes",
    "/ops/nodes/{node}/": "node show",
    "/ops/jobs/": "jobs",
    "/ops/jobs/{job_id}/": "job show",
    "/ops/servers/": "servers",
    "/ops/servers/{server_id}/": "server show",
    "/ops/snapshots/{snapshot_id}/": "snapshot show",
    "/ops/find/": "find",
    "/ops/schedules/": "schedules",
    "/ops/findings/": "findings",
    "/ops/audit/": "audit",
    "/ops/tokens/": "tokens",
}
OF_ACTIONS = {
    "/ops/nodes/{node}/pause/": ("node drain",),
    "/ops/nodes/{node}/resume/": ("node resume",),
    "/ops/nodes/{node}/reconcile/": ("node reconcile", "reconcile"),
    "/ops/drain/": ("node drain", "node resume"),
    "/ops/jobs/{job_id}/retry/": ("job retry",),
    "/ops/jobs/{job_id}/cancel/": ("job cancel",),
    "/ops/jobs/{job_id}/resolve/": ("job resolve",),
    "/ops/jobs/bulk/": ("retry", "cancel"),
    "/ops/servers/{server_id}/take/": ("server take",),
    "/ops/servers/{server_id}/release/": ("server release",),
    "/ops/tokens/": ("token create",),
    "/ops/tokens/{token_id}/revoke/": ("token revoke",),
    "/ops/logout/": (OF_A_BROWSER,),
}
# For orchestrators and installers: they have a file for a node, or state what only an orchestrator knows.
OF_SCRIPTS = {
    *("node credential create", "node credential rotate", "node credential revoke"),
    *("server declare", "server place", "server give", "account limit"),
}


def test_every_page_and_action_of_the_dashboard_has_its_command_and_the_other_way_round() -> None:
    found = {" ".join(words) for words in commands(typer.main.get_command(app))}
    assert OF_PAGES.keys() == PAGES.keys()
    assert OF_ACTIONS.keys() == ACTIONS.keys()
    acting = {command for several in OF_ACTIONS.values() for command in several} - {OF_A_BROWSER}
    assert {*OF_PAGES.values()} | acting <= found
    of_operators = {command for command in found if any(change.startswith(f"{command} ") for change in CHANGES)}
    assert of_operators == acting | OF_SCRIPTS


ARGUMENTS = {"node show": "n1", "job show": "JOB", "server show": SERVER, "snapshot show": "SNAPSHOT", "find": "n1"}


async def test_an_operators_token_is_enough_for_the_command_of_each_page(ops: Ops, cli: Cli) -> None:
    job = await ops.made("one")
    snapshot = (await ops.get(f"jobs/{job}/"))["snapshot"]["id"]
    lines = [
        f"{command} {ARGUMENTS.get(command, '')}".replace("JOB", job).replace("SNAPSHOT", str(snapshot))
        for command in OF_PAGES.values()
    ]
    done = await asyncio.gather(*(cli.run(*line.split()) for line in lines))
    assert {line: one.err for line, one in zip(lines, done, strict=True) if one.code} == {}


@pytest.fixture
async def ops(cell: Cell) -> Ops:  # type: ignore[misc]  # an async generator
    async with serving(cell, calls_per_minute=100_000, webhooks_to_private=True) as api:
        yield Ops(api=api, token=await api.new_token(account=None, permissions={Permission.OPERATOR}))


class TestNames:
    async def test_eight_digits_of_a_job_are_enough_for_both_sides(self, ops: Ops, cli: Cli, customer: Cli) -> None:
        job = await ops.made("bad", failed())
        waiting = await ops.made("waits", None)
        for side in (cli, customer):
            assert job in (await side.run("job", "show", job[:8].upper())).out
            assert (await side.run("job", "show", "0" * 8)).code == Exit.NOT_FOUND
        assert (await customer.run("job", "cancel", waiting[:8], "--yes")).code == 0
        assert (await cli.run("job", "retry", job[:10], "--yes", "--force")).code == 0
        assert (await cli.run("audit", "--job-id", waiting[:8])).out.count("cancelled job") == 1

    async def test_a_server_and_a_snapshot_are_named(self, ops: Ops, cli: Cli, customer: Cli) -> None:
        created = await customer.run("snapshot", "create", SERVER, "before", "--yes", "--json")
        await ops.api.cell.node.begin(created.body["job_id"])
        name = "web-server-01"
        for side in (cli, customer):
            assert str(SERVER) in (await side.run("server", "show", name)).out
            assert (await side.run("snapshots", "--server-id", name)).out.count("before") == 1
            shown = await side.run("snapshot", "show", "before")
            assert "before" in shown.out
            assert (await side.run("server", "show", "nobody")).code == Exit.NOT_FOUND
        await ops.api.cell.have([SERVER, ServerId(3)])
        several = await cli.run("server", "show", name)
        assert (several.code, "Use an ID" in several.err) == (Exit.USAGE, True)

    async def test_a_token_is_revoked_and_the_audit_and_jobs_are_filtered_by_name(self, ops: Ops, cli: Cli) -> None:
        token = await ops.api.tokens.create(
            name="night shift", account_id=None, permissions=frozenset({Permission.OPERATOR})
        )
        snapshot = await ops.api.have_snapshot("before")
        await ops.api.call("PATCH", f"/api/v1/snapshots/{snapshot}/", body={"protected": True})
        assert (await cli.run("audit", "--snapshot-id", "before")).out.count(f"snapshot {snapshot}") == 2
        waiting = await ops.made("waits", None)
        cancelled = await cli.run("cancel", "--match", "server_id=web-server-01", "--yes", "--json")
        assert [one["id"] for one in cancelled.body["results"]] == [waiting]
        assert (await cli.run("token", "revoke", "night watch", "--yes")).code == Exit.NOT_FOUND
        revoked = await cli.run("token", "revoke", "night shift", "--yes", "--json")
        assert revoked.body == {"id": token.token.id}
        assert token.token.id not in {one.id for one in await ops.api.tokens.all()}


class TestSnapshots:
    async def test_one_is_protected_labeled_and_edited(self, ops: Ops, customer: Cli) -> None:
        snapshot = await ops.api.have_snapshot("before")
        assert "protected" in (await customer.run("snapshot", "protect", snapshot)).out
        refused = await customer.run("snapshot", "delete", snapshot, "--yes")
        assert "snapshot_protected" in refused.err
        assert (await customer.run("snapshot", "protect", "before", "--off")).code == 0
        await customer.run("snapshot", "label", snapshot, "env=test", "team=a")
        labeled = await customer.run("snapshot", "label", snapshot, "team=", "tier=1", "--json")
        assert labeled.body["labels"] == {"env": "test", "tier": "1"}
        edited = await customer.run("snapshot", "edit", snapshot, "--description", "d", "--expires-in", "7d", "--json")
        assert (edited.body["description"], edited.body["protected"]) == ("d", False)
        assert edited.body["expires_at"]
        assert (await customer.run("snapshot", "edit", snapshot, "--never-expire", "--json")).body["expires_at"] is None
        assert (await customer.run("snapshot", "edit", snapshot)).code == Exit.USAGE


class TestSchedules:
    async def test_one_is_made_changed_and_deleted(self, ops: Ops, customer: Cli) -> None:
        await ops.made("known")
        made = await customer.run(
            *("schedule", "create", "web-server-01", "nightly", "--when", "daily", "--keep", 2, "--json")
        )
        schedule = made.body["id"]
        assert (made.body["server"]["id"], made.body["keep"]) == (SERVER, 2)
        assert "nightly" in (await customer.run("schedules", "--server-id", SERVER)).out
        assert "the newest 2" in (await customer.run("schedule", "show", "nightly")).out
        changed = await customer.run(
            *("schedule", "edit", schedule[:8], "--disable", "--keep", 1, "--expire-after", "48h", "--json")
        )
        assert (changed.body["enabled"], changed.body["keep"], changed.body["expire_after_hours"]) == (False, 1, 48)
        assert (await customer.run("schedule", "edit", schedule)).code == Exit.USAGE
        assert (await customer.run("schedule", "delete", "nightly", "--yes")).code == 0
        assert (await customer.run("schedule", "show", "nightly")).code == Exit.NOT_FOUND

    async def test_one_by_label_covers_servers_at_night_where_the_customer_lives(self, ops: Ops, customer: Cli) -> None:
        await ops.made("known")
        labeled = await customer.run("server", "label", "web-server-01", "backup=nightly", "team=a", "--json")
        assert labeled.body["labels"] == {"backup": "nightly", "team": "a"}
        assert "backup=nightly" in (await customer.run("server", "label", SERVER, "team=")).out
        at = ("--when", "0 3 * * *", "--time-zone", "Europe/Berlin", "--window", "2h")
        made = await customer.run("schedule", "create-by-label", "nightly", "--label", "backup=nightly", *at, "--json")
        assert (made.body["server_labels"], made.body["window_minutes"]) == ({"backup": "nightly"}, 120)
        listed = (await customer.run("schedules")).out
        assert "backup=nightly" in listed
        assert "0 3 * * * Europe/Berlin" in listed
        assert "120 minutes" in (await customer.run("schedule", "show", "nightly")).out
        covered = await customer.run("schedule", "servers", "nightly", "--json")
        assert [one["server"]["id"] for one in covered.body["results"]] == [SERVER]
        change = ("--window", "1h", "--time-zone", "UTC", "--label", "backup=x")
        changed = await customer.run("schedule", "edit", "nightly", *change, "--json")
        assert (changed.body["window_minutes"], changed.body["server_labels"]) == (60, {"backup": "x"})
        assert (await customer.run("schedule", "delete", "nightly", "--yes")).code == 0

    async def test_operators_see_what_will_run_tonight_of_all_accounts(self, ops: Ops, cli: Cli, customer: Cli) -> None:
        in_half_a_year = f"0 0 1 {(datetime.now(UTC) + timedelta(days=180)).month} *"
        for made in (
            ("create", SERVER, "hourly", "--when", "hourly"),
            ("create-by-label", "all", "--when", in_half_a_year, "--label", "a=b", "--window", "1h"),
        ):
            assert (await customer.run("schedule", *made)).code == 0
        listed = (await cli.run("schedules", "--json")).body
        assert [one["name"] for one in listed["results"]] == ["hourly", "all"]
        soon = (await cli.run("schedules", "--until", "2h")).out.splitlines()
        assert soon[0].split()[:5] == ["NEXT", "RUN", "(UTC)", "SERVER", "ACCOUNT"]
        assert [str(ACCOUNT) in soon[1].split(), len(soon)] == [True, 2]
        assert (await cli.run("schedules", "--account-id", 5)).out == ""
        assert [
            one["name"] for one in (await cli.run("schedules", "--server-id", SERVER, "--json")).body["results"]
        ] == ["hourly"]
        refused = await customer.run("schedules", "--until", "2h")
        assert (refused.code, "until" in refused.err) == (Exit.NOT_ALLOWED, True)


class TestWebhooks:
    async def test_one_is_made_tested_and_deleted(self, customer: Cli, tmp_path: Path) -> None:
        url, secret = "http://127.0.0.1:1/", tmp_path / "secret"
        made = await customer.run("webhook", "create", url, "--event", "job.failed", "--out", secret, "--json")
        webhook = made.body["id"]
        assert secret.read_text().startswith("whsec_")
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert url in (await customer.run("webhooks")).out
        assert (await customer.run("webhook", "edit", url, "--description", "mine", "--json")).body[
            "description"
        ] == "mine"
        delivery = await customer.run("webhook", "test", webhook[:8], "--json")
        assert delivery.body["id"] in (await customer.run("webhook", "deliveries", webhook)).out
        assert "queued" in (await customer.run("webhook", "redeliver", webhook)).out
        rotated = await customer.run("webhook", "rotate-secret", webhook, "--yes")
        assert rotated.out.startswith("whsec_")
        assert (await customer.run("webhook", "delete", webhook, "--yes")).code == 0
        assert (await customer.run("webhooks", "--json")).body["count"] == 0


class TestContexts:
    async def test_a_context_has_the_url_the_account_and_the_token(self, ops: Ops, cli: Cli, tmp_path: Path) -> None:
        file = tmp_path / "config" / "contexts.json"
        bare = replace(cli, url="", token="")
        service = await ops.api.new_token(account=None)

        async def run(*line: object, side: Cli = bare, **variables: str) -> tuple[int | None, str, str]:
            done = await side.run(*line, VPS_SNAPSHOTS_CONFIG=str(file), **variables)
            return done.code, done.out, done.err

        assert (await run("context", "list"))[0] == 0
        for name, token, account in (("cell", cli.token, ()), ("shop", service, ("--account", ACCOUNT))):
            line = ("--url", cli.url, *account, "context", "create", name)
            assert (await run(*line, side=replace(cli, url="", token=token)))[0] == 0
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text())["current"] == "shop"
        code, out, _ = await run("context", "list")
        assert (code, out.split()[4:]) == (0, ["cell", "-", cli.url, "-", "shop", "yes", cli.url, str(ACCOUNT)])
        assert cli.token not in out

        assert (await run("snapshots"))[0] == 0  # for the account of the context
        assert "n1" in (await run("--context", "cell", "nodes"))[1]
        assert (await run("nodes"))[0] == Exit.NOT_ALLOWED
        assert (await run("context", "use", "cell"))[0] == 0
        assert "n1" in (await run("nodes"))[1]
        assert (await run("--url", "http://127.0.0.1:1", "nodes"))[0] == Exit.NOT_ALLOWED  # it sends no token there
        assert (await run("--context", "none", "nodes"))[0] == Exit.USAGE
        assert (await run("context", "use", "none"))[0] == Exit.NOT_FOUND
        file.chmod(0o644)
        assert "chmod 600" in (await run("nodes"))[2]
        assert (await run("context", "delete", "cell", "--yes"))[0] == 0
        assert (await run("nodes"))[0] == Exit.NOT_ALLOWED
        file.write_text("{}")
        assert (await run("nodes"))[0] == Exit.USAGE


class TestTerminal:
    async def test_the_important_columns_fit_in_80_characters(self, ops: Ops, cli: Cli) -> None:
        job = await ops.made("a", failed("not_enough_space", stranded=True))
        async with cli.at_terminal("jobs", width=80) as terminal:
            assert await terminal.ends() == 0
            table = (await terminal.shows("in the last hour")).splitlines()[:2]
        assert table[0].split() == ["JOB", "STATE", "KIND", "SERVER", "NAME", "AGE", "ERROR", "NODE"]
        assert table[1].split()[0] == job[:8]
        assert "not_enough_space" in table[1]
        assert "n1" in table[1].split()
        assert max(map(len, table)) <= 80

    async def test_for_how_long_a_guest_is_off_and_who_repairs_it_fit_in_80_columns(self, ops: Ops, cli: Cli) -> None:
        job, cell = await ops.made("a", None), ops.api.cell
        await cell.node.begin(job)
        stopping = StepBegun(step=Step.STOPPING, at=time.time(), attempt=1)
        await cell.node.progress(job, Step.SNAPSHOTTING, JobReport(steps=(stopping,)))
        await cell.have(power="off")
        await cell.node.finish(job, failed("start_failed", stranded=True), power="off")
        await ops.post(f"servers/{SERVER}/take/")
        async with cli.at_terminal("servers", "--off", width=80) as terminal:
            assert await terminal.ends() == 0
            table = (await terminal.shows(job[:8])).splitlines()
        for title in ("SERVER", "STATUS", "OFF FOR", "NODE", "TAKEN BY", "JOB"):
            assert title in table[0], title
        assert " s " in table[1]
        assert max(map(len, table)) <= 80

    async def test_only_the_longest_text_is_cut(self, ops: Ops, cli: Cli) -> None:
        await ops.post("nodes/n1/pause/", {"reason": "a reason that is much longer than a terminal is wide " * 3})
        async with cli.at_terminal("audit", width=80) as terminal:
            assert await terminal.ends() == 0
            (line,) = [line for line in (await terminal.shows("a reason")).splitlines() if "paused n1" in line]
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  token a test paused n1: a reason that.*…", line)
        assert len(line) <= 80

    async def test_a_list_that_is_longer_than_the_screen_is_paged(self, ops: Ops, cli: Cli) -> None:
        for n in range(4):
            await ops.made(f"a{n}", failed())
        async with cli.at_terminal("jobs", height=4, PAGER="sed s/^/paged:/") as terminal:
            assert await terminal.ends() == 0
            assert (await terminal.shows("in the last hour")).count("paged:") == 5

    async def test_a_resolved_server_is_not_stranded_any_more(self, ops: Ops, cli: Cli) -> None:
        job = await ops.made("a", failed("start_failed", stranded=True))
        assert "stranded" in (await cli.run("jobs", "--state", "failed")).out
        await ops.post(f"jobs/{job}/resolve/", {"reason": "by hand"})
        assert "resolved" in (await cli.run("jobs", "--state", "failed")).out
