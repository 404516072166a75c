"""The command line during an operation: a job until its end, events, and what a person sees at a terminal."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from api.cli.client import Client, Reply
from api.cli.exits import Exit
from api.measures.metrics import Metrics
from deploy.demo.service import free_port
from tests.integration.cli import Cli
from tests.integration.conftest import SERVER, Cell
from tests.integration.front_end import FrontEnd, serving
from tests.integration.test_ops_api import DONE, THEIRS, Ops, failed, have_theirs
from tests.queueing import PATIENCE_SECONDS
from worker.store.access.tokens import Permission
from worker.store.model import JobId, ServerId, Step
from worker.store.reports import JobReport, StepBegun


@asynccontextmanager
async def served(cell: Cell, port: int = 0) -> AsyncIterator[Ops]:
    async with serving(cell, calls_per_minute=100_000, port=port) as api:
        yield Ops(api=api, token=await api.new_token(account=None, permissions={Permission.OPERATOR}))


@pytest.fixture
async def ops(cell: Cell) -> AsyncIterator[Ops]:
    async with served(cell) as ops:
        yield ops


@pytest.fixture
def cli(ops: Ops) -> Cli:
    return Cli(url=f"http://127.0.0.1:{ops.api.port}", token=ops.token)


async def told(stream: asyncio.StreamReader | None, so: Callable[[Any], bool]) -> Any:
    """The first JSON line that matches."""
    assert stream
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not so(line := json.loads(await stream.readline())):
            pass
    return line


class TestFollowing:
    async def test_each_end_of_a_job_has_its_exit_code(self, ops: Ops, cli: Cli) -> None:
        ends = {
            await ops.made("good"): 0,
            await ops.made("bad", failed()): Exit.JOB_FAILED,
            await ops.made("worse", failed(stranded=True)): Exit.STRANDED,
        }
        for job, code in ends.items():
            done = await cli.run("job", "show", job, "--follow")
            assert done.code == code
            assert done.out.splitlines()[0].split() == ["job", job]
            assert (await cli.run("job", "show", job)).code == 0  # showing a failed job is not a failure
        waiting = await ops.made("waits", None)
        late = await cli.run("job", "show", waiting, "--follow", "--max-wait", 0.3)
        assert (late.code, late.out) == (Exit.STILL_RUNNING, "")
        assert f"job show {waiting} --follow" in late.err

    async def test_each_step_is_a_line_and_the_last_is_the_end(self, ops: Ops, cli: Cli) -> None:
        job, node = await ops.made("a", None), ops.api.cell.node
        async with cli.running("job", "show", job, "--follow", "--json") as process:
            await told(process.stdout, lambda line: line["state"] == "queued")
            await node.begin(job)
            for step in (Step.PREFLIGHT, Step.STOPPING):
                await node.progress(job, step)
                await told(process.stdout, lambda line, step=step: line["step"] == step)  # type: ignore[misc]
            await node.finish(job, DONE)
            last = await told(process.stdout, lambda line: line["state"] == "completed")
            assert await process.wait() == 0
        assert last == await ops.get(f"jobs/{job}/")

    async def test_it_outlives_the_front_end(self, cell: Cell) -> None:
        port = free_port()
        async with served(cell, port) as ops:
            cli = Cli(url=f"http://127.0.0.1:{port}", token=ops.token)
            job = await ops.made("a", None)
            following = cli.running("job", "show", job, "--follow")
            process = await following.__aenter__()
            assert process.stderr
            assert await process.stderr.readline() == b"queued\n"
        assert b"is not responding" in await process.stderr.readline()
        async with served(cell, port):
            await cell.node.begin(job)
            await cell.node.finish(job, DONE)
            out, err = await process.communicate()
        await following.__aexit__(None, None, None)
        assert process.returncode == 0
        assert err.splitlines()[-1] == b"completed"
        assert b"completed" in out

    async def test_a_retry_and_a_restore_are_followed_too(self, ops: Ops, cli: Cli) -> None:
        bad, node = await ops.made("again", failed()), ops.api.cell.node
        async with cli.running("job", "retry", bad, "--follow", "--yes", "--json") as process:
            new = await told(process.stdout, lambda line: line["state"] == "queued")
            assert new["id"] != bad
            await node.begin(new["id"])
            await node.finish(new["id"], DONE)
            assert await process.wait() == 0

        customer = replace(cli, token=ops.api.token)
        restore = ("snapshot", "restore", new["snapshot"]["id"], "--follow", "--yes", "--json")
        async with customer.running(*restore) as process:
            begun = await told(process.stdout, lambda line: "job_id" in line)
            await node.begin(begun["job_id"])
            await node.finish(begun["job_id"], failed(stranded=True))
            assert await process.wait() == Exit.STRANDED


class TestCalls:
    """A follower leaves enough of the rate limit for its owner's other calls."""

    async def follow(self, api: FrontEnd, cli: Cli, count: int) -> None:
        """Follow that many jobs, each of ten steps."""
        cell, servers = api.cell, [ServerId(n) for n in range(1, count + 1)]
        await cell.have([SERVER, *servers])
        how = ("a", "--follow", "--yes", "--json")
        async with AsyncExitStack() as stack:
            following = [cli.running("snapshot", "create", server, *how) for server in servers]
            running = [await stack.enter_async_context(one) for one in following]
            jobs = [(await told(one.stdout, lambda line: "job_id" in line))["job_id"] for one in running]
            for one in running:
                await told(one.stdout, lambda line: line["state"] == "queued")
            for job in jobs:
                await cell.node.begin(job)
                await cell.node.finish(job, DONE)
            assert [await one.wait() for one in running] == [0] * count

    @pytest.mark.parametrize(("streams", "count"), [(100, 6), (1, 2)])
    async def test_followers_with_one_token_make_few(self, cell: Cell, streams: int, count: int) -> None:
        metrics = Metrics()
        async with serving(cell, metrics=metrics, streams_per_account=streams) as api:
            cli = Cli(url=f"http://127.0.0.1:{api.port}", token=api.token)
            await self.follow(api, cli, count)
        calls = {
            (sample.labels["route"], sample.labels["status"]): int(sample.value)
            for metric in metrics.registry.collect()
            for sample in metric.samples
            if sample.name.endswith("http_request_duration_seconds_count")
        }
        assert [route for route, _ in calls if "/ops/" in route] == []
        assert streams == 1 or calls["/api/v1/jobs/{job_id}/", "2xx"] <= 60

    async def test_without_a_stream_the_limit_is_spread_over_its_minute(self) -> None:
        replies = iter(["", '"token";r=299;t=1', '"token";r=2;t=1', '"token";r=0;t=60'])

        class Limited:
            async def send(self, *_: object, **__: object) -> Reply:
                return Reply(status=200, headers={"RateLimit": next(replies)}, raw=b"{}")

        client, waits = Client(Limited(), account=5), list[float]()  # type: ignore[arg-type]  # it has no stream
        for _ in range(4):
            await client.get("jobs/")
            waits.append(client.seconds_for_each_call)
        assert waits == [0.0, 0.2, 20.0, 60.0]


