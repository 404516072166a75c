"""`make run` without a hypervisor: it starts, keeps its data, and leaves no process running, however it ends."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.demo.client import Client
from deploy.demo.service import free_port
from tests.conftest import needs
from tests.integration.whole_service import fetched

UP_SECONDS = 60
END_SECONDS = 60
PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A `make run` in a separate process."""

    process: asyncio.subprocess.Process
    port: int
    state: Path
    said: list[str] = field(default_factory=list)  # output until it was up
    operators: list[bytes] = field(default_factory=list)  # the tokens that it printed for operators

    async def up(self) -> Client:
        """Return a customer's client with the printed token when it is up."""
        assert self.process.stdout
        async with asyncio.timeout(UP_SECONDS):
            async for line in self.process.stdout:
                self.said.append(line.decode())
                if b"dashboard for operators: " in line:
                    self.operators.append(line.split()[-1])
                if line.startswith(b"URL="):
                    token = line.split(b"TOKEN=")[1].strip()
                    return Client(f"http://127.0.0.1:{self.port}", token.decode())
        raise AssertionError("it ended before it was up")

    async def ended(self) -> tuple[int | None, str]:
        """The exit status and the remaining output."""
        async with asyncio.timeout(END_SECONDS):
            output, _ = await self.process.communicate()
        return self.process.returncode, output.decode()

    def children(self) -> dict[str, int]:
        """PIDs by name of the program."""
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {name: int(pid) for pid in listing.split() for name in PROGRAMS if name in commandline(int(pid))}


PROGRAMS = ("redis-server", "vps-snapshots-gateway", "vps-snapshots-worker", "vps-snapshots-api")


def commandline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@asynccontextmanager
async def running(
    state: Path,
    *arguments: str,
    port: int | None = None,
    options: Mapping[str, str] | None = None,
    cwd: Path = PROJECT,
) -> AsyncIterator[Run]:
    port = port or free_port()
    ours = {"PORT": str(port), "STATE_DIR": str(state), "DRIVER": "fake"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.demo.run", *arguments),
        cwd=cwd,
        env={**os.environ, **ours, **(options or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield Run(process=process, port=port, state=state)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def all_gone(children: Mapping[str, int]) -> None:
    """Wait until the processes of a killed run have ended."""
    async with asyncio.timeout(END_SECONDS):
        while any(name in commandline(pid) for name, pid in children.items()):  # noqa: ASYNC110 - not our children
            await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def parts() -> None:
    needs("redis-server")
    needs("setpriv")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_everything_and_the_next_run_continues(tmp_path: Path, signum: signal.Signals) -> None:
    async with running(tmp_path / "state") as run:
        client, first = await run.up(), run
        children = run.children()
        assert set(children) == set(PROGRAMS)
        urls = re.findall(r"http://\S+/metrics", "".join(run.said))
        assert len(urls) == 2
        for url in urls:
            assert "# HELP" in await fetched(url)
        created = await client.call("POST", "/api/v1/snapshots/", {"server_id": 12345, "name": "kept"})
        await client.follow(created.headers["Operation-Location"], timeout_seconds=30)
        run.process.send_signal(signum)
        status, _ = await run.ended()
        assert status == 0
        assert [name for name, pid in children.items() if name in commandline(pid)] == []
    async with running(tmp_path / "state") as run:
        again = await run.up()
        assert again.token == client.token
        assert run.operators == first.operators
        assert await Client(again.url, run.operators[0].decode()).is_operator()
        listed = (await again.call("GET", "/api/v1/snapshots/")).body
        assert [snapshot["name"] for snapshot in listed["results"]] == ["kept"]


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_part_that_dies_is_named_and_takes_the_others_along(tmp_path: Path, program: str) -> None:
    names = {"redis-server": "Redis", "vps-snapshots-api": "front end"}
    async with running(tmp_path / "state") as run:
        await run.up()
        children = run.children()
        os.kill(children[program], signal.SIGKILL)
        status, said = await run.ended()
        assert status == 1
        assert f"the {names.get(program, program.rpartition('-')[2])} ended unexpectedly" in said
        assert [name for name, pid in children.items() if name in commandline(pid)] == []


async def test_a_folder_in_use_and_a_port_in_use_are_refused_before_anything_starts(tmp_path: Path) -> None:
    async with running(tmp_path / "state") as run:
        await run.up()
        async with running(tmp_path / "other", port=run.port) as second:
            assert await second.ended() == (
                2,
                f"make run: port {run.port}: in use; set another, for example PORT=8081\n",
            )
        async with running(tmp_path / "state") as third:
            status, said = await third.ended()
            assert status == 2
            assert "in use by another run" in said
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "options",
    [{"PORT": "0"}, {"PORT": "-1"}, {"PORT": "65536"}, {"PORT": "http"}, {"PORT": "80.5"}, {"DRIVER": "xen"}],
    ids=str,
)
async def test_an_option_that_cannot_be_is_named_before_anything_starts(
    tmp_path: Path, options: Mapping[str, str]
) -> None:
    async with running(tmp_path / "state", options=options) as run:
        status, said = await run.ended()
    ((name, value),) = options.items()
    assert status == 2
    assert said.startswith(f"make run: {name}={value}: ")
    assert not (tmp_path / "state").exists()


async def test_a_clean_forgets_all_of_a_run_that_has_ended_and_none_of_one_that_runs(tmp_path: Path) -> None:
    async with running(tmp_path / "state") as run:
        await run.up()
        sockets = Path((tmp_path / "state" / "runtime").read_text())
        async with running(tmp_path / "state", "--clean") as clean:
            status, said = await clean.ended()
            assert (status, said.startswith("make clean: ")) == (2, True)
            assert "in use by another run" in said
        children = run.children()
        run.process.kill()
        await run.ended()
    await all_gone(children)
    assert sockets.exists()
    for word in ("deleted ", "does not exist"):
        async with running(tmp_path / "state", "--clean") as clean:
            status, said = await clean.ended()
            assert (status, word in said) == (0, True), said
    assert list(tmp_path.iterdir()) == []
    assert not sockets.exists()


@pytest.mark.parametrize("arguments", [(), ("--clean",)])
async def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "thesis.tex").touch()
    async with running(tmp_path, *arguments) as run:
        status, said = await run.ended()
    assert status == 2
    assert "has other files in it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


async def test_a_run_that_was_killed_is_taken_over_by_the_next(tmp_path: Path) -> None:
    async with running(tmp_path / "state") as run:
        await run.up()
        children = run.children()
        run.process.kill()
        await run.ended()
    await all_gone(children)
    async with running(tmp_path / "state") as again:
        assert await (await again.up()).is_up()


async def test_a_folder_of_the_other_driver_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / ".vps-snapshots").write_text("kvm")
    async with running(tmp_path / "state") as run:
        assert await run.ended() == (
            2,
            f"make run: {tmp_path}/state was created with DRIVER=kvm: set STATE_DIR to another folder\n",
        )
    assert [path.name for path in (tmp_path / "state").iterdir()] == [".vps-snapshots"]


