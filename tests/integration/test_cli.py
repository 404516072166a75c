"""The command line: its output, its changes, and its exit codes for scripts."""

import asyncio
import json
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from aiohttp import web

from api.cli.exits import Exit
from api.cli.main import app
from api.cli.wire import ANSWER_MAX_BYTES
from tests.conftest import needs
from tests.integration.cli import PROGRAM, Cli, commands
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.front_end import serving
from tests.integration.test_notes import CHAIN, CREATED, RESTORED
from tests.integration.test_ops_api import DONE, NO_JOB, OTHERS, THEIRS, Ops, failed, have_theirs
from tests.queueing import until_told
from worker.store.access.tokens import Permission
from worker.store.model import JobId, JobState
from worker.store.outcome import Outcome
from worker.store.reports import NodeFacts, Pool

NOWHERE = "http://127.0.0.1:1"
BAD = "vps_" + "A" * 43
QUICK = {"HTTPS_PROXY": "", "COLUMNS": "80"}
# commands that change something and ask for confirmation
CHANGES = (
    *(f"job retry {NO_JOB}", f"job cancel {NO_JOB}", f"job resolve {NO_JOB} --reason x"),
    *(f"retry {NO_JOB}", f"cancel {NO_JOB}", "cancel --match kind=create"),
    *("node drain n1 --reason x", "node resume n1 --reason x", "node reconcile n1", "reconcile --all"),
    *("node credential create n9", "node credential rotate n9", "node credential revoke n9"),
    *("server declare 9 --node n1 --account-id 5", "server place 12345 --node n1", "server give 12345 --account-id 5"),
    "account limit 77 --snapshots 9",
    *("server take 12345", "server release 12345"),
    *("token create --name x --permission operator --service", "token revoke 0a1b2c3d4e5f"),
)