class TestEvents:
    async def test_none_is_missed_while_the_front_end_is_away(self, cell: Cell) -> None:
        port = free_port()
        async with served(cell, port) as ops:
            cli = Cli(url=f"http://127.0.0.1:{port}", token=ops.token)
            listening = cli.running("events", "--json", "--count", 3)
            process = await listening.__aenter__()
            assert process.stderr
            assert await process.stderr.readline() == b"Listening.\n"
            job = await ops.made("waits", None)
            await told(process.stdout, lambda line: line["job_id"] == job)
        assert b"Retrying" in await process.stderr.readline()
        await cell.node.begin(job)  # no event stream is open now
        async with served(cell, port):
            await told(process.stdout, lambda line: line["state"] == "in_progress")
            await cell.node.finish(job, DONE)
            last = await told(process.stdout, lambda line: line["state"] == "completed")
            assert await process.wait() == 0
        await listening.__aexit__(None, None, None)
        assert (last["event"], last["job_id"], last["server_id"]) == ("job", job, SERVER)

    async def test_an_account_hears_its_own(self, ops: Ops, cli: Cli) -> None:
        await have_theirs(ops.api.cell)
        async with replace(cli, token=ops.api.token).running("events", "--count", 1) as process:
            assert process.stderr
            await process.stderr.readline()
            await ops.made("theirs", None, server=THEIRS)
            job = await ops.made("mine", None)
            out, _ = await process.communicate()
        assert out.decode().split()[1:4] == [job, "create", "queued,"]