async def test_without_a_folder_each_driver_has_its_own_and_a_clean_forgets_both(tmp_path: Path) -> None:
    no_folder = {"STATE_DIR": "", "PYTHONPATH": str(PROJECT)}
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / ".vps-snapshots").write_text("kvm")
    async with running(tmp_path / "state-fake", options=no_folder, cwd=tmp_path) as run:
        await run.up()
        assert "`make clean` deletes them" in "".join(run.said)
        run.process.terminate()
        await run.ended()
    assert (tmp_path / "state-fake" / "operator-token").exists()
    async with running(tmp_path / "state-fake", options={"DRIVER": "kvm"}) as run:
        status, said = await run.ended()
        assert (status, "was created with DRIVER=fake" in said) == (2, True), said
    async with running(tmp_path, "--clean", options=no_folder | {"DRIVER": ""}, cwd=tmp_path) as clean:
        status, said = await clean.ended()
        assert (status, said.count("deleted ")) == (0, 2), said
    assert list(tmp_path.iterdir()) == []


async def test_a_clean_of_one_driver_leaves_what_the_other_has(tmp_path: Path) -> None:
    no_folder = {"STATE_DIR": "", "PYTHONPATH": str(PROJECT)}
    for folder, driver in [("state", "kvm"), ("state-fake", "fake")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".vps-snapshots").write_text(driver)
    async with running(tmp_path / "state", "--clean") as clean:
        status, said = await clean.ended()
        assert (status, "was created with DRIVER=kvm" in said) == (2, True), said
    async with running(tmp_path, "--clean", options=no_folder, cwd=tmp_path) as clean:
        status, said = await clean.ended()
        assert (status, said) == (0, f"make clean: deleted {tmp_path}/state-fake\n")
    assert [folder.name for folder in tmp_path.iterdir()] == ["state"]


async def test_the_front_end_gets_the_settings_of_webhooks(tmp_path: Path) -> None:
    webhook = {"url": "http://127.0.0.1:9/"}
    async with running(tmp_path / "state", options={"VPS_SNAPSHOTS_WEBHOOKS_TO_PRIVATE": "true"}) as run:
        client = await run.up()
        assert (await client.call("POST", "/api/v1/webhooks/", webhook)).status == 201
        tokens = await Client(client.url, run.operators[0].decode()).call("GET", "/api/v1/ops/tokens/")
        assert {token["name"] for token in tokens.body["results"]} == {"make run: customer", "make run: operator"}
        assert 'of account 77: 12345 "web-server-01", 12346 "web-server-02", 12347 "web-server-03"' in "".join(run.said)


async def test_the_command_line_that_it_prints_works(tmp_path: Path) -> None:
    async with running(tmp_path / "state with a blank") as run:
        await run.up()
        (printed,) = re.findall(r"command line: (.*) top\n", "".join(run.said))
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f"{printed} nodes"), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        async with asyncio.timeout(END_SECONDS):
            output, _ = await process.communicate()
        assert b"node-1" in output, output
        (pages,) = re.findall(r"API documentation: (\S+)", "".join(run.said))
        assert "<html" in await fetched(pages)


async def test_a_state_folder_with_a_long_path_is_fine(tmp_path: Path) -> None:
    async with running(tmp_path / ("deep" * 25) / ("er" * 50)) as run:
        assert await (await run.up()).is_up()