@asynccontextmanager
async def _answering(answer: Callable[[web.Request], web.Response]) -> AsyncIterator[str]:
    """The URL of another service that gives this answer to every request."""

    async def handler(request: web.Request) -> web.Response:
        return answer(request)

    other = web.Application()
    other.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(other, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def ops(cell: Cell) -> AsyncIterator[Ops]:
    async with serving(cell, calls_per_minute=100_000) as api:
        yield Ops(api=api, token=await api.new_token(account=None, permissions={Permission.OPERATOR}))


@pytest.fixture
def cli(ops: Ops) -> Cli:
    return Cli(url=f"http://127.0.0.1:{ops.api.port}", token=ops.token)


@pytest.fixture
def customer(ops: Ops, cli: Cli) -> Cli:
    return replace(cli, token=ops.api.token)


def test_every_command_has_json_and_every_one_that_changes_something_asks() -> None:
    found = commands(typer.main.get_command(app))
    options = {words: {o for p in command.params for o in p.opts} for words, command in found.items()}
    assert len(found) > 25
    assert {words for words, has in options.items() if "--json" not in has} == set()
    asks = {" ".join(words) for words, has in options.items() if "--yes" in has}
    listed = {change for change in asks if any(one.startswith(f"{change} ") for one in CHANGES)}
    of_customers = {f"snapshot {what}" for what in ("create", "restore", "undo", "delete")}
    of_customers |= {"schedule delete", "webhook delete", "webhook rotate-secret"}
    assert asks - listed == of_customers | {"context delete"}
    assert all(command.help for command in found.values())


class TestWhatIsShown:
    async def test_json_is_what_the_api_says(self, ops: Ops, cli: Cli, customer: Cli) -> None:
        await have_theirs(ops.api.cell)
        facts = NodeFacts(
            worker="0.1.0", hypervisor="h", emulator="e", pools=(Pool(path="/a", free_bytes=5, total_bytes=9),)
        )
        await ops.api.cell.node.report([], facts)
        await ops.api.cell.have()
        await ops.api.cell.node.tell_findings(
            SERVER, [{"finding": "torn_snapshot", "tag": "vps-1", "at": "1737044100"}]
        )
        await ops.made("good")
        bad, waiting = await ops.made("bad", failed(stranded=True)), await ops.made("waits", None, server=THEIRS)
        await ops.post("nodes/n2/pause/", {"reason": "x"})

        theirs = f"account_id={OTHERS}&server_id={THEIRS}"
        stranded = f"node=n1&account_id={ACCOUNT}&stranded=true"
        by = {
            "jobs": "jobs/",
            "jobs --state failed --kind create --node n1": "jobs/?state=failed&kind=create&node=n1",
            f"jobs --account-id {OTHERS} --server-id {THEIRS} --text waits": f"jobs/?{theirs}",
            "jobs --error-code not_enough_space": "jobs/?error_code=not_enough_space",
            "jobs --limit 1": "jobs/?limit=1",
            "jobs --since 1h --until 2999-01-01T00:00:00Z": "jobs/",
            "jobs --until 2025-01-16T16:15:00Z": "jobs/?until=2025-01-16T16:15:00Z",
            "servers --no-snapshot-days 7": "servers/?no_snapshot_days=7",
            "jobs --ended-until 2999-01-01T00:00:00Z": "jobs/?ended_until=2999-01-01T00:00:00Z",
            "findings --since 2999-01-01T00:00:00Z": "findings/?since=2999-01-01T00:00:00Z",
            f"job show {bad}": f"jobs/{bad}/",
            f"job show {waiting}": f"jobs/{waiting}/",
            "nodes": "nodes/",
            "nodes --state paused --sort=-queued": "nodes/?state=paused&sort=-queued",
            "node show n1": "nodes/n1/",
            "servers": "servers/",
            f"servers --node n1 --account-id {ACCOUNT} --stranded": f"servers/?{stranded}",
            f"server show {SERVER}": f"servers/{SERVER}/",
            "findings": "findings/",
            "overview": "overview/",
            "tokens": "tokens/",
            f"tokens --account-id {ACCOUNT}": f"tokens/?account_id={ACCOUNT}",
            "audit": "audit/",
            "audit --method POST --since 1h --until 2999-01-01T00:00:00Z": "audit/?method=POST",
        }
        done = await asyncio.gather(*(cli.run(*line.split(), "--json") for line in by))
        for line, one in zip(by, done, strict=True):
            wanted, got = await ops.get(by[line]), one.body
            for body in (wanted, got):
                body.pop("at", None)  # the time of the call
                for listed in body.get("results", ()):
                    listed.pop("last_used_at", None)
            assert got == wanted, line

        own = await customer.run("jobs", "--state", "failed", "--json")
        assert own.body == (await ops.api.call("GET", "/api/v1/jobs/?state=failed")).body

    async def test_in_a_pipe_a_table_is_plain_and_whole(self, ops: Ops, cli: Cli) -> None:
        job = await ops.made("a-rather-long-name-of-a-snapshot-that-would-not-fit", failed())
        listed = await cli.run("jobs", COLUMNS="40")
        head, row = (line.split() for line in listed.out.splitlines())
        assert head[:5] == ["JOB", "STATE", "KIND", "SERVER", "NAME"]
        assert row[:5] == [job, "failed", "create", str(SERVER), "web-server-01"]
        assert row[6] == "s"  # AGE
        assert "a-rather-long-name-of-a-snapshot-that-would-not-fit" in listed.out
        assert "0 stranded servers" in listed.err  # on stderr, not in the table

        shown = await cli.run("job", "show", job, COLUMNS="40")
        assert "not_enough_space: The storage has too little free space." in shown.out
        assert "runbook" in shown.out
        assert f"job retry {job}" in shown.err

    async def test_an_empty_list_is_no_line_at_all(self, cli: Cli) -> None:
        for line in ("jobs", "findings", "servers --stranded"):
            done = await cli.run(*line.split())
            assert (done.code, done.out) == (0, ""), line
            assert done.err.startswith("No "), line

    async def test_control_characters_in_texts_do_not_reach_the_terminal(self, ops: Ops, cli: Cli) -> None:
        failure = failed().failure
        assert failure
        evil = replace(failure, detail="\x1b]0;owned\x07 [bold]not markup[/bold]")
        job = await ops.made("evil", Outcome(state=JobState.FAILED, failure=evil))
        shown = await cli.run("job", "show", job)  # run() has checked the escape itself
        assert "[bold]not markup[/bold]" in shown.out
        assert "\x07" not in shown.out

    async def test_a_long_list_is_complete_or_as_long_as_requested(self, ops: Ops, cli: Cli) -> None:
        for n in range(502):
            await node_store(ops.api.cell.redis, node=f"x{n:03}", machine=f"m{n}").take_lease(seconds=60)
        whole, part = await asyncio.gather(
            cli.run("nodes", "--all", "--json"), cli.run("nodes", "--limit", 501, "--json")
        )
        assert [len(one.body["results"]) for one in (whole, part)] == [503, 501]
        assert whole.body["after"] is None
        assert (await ops.get(f"nodes/?after={part.body['after']}"))["results"][0] == whole.body["results"][501]
        assert "use --limit or --all for more" in (await cli.run("nodes", "--limit", 2)).err

    async def test_top_once_is_one_document_or_plain_tables(self, ops: Ops, cli: Cli) -> None:
        bad = await ops.made("bad", failed(stranded=True))
        waiting = await ops.made("waits", None)
        now, told = await asyncio.gather(cli.run("top", "--once", "--json"), cli.run("top"))
        assert [server["stranded_by"] for server in now.body["stranded"]] == [bad]
        assert [job["id"] for job in now.body["waiting"]] == [waiting]
        assert set(now.body) == {"overview", "stranded", "nodes", "running", "waiting"}
        assert told.out.index("Stranded (1)") < told.out.index("Nodes (1)") < told.out.index("Queued (1)")
        async with cli.running("top", "--json", "--interval", 0.5) as process:
            assert process.stdout
            lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
        assert [line["overview"]["queued"] for line in lines] == [1, 1]

    async def test_help_and_version_need_nothing(self, cli: Cli) -> None:
        told, version = await asyncio.gather(cli.run("--help", VPS_SNAPSHOTS_TOKEN=""), cli.run("--version"))
        assert told.code == version.code == 0
        assert all(f"\n    {code.value}: {code.meaning}\n" in told.out for code in Exit)
        titles = [line for line in told.out.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert titles == ["Options:", "View:", "Act:", "Access and audit:"]
        assert version.out.startswith("vps-snapshots 1.")

    @pytest.mark.parametrize(
        ("line", "meant"),
        [
            ("snapshots create --help", " Did you mean `snapshot create`?"),
            ("nodes drain n1", " Did you mean `node drain`?"),
            ("jobs frob -h", ""),
            ("audit show", ""),
        ],
    )
    async def test_a_list_takes_no_argument_and_names_the_command_that_was_meant(
        self, cli: Cli, line: str, meant: str
    ) -> None:
        done = await cli.run(*line.split())
        assert (done.code, done.out) == (Exit.USAGE, "")
        assert done.err.endswith(f"Error: `{line.partition(' ')[0]}` takes no argument.{meant}\n")


class TestWhatIsChanged:
    async def test_nothing_where_nobody_can_be_asked(self, ops: Ops, cli: Cli) -> None:
        job = await ops.made("waits", None)
        lines = [line.replace(NO_JOB, job) for line in CHANGES]
        before = [token.id for token in await ops.api.tokens.all()]
        for line, done in zip(lines, await asyncio.gather(*(cli.run(*one.split()) for one in lines)), strict=True):
            assert (done.code, done.out) == (Exit.USAGE, ""), line
            assert "--yes" in done.err, line
        assert (await ops.get("audit/?method=POST"))["results"] == []
        assert [token.id for token in await ops.api.tokens.all()] == before

    async def test_an_account_gets_another_limit(self, ops: Ops, cli: Cli) -> None:
        changed = await cli.run("account", "limit", str(ACCOUNT), "--snapshots", "9", "--yes")
        assert "9\n" in changed.out
        assert (await ops.get(f"accounts/{ACCOUNT}/"))["snapshots_max"] == 9
        (audited,) = (await ops.get("audit/?method=PUT"))["results"]
        assert (audited["fields"]["account"], audited["fields"]["made"]) == (str(ACCOUNT), "snapshots_max 9")
        assert (await cli.run("account", "limit", str(ACCOUNT), "--yes")).code == 0
        assert "5 (the default)" in (await cli.run("account", "show", str(ACCOUNT))).out

    async def test_a_job_is_cancelled_retried_and_resolved(self, ops: Ops, cli: Cli) -> None:
        job = await ops.made("again", failed("start_failed", stranded=True))
        resolved = await cli.run("job", "resolve", job, "--reason", "started by hand", "--yes")
        assert resolved.out == f"resolved: create of again on web-server-01 ({SERVER})\n"
        assert (await ops.get(f"jobs/{job}/"))["resolution"]["reason"] == "started by hand"
        (new,) = [(await cli.run("job", "retry", job, "--yes", "--json")).body]
        assert (new["state"], new["snapshot"]["name"]) == ("queued", "again")
        cancelled = await cli.run("job", "cancel", new["id"], "--yes")
        assert cancelled.out.startswith("cancelled: ")
        again = await cli.run("job", "cancel", new["id"], "--yes")
        assert again.code == Exit.REFUSED
        assert "(job_not_cancellable, request " in again.err

    async def test_many_are_done_by_id_or_by_what_they_are(self, ops: Ops, cli: Cli) -> None:
        await have_theirs(ops.api.cell)
        good, mine = await ops.made("good"), await ops.made("mine", None)
        theirs = await ops.made("theirs", None, server=THEIRS)

        part = await cli.run("cancel", mine, good, "--yes", "--json")
        assert part.code == Exit.REFUSED
        assert [(one["id"], one["done"]) for one in json.loads(part.out)["results"]] == [(mine, True), (good, False)]

        bad = await ops.made("bad", failed())
        matched = await cli.run("cancel", "--match", "node=n2", "--match", f"account_id={OTHERS}", "--yes")
        assert (matched.code, matched.out.split()[-5:-3]) == (0, [theirs, "yes"])
        assert "1 cancelled, 0 refused" in matched.err

        retried = await cli.run("retry", "--match", "error_code=not_enough_space", "--yes", "--json")
        assert [one["id"] for one in retried.body["results"]] == [bad]
        none = await cli.run("retry", "--match", "error_code=not_enough_space", "--match", "node=n2", "--yes")
        assert (none.code, none.out) == (0, "")
        for line in ("cancel", f"cancel {bad} --match node=n1", "retry --match color=red", "retry --match node"):
            assert (await cli.run(*line.split(), "--yes")).code == Exit.USAGE, line

    async def test_a_bulk_retry_skips_jobs_that_are_no_longer_wanted(self, ops: Ops, cli: Cli) -> None:
        earlier, latest = await ops.made("earlier", failed()), await ops.made("latest", failed())
        done = await cli.run("retry", "--match", "error_code=not_enough_space", "--yes")
        assert done.code == Exit.REFUSED
        assert "1 retried, 1 refused" in done.err
        new = (await ops.get(f"jobs/{latest}/"))["retried_by"]
        assert f"The server has had a later job, {latest}" in done.out
        assert f"retried by  {new}" in (await cli.run("job", "show", latest)).out
        listed = await cli.run("jobs", "--state", "failed")
        assert [line.split()[0] for line in listed.out.splitlines() if "not_enough_space, retried" in line] == [latest]
        again = await cli.run("job", "retry", latest, "--yes")
        assert (again.code, f"as job {new}" in again.err) == (Exit.REFUSED, True)
        assert (await ops.get(f"jobs/{earlier}/"))["retried_by"] is None
        assert "To retry it" not in (await cli.run("job", "show", latest)).err

    async def test_a_retry_that_could_overwrite_something_newer_needs_force(self, ops: Ops, cli: Cli) -> None:
        earlier, latest = await ops.made("earlier", failed()), await ops.made("latest")
        shown = await cli.run("job", "show", earlier)
        assert f"The server has had a later job, {latest}" in shown.err
        assert f"job retry {earlier} --force" in shown.err
        refused = await cli.run("job", "retry", earlier, "--yes")
        assert (refused.code, "retry_needs_force" in refused.err) == (Exit.REFUSED, True)
        left_out = await cli.run("retry", earlier, "--force", "--yes")
        assert (left_out.code, "retry this job individually" in left_out.out) == (Exit.REFUSED, True)
        assert (await ops.get(f"jobs/{earlier}/"))["retried_by"] is None
        forced = (await cli.run("job", "retry", earlier, "--force", "--yes", "--json")).body
        assert (await ops.get(f"jobs/{earlier}/"))["retried_by"] == forced["id"]

        await ops.api.cell.node.begin(JobId(forced["id"]))
        await ops.api.cell.node.finish(JobId(forced["id"]), failed())
        await ops.api.cell.raw("HINCRBY", f"job:{forced['id']}", "finished_ms", -3601 * 1000)
        many = [await cli.run("retry", forced["id"], *force, "--yes") for force in ((), ("--force",))]
        assert [one.code for one in many] == [Exit.REFUSED, 0]
        assert "retry_needs_force" in many[0].out

    async def test_a_cancelled_one_is_no_failed_one(self, ops: Ops, cli: Cli) -> None:
        bad, waits = await ops.made("bad", failed()), await ops.made("waits", None)
        await ops.post(f"jobs/{waits}/cancel/")
        for state, job in (("failed", bad), ("cancelled", waits)):
            listed = await cli.run("jobs", "--state", state)
            assert [line.split()[:2] for line in listed.out.splitlines()[1:]] == [[job, state]]
        none = await cli.run("retry", "--match", "error_code=cancelled", "--yes")
        assert (none.code, none.out) == (0, "")
        left_out = await cli.run("retry", waits, "--yes")
        assert (left_out.code, "The job was cancelled" in left_out.out) == (Exit.REFUSED, True)

    async def test_a_node_is_drained_until_nothing_runs_and_resumes(self, ops: Ops, cli: Cli) -> None:
        running = await ops.made("runs", None)
        await ops.api.cell.node.begin(running)
        soon = await cli.run("node", "drain", "n1", "--reason", "disk", "--no-wait", "--yes", "--json")
        assert (soon.body["paused"]["reason"], soon.body["running"]) == ("disk", 1)
        late = await cli.run("node", "drain", "n1", "--reason", "disk", "--max-wait", 0.5, "--yes")
        assert (late.code, late.out) == (Exit.STILL_RUNNING, "")
        assert "stays paused" in late.err

        async with cli.running("node", "drain", "n1", "--reason", "disk", "--yes") as draining:
            assert draining.stderr
            assert (await draining.stderr.readline()).startswith(b"1 running: create of runs on web-server-01")
            await ops.api.cell.node.finish(running, DONE)
            out, _ = await draining.communicate()
        assert (draining.returncode, out) == (0, b"n1 is paused, no running jobs, 0 queued\n")
        assert (await cli.run("node", "resume", "n1", "--reason", "done", "--yes")).code == 0
        assert (await ops.get("nodes/n1/"))["paused"] is None

    async def test_a_silent_node_is_not_waited_for(self, ops: Ops, cli: Cli) -> None:
        await ops.api.cell.node.begin(await ops.made("runs", None))
        await ops.api.cell.redis.hset("node:n1", "heartbeat_ms", "1")  # type: ignore[misc] # typed for the blocking client too
        done = await cli.run("node", "drain", "n1", "--reason", "x", "--yes")
        assert done.code == Exit.REFUSED
        assert "silent" in done.err

    async def test_nodes_are_asked_to_reconcile(self, ops: Ops, cli: Cli) -> None:
        await have_theirs(ops.api.cell)
        before = (await ops.api.cell.node.report([])).reconcile_asked
        done = await cli.run("reconcile", "--all", "--yes", "--json")
        assert {node["name"] for node in done.body["results"]} == {"n1", "n2"}
        assert (await ops.api.cell.node.report([])).reconcile_asked != before
        assert (await cli.run("node", "reconcile", "n1", "--yes")).code == 0

    async def test_a_token_is_made_for_a_script_and_revoked(self, ops: Ops, cli: Cli) -> None:
        whose = ("--name", "laptop", "--account-id", 77, "--permission", "snapshots:read", "--expires-in", "30d")
        made = await cli.run("token", "create", *whose, "--yes")
        secret = made.out.strip()
        assert made.out == f"{secret}\n"
        assert (await ops.api.call("GET", token=secret)).status == 200
        listed = await cli.run("tokens")
        assert secret not in listed.out
        (token_id,) = [line.split()[0] for line in listed.out.splitlines() if "laptop" in line]
        assert token_id in made.err
        assert (await cli.run("token", "revoke", token_id, "--yes")).code == 0
        assert (await ops.api.call("GET", token=secret)).status == 401
        assert (await cli.run("token", "revoke", token_id, "--yes")).code == Exit.NOT_FOUND
        unclear = await cli.run("token", "create", "--name", "x", "--permission", "operator", "--yes")
        assert (unclear.code, "--service" in unclear.err) == (Exit.USAGE, True)

    async def test_too_many_calls_take_their_turn(self, cell: Cell) -> None:
        async with serving(cell, calls_per_minute=60) as api:
            token = await api.new_token(account=None, permissions={Permission.OPERATOR})
            cli = Cli(url=f"http://127.0.0.1:{api.port}", token=token)
            done = await cli.run("reconcile", *["n1"] * 62, "--yes", "--json")
        assert len(done.body["results"]) == 62


class TestSnapshots:
    async def test_contents_of_snapshots_and_notes_of_jobs_are_shown(self, ops: Ops, cli: Cli, customer: Cli) -> None:
        node = ops.api.cell.node
        job = await ops.made("one", CREATED)
        snapshot = (await ops.get(f"jobs/{job}/"))["snapshot"]["id"]
        for command in (("snapshot", "show", snapshot), ("job", "show", job)):
            told = await customer.run(*command)
            assert re.search(r"^contents +vda 64 MiB, vdb 2 MiB, UEFI variables$", told.out, re.MULTILINE)
            assert re.search(r"^left out +sda \(a CD-ROM\)$", told.out, re.MULTILINE)
        assert "vda 64 MiB" in (await cli.run("server", "show", SERVER)).out

        restored = await customer.run("snapshot", "restore", snapshot, "--disks", "present", "--yes", "--json")
        job = restored.body["job_id"]
        await node.begin(job)
        await node.finish(job, RESTORED)
        followed = await customer.run("job", "show", job, "--follow")
        for told in (followed, await cli.run("job", "show", job)):
            assert re.search(r"^disks +present disks only$", told.out, re.MULTILINE)
            assert re.search(rf"^note +backup_chain_ended: {CHAIN.detail}$", told.out, re.MULTILINE)
        assert "backup_chain_ended" in (await cli.run("audit", "--job-id", job)).out
        undone = await customer.run("snapshot", "undo", job, "--disks", "present", "--yes", "--json")
        assert undone.body["disks"] == "present"
        assert (await customer.run("snapshot", "restore", snapshot, "--disks", "some")).code == Exit.USAGE

    async def test_a_customer_works_with_them(self, ops: Ops, cli: Cli, customer: Cli) -> None:
        made = await customer.run("snapshot", "create", SERVER, "one", "--description", "d", "--yes", "--json")
        snapshot = made.body["id"]
        await ops.api.cell.node.begin(made.body["job_id"])
        await ops.api.cell.node.finish(made.body["job_id"], DONE)
        listed = (await customer.run("snapshots", "--server-id", SERVER, "--status", "completed", "--json")).body
        assert listed == (await ops.api.call("GET")).body
        (as_operator,) = (await cli.run("snapshots", "--server-id", SERVER, "--json")).body["results"]
        assert as_operator.items() >= listed["results"][0].items()
        shown = await customer.run("snapshot", "show", snapshot)
        assert f"one ({snapshot})" in shown.out

        restored = await customer.run("snapshot", "restore", snapshot, "--yes", "--json")
        job = restored.body["job_id"]
        await ops.api.cell.node.begin(job)
        await ops.api.cell.node.finish(job, Outcome(state=JobState.COMPLETED, undoable_seconds=60))
        undone = await customer.run("snapshot", "undo", job, "--yes")
        assert "job " in undone.out
        (undo,) = (await ops.get("jobs/?kind=undo"))["results"]
        assert undo["id"] in undone.out
        assert (await customer.run("job", "cancel", undo["id"], "--yes")).code == 0
        assert (await customer.run("job", "show", undo["id"], "--json")).body["error"]["code"] == "cancelled"
        deleting = asyncio.create_task(customer.run("snapshot", "delete", snapshot, "--yes", "--follow"))
        deletes: list[str] = []

        async def asked() -> bool:
            deletes.extend(await ops.listed("?kind=delete"))
            return bool(deletes)

        await until_told(asked)
        await ops.api.cell.node.begin(JobId(deletes[0]))
        await ops.api.cell.node.finish(JobId(deletes[0]), DONE)
        deleted = await deleting
        assert deleted.code == 0
        assert f"delete of one on web-server-01 ({SERVER})" in deleted.out
        assert (await customer.run("snapshots", "--json")).body == {"count": 0, "results": []}

    async def test_a_service_names_the_account(self, ops: Ops, cli: Cli) -> None:
        service = replace(cli, token=await ops.api.new_token(account=None))
        nobody, someone = await asyncio.gather(service.run("snapshots"), service.run("--account", ACCOUNT, "snapshots"))
        assert (nobody.code, someone.code) == (Exit.REFUSED, 0)
        assert "--account" in nobody.err

    async def test_fields_that_an_account_may_not_see_are_named(self, customer: Cli) -> None:
        done = await customer.run("jobs", "--node", "n1")
        assert (done.code, "node" in done.err) == (Exit.NOT_ALLOWED, True)


class TestExits:
    async def test_each_refusal_has_its_own(self, ops: Ops, cli: Cli, customer: Cli, tmp_path: Path) -> None:
        broken, missing = tmp_path / "broken", tmp_path / "missing"
        broken.write_bytes(b"vps_secret\nX-Evil: 1")
        of = {
            (cli, f"job show {NO_JOB}"): (Exit.NOT_FOUND, "job_not_found, request "),
            (cli, "job show .."): (Exit.USAGE, "not a valid ID"),
            (cli, "job show ../nodes"): (Exit.NOT_FOUND, "job_not_found"),
            (cli, f"job show {NO_JOB} --follow"): (Exit.NOT_FOUND, "job_not_found"),
            (cli, "node show n9"): (Exit.NOT_FOUND, "node_not_found"),
            (cli, "server show no-such-server"): (Exit.NOT_FOUND, "There is no server no-such-server"),
            (customer, "snapshot show no-such"): (Exit.NOT_FOUND, "There is no snapshot no-such"),
            (cli, "server show 999"): (Exit.NOT_FOUND, "server_not_found"),
            (cli, "servers --node no/node"): (Exit.REFUSED, "node: "),
            (cli, "audit --since yesterday"): (Exit.USAGE, "--since"),
            (cli, "jobs --color red"): (Exit.USAGE, "--color"),
            (cli, "--token x jobs"): (Exit.USAGE, "--token"),  # as an argument, other users could see it
            (cli, "snapshots"): (Exit.NOT_ALLOWED, "--server-id"),
            (customer, "nodes"): (Exit.NOT_ALLOWED, "permission_denied"),
            (replace(cli, token=BAD), "jobs"): (Exit.NOT_ALLOWED, "token_invalid"),
            (replace(cli, token=BAD), f"--token-file {missing} jobs"): (Exit.NOT_ALLOWED, str(missing)),
            (replace(cli, token=BAD), f"--token-file {broken} jobs"): (
                Exit.NOT_ALLOWED,
                "does not contain a valid token",
            ),
            (replace(cli, url=NOWHERE), "jobs"): (Exit.UNREACHABLE, "is not responding"),
            (replace(cli, url=NOWHERE), f"job show {NO_JOB} --follow"): (Exit.UNREACHABLE, "is not responding"),
            (replace(cli, url=NOWHERE), "events"): (Exit.UNREACHABLE, "is not responding"),
            (replace(cli, url="ftp://x"), "jobs"): (Exit.USAGE, "--url"),
            (replace(cli, url="http://user:secret@x"), "jobs"): (Exit.USAGE, "--url"),
            (replace(cli, url=f"{cli.url}/elsewhere"), "jobs"): (Exit.NOT_FOUND, "not_found"),
        }
        done = await asyncio.gather(*(who.run(*line.split()) for who, line in of))
        for (key, (code, text)), one in zip(of.items(), done, strict=True):
            assert (one.code, one.out) == (code, ""), (key, one)
            assert text in one.err, (key, one)
            assert "secret" not in one.err, (key, one)
        lines = [one.err for (who, line), one in zip(of, done, strict=True) if line == "node show n9"]
        assert lines[0].count("\n") == 1

        nobody = await replace(cli, token="").run("jobs", VPS_SNAPSHOTS_TOKEN_FILE="")
        assert nobody.code == Exit.NOT_ALLOWED

    async def test_a_token_file_that_others_can_read_causes_a_warning(self, cli: Cli, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(cli.token)
        for mode, warned in ((0o600, False), (0o640, True), (0o604, True)):
            file.chmod(mode)
            done = await replace(cli, token="").run("--token-file", file, "nodes")
            assert done.code == 0
            assert ("chmod 600" in done.err) == warned

    async def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(self, cli: Cli) -> None:
        asked: list[str] = []

        def answer(request: web.Request) -> web.Response:
            asked.append(str(request.url))
            return web.json_response({"results": [], "after": None, "count": 0})

        async with _answering(answer) as proxy:
            elsewhere = replace(cli, url="http://snapshots.example.com")
            assert (await elsewhere.run("nodes", HTTP_PROXY=proxy)).code == 0
            assert (await elsewhere.run("nodes", all_proxy=proxy)).code == 0
            assert (await elsewhere.run("nodes", HTTP_PROXY=proxy, NO_PROXY="example.com", **QUICK)).code == 5
            assert (await cli.run("nodes", HTTP_PROXY=proxy)).code == 0
        assert asked == ["http://snapshots.example.com/api/v1/ops/nodes/?sort=name&limit=100"] * 2

    async def test_a_closed_pipe_is_no_error(self, ops: Ops, cli: Cli) -> None:
        job = await ops.made("one")
        for command in ("jobs", "jobs --json", f"job show {job}", f"job show {job} --follow"):
            process = await asyncio.create_subprocess_exec(
                *("bash", "-c", f"{PROGRAM} {command} | true; exit ${{PIPESTATUS[0]}}"),
                env=cli.environment(),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            _, said = await process.communicate()
            assert (process.returncode, b"Error" in said) == (0, False), (command, said)

    async def test_a_token_may_lie_in_a_file(self, cli: Cli, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(f"{cli.token}\n")
        assert (await replace(cli, token=BAD).run("nodes", VPS_SNAPSHOTS_TOKEN_FILE=str(file))).code == 0

    async def test_an_unavailable_store_is_not_a_refusal(self, cell: Cell) -> None:
        async with serving(cell, request_seconds=0.2) as api:
            token = await api.new_token(account=None, permissions={Permission.OPERATOR})
            await cell.raw("CLIENT", "PAUSE", "60000", "WRITE")
            try:
                done = await Cli(url=f"http://127.0.0.1:{api.port}", token=token).run("overview")
            finally:
                await cell.raw("CLIENT", "UNPAUSE")
        assert (done.code, "store_unavailable" in done.err) == (Exit.UNREACHABLE, True)

    async def test_a_service_that_is_another_or_takes_too_long_is_named(self) -> None:
        over = asyncio.Event()

        async def answer(request: web.Request) -> web.Response:
            if request.path.endswith("/overview/"):
                await over.wait()
            if request.path.endswith("/nodes/"):
                raise web.HTTPFound("http://127.0.0.1:1/")
            return web.Response(text="<html>not it</html>", status=502 if request.path.endswith("/jobs/") else 200)

        other = web.Application()
        other.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(other, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        cli = Cli(url=f"http://127.0.0.1:{runner.addresses[0][1]}", token=BAD)
        slow, moved, broken, odd = await asyncio.gather(
            cli.run("--timeout", 0.2, "overview"), cli.run("nodes"), cli.run("jobs", "--json"), cli.run("tokens")
        )
        over.set()
        await runner.cleanup()
        assert (slow.code, moved.code, broken.code, odd.code) == (5, 1, 5, 1)
        assert "timed out" in slow.err
        assert all("check --url" in one.err for one in (moved, broken, odd))

    async def test_a_change_whose_answer_was_lost_is_asked_for_again_and_done_once(self, ops: Ops, cli: Cli) -> None:
        keys: list[str] = []

        async def hand_on(request: web.Request) -> web.Response:
            keys.append(request.headers["Idempotency-Key"])
            url, headers = f"{cli.url}{request.rel_url}", request.headers.copy()
            async with ops.api.client.post(url, data=await request.read(), headers=headers) as answer:
                body = await answer.read()
            return web.Response(body=body, status=502 if len(keys) == 1 else answer.status)

        between = web.Application()
        between.router.add_post("/{path:.*}", hand_on)
        runner = web.AppRunner(between)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        far = replace(cli, url=f"http://127.0.0.1:{runner.addresses[0][1]}")
        line = "token create --name once --permission snapshots:read --service --yes"
        made = await far.run(*line.split())
        await runner.cleanup()
        assert (made.code, len(keys), len(set(keys))) == (0, 2, 1)
        (token,) = [one for one in await ops.api.tokens.all() if one.name == "once"]
        assert token.id in made.err
        assert (await replace(cli, token=made.out.strip()).run("--account", "77", "snapshots")).code == 0

    @pytest.mark.parametrize(
        "answer",
        [
            b"{}",
            b'{"results": null, "after": 5, "count": "x"}',
            b'{"results": [1, {}], "after": null, "count": 2}',
            b"[" * 100_000,
        ],
        ids=["nothing", "other types", "other things", "without end"],
    )
    async def test_a_service_of_another_kind_is_reported_in_one_line(self, answer: bytes) -> None:
        async with _answering(lambda _: web.Response(body=answer, content_type="application/json")) as url:
            cli = Cli(url=url, token=BAD)
            ended = await asyncio.gather(cli.run("jobs"), cli.run("job", "show", NO_JOB), cli.run("top", "--once"))
        assert [one.code for one in ended] == [Exit.REFUSED] * 3
        assert all("not from the snapshots API" in one.err and one.err.count("\n") == 1 for one in ended)

    async def test_an_answer_without_end_is_not_waited_for(self) -> None:
        async with _answering(lambda _: web.Response(body=b" " * (ANSWER_MAX_BYTES + 1))) as url:
            ended = await Cli(url=url, token=BAD).run("jobs")
        assert (ended.code, "too large" in ended.err) == (Exit.REFUSED, True)

    async def test_a_proxys_retry_after_can_be_a_date(self) -> None:
        told = {"RateLimit": "limit=1", "Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
        async with _answering(lambda _: web.Response(status=429, headers=told)) as url:
            ended = await Cli(url=url, token=BAD).run("nodes")
        assert ended.code == Exit.UNREACHABLE

    @pytest.mark.parametrize("said", [b"data: \xff\n\n", b"data: {}\nid: x\n\n"], ids=["no text", "no job"])
    async def test_a_stream_of_another_kind_is_reported_in_one_line(self, said: bytes) -> None:
        events = {"Content-Type": "text/event-stream"}
        async with _answering(lambda _: web.Response(body=said, headers=events)) as url:
            ended = await Cli(url=url, token=BAD).run("events")
        assert (ended.code, "not from the snapshots API" in ended.err) == (Exit.REFUSED, True)

    async def test_a_full_disk_is_reported_in_one_line(self, cli: Cli) -> None:
        words = ("sh", "-c", '"$0" overview >/dev/full', PROGRAM)
        ended = await asyncio.create_subprocess_exec(*words, env=cli.environment(), stderr=subprocess.PIPE)
        _, said = await ended.communicate()
        assert b"No space left" in said
        assert b"Traceback" not in said

    async def test_an_output_that_nobody_wants_is_no_failure(self, cli: Cli) -> None:
        words = ("sh", "-c", '"$0" overview >&-', PROGRAM)
        ended = await asyncio.create_subprocess_exec(*words, env=cli.environment(), stderr=subprocess.PIPE)
        _, said = await ended.communicate()
        assert (ended.returncode, said) == (Exit.OK, b"")

    async def test_a_certificate_that_nobody_signed_is_refused(self, tmp_path: Path) -> None:
        needs("openssl")
        made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
        names = "-addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem"
        openssl = await asyncio.create_subprocess_exec(
            "openssl", *made.split(), *names.split(), cwd=tmp_path, stderr=subprocess.DEVNULL
        )
        assert await openssl.wait() == 0
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        seen: list[str] = []

        async def answer(request: web.Request) -> web.Response:
            seen.append(request.path)
            return web.json_response({"results": [], "after": None})

        service = web.Application()
        service.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(service)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        cli = Cli(url=f"https://localhost:{runner.addresses[0][1]}", token=BAD)
        stranger = await cli.run("nodes")
        assert (stranger.code, seen) == (Exit.UNREACHABLE, [])
        assert "certificate" in stranger.err
        async with cli.running("nodes", SSL_CERT_FILE=str(tmp_path / "cert.pem")) as trusting:
            assert await trusting.communicate() == (b"", b"No matching nodes.\n")
        await runner.cleanup()
        assert seen


async def test_a_shell_is_offered_what_there_is(ops: Ops, cli: Cli) -> None:
    job = await ops.made("waits", None)

    async def offered(words: str, to: Cli = cli) -> list[str]:
        asked = {"_VPS_SNAPSHOTS_COMPLETE": "complete_bash", "COMP_WORDS": f"vps-snapshots {words}"}
        return (await to.run(**asked, COMP_CWORD=str(len(words.split())))).out.split()

    assert await offered("node drain n") == ["n1"]
    assert await offered(f"job show {job[:5]}") == [job]
    assert await offered("snapshot cre") == ["create"]
    assert await offered("node drain n", replace(cli, url=NOWHERE)) == []