class TestTerminal:
    async def test_a_change_is_asked_for_by_what_it_is(self, ops: Ops, cli: Cli) -> None:
        job = await ops.made("waits", None)
        for answer, code, left in (("n", 1, 1), ("y", 0, 0)):
            async with cli.at_terminal("job", "cancel", job, width=120) as terminal:
                await terminal.shows(f"Cancel: create of waits on web-server-01 ({SERVER}), queued? [y/N]:")
                terminal.type(f"{answer}\n")
                assert await terminal.ends() == code
            assert len(await ops.listed("?state=queued")) == left

    async def test_many_are_counted_and_named_before_the_question(self, ops: Ops, cli: Cli) -> None:
        await ops.made("bad", failed())
        async with cli.at_terminal("retry", "--match", "kind=create") as terminal:
            shown = await terminal.shows("Retry 1 job? [y/N]:")
            assert "create of bad on web-server-01" in shown
            terminal.type("\x03")
            assert await terminal.ends() == Exit.INTERRUPTED
            await terminal.shows("nothing was changed")
        waiting = await ops.made("waits", None)
        async with cli.at_terminal("cancel", waiting) as terminal:
            shown = await terminal.shows("Cancel 1 job? [y/N]:")
            assert "create of waits on web-server-01" in shown
            terminal.type("n\n")
            assert await terminal.ends() != 0
        assert await ops.listed("?state=queued") == [waiting]

    async def test_a_restore_is_named_apart_for_it_overwrites(self, ops: Ops, cli: Cli) -> None:
        await ops.api.cell.have([SERVER, ServerId(3)])
        create, done = (await ops.api.cell.create("other", server=ServerId(3))).job.id, await ops.made("done")
        await ops.api.cell.node.begin(create)
        await ops.api.cell.node.finish(create, failed())
        snapshot = (await ops.get(f"jobs/{done}/"))["snapshot"]["id"]
        restore = (await ops.api.call("POST", f"/api/v1/snapshots/{snapshot}/restore/")).headers["X-Job-Id"]
        await ops.api.cell.node.begin(JobId(restore))
        await ops.api.cell.node.finish(JobId(restore), failed())
        async with cli.at_terminal("retry", restore, create, "--force", width=200) as terminal:
            shown = await terminal.shows(
                "Force the retry of 2 jobs, 1 of them overwriting all data of the server? [y/N]:"
            )
            assert "Overwriting all data of the server:" in shown
            assert shown.index(f"{create}  create of other") < shown.index(f"{restore}  restore of done")
            terminal.type("n\n")
            assert await terminal.ends() != 0
        async with cli.at_terminal("job", "retry", restore, "--force", width=400) as terminal:
            shown = await terminal.shows("overwriting all data of the server? [y/N]:")
            assert "The server has been running since the job failed" in shown
            terminal.type("y\n")
            assert await terminal.ends() == 0
        async with cli.at_terminal("job", "retry", restore, width=400) as terminal:
            await terminal.shows("already retried as job")
            assert await terminal.ends() == 1

    async def test_a_job_has_a_bar_and_ctrl_c_leaves_it_alone(self, ops: Ops, cli: Cli) -> None:
        job, node = await ops.made("a", None), ops.api.cell.node
        async with cli.at_terminal("job", "show", job, "--follow") as terminal:
            await terminal.shows("waiting for its node")
            await node.begin(job)
            await node.progress(
                job, Step.SNAPSHOTTING, JobReport(steps=(StepBegun(step=Step.SNAPSHOTTING, at=0, attempt=1),))
            )
            await terminal.shows("snapshotting")
            await terminal.shows("42%")
            terminal.type("\x03")
            assert await terminal.ends() == Exit.INTERRUPTED
            await terminal.shows("The job continues")
        assert (await ops.get(f"jobs/{job}/"))["state"] == "in_progress"

    async def test_a_table_fits_by_leaving_columns_out(self, ops: Ops, cli: Cli) -> None:
        job = await ops.made("a", failed())
        for width, has, has_not in ((200, "ACCOUNT", "nothing of the kind"), (80, "ERROR", "ACCOUNT")):
            async with cli.at_terminal("jobs", width=width) as terminal:
                assert await terminal.ends() == 0
                shown = await terminal.shows("in the last hour")
                table = shown.split("1 of")[0].splitlines()
            assert has in table[0]
            assert has_not not in table[0]
            assert job[:8] in table[1]
            assert max(map(len, table[:2])) <= width

    @pytest.mark.parametrize(("key", "code"), [("q", 0), ("\x03", Exit.INTERRUPTED)])
    async def test_top_runs_until_it_is_stopped(self, ops: Ops, cli: Cli, key: str, code: int) -> None:
        bad = await ops.made("bad", failed(stranded=True))
        async with cli.at_terminal("top", "--interval", 0.5, width=130) as terminal:
            shown = await terminal.shows("Stranded (1)")
            assert "1 stranded server" in shown
            assert bad[:8] in shown
            waiting = await ops.made("waits", None)
            await terminal.shows(waiting[:8])
            terminal.type(key)
            assert await terminal.ends() == code
            await asyncio.sleep(0)
        assert terminal.shown.rindex("\x1b[?1049l") > terminal.shown.rindex("\x1b[?1049h")  # the screen is restored

    async def test_top_says_so_while_the_service_is_away(self, cell: Cell) -> None:
        port = free_port()
        async with served(cell, port) as ops:
            cli = Cli(url=f"http://127.0.0.1:{port}", token=ops.token)
            top = cli.at_terminal("top", "--interval", 0.5)
            terminal = await top.__aenter__()
            await terminal.shows("Nodes (1)")
        await terminal.shows("is not responding")
        terminal.type("q")
        assert await terminal.ends() == 0
        await top.__aexit__(None, None, None)
