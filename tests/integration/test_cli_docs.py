"""The examples in docs/cli.md: each is run, and its output is what the document shows."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from api.cli.exits import Exit
from api.cli.main import app
from api.gateway.main import app as gateway
from api.main import app as front_end
from deploy.demo.state import State
from tests.integration.cli import commands
from tests.integration.whole_service import running
from worker.main import app as worker

PROJECT = Path(__file__).parents[2]
CLI = (PROJECT / "docs" / "cli.md").read_text()
RUNBOOK = (PROJECT / "docs" / "runbook.md").read_text()

_ID = re.compile(r"\b(?:[0-9a-f]{32}|[0-9a-f]{12}|[0-9]{8})\b")
_PASSING = re.compile(r"(?:queued|completed|\w+ \d+%)$")  # steps that a follower may see or miss


def examples() -> list[tuple[str, list[str]]]:
    """Each command with the output that follows it."""
    blocks = re.findall(r"```console\n(.*?)```", CLI, re.DOTALL)
    parts = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(lines[0], lines[1:]) for lines in (part.splitlines() for part in parts)]


def alike(lines: list[str]) -> list[str]:
    """Replace values that differ each time."""
    kept = [line for line in lines if not _PASSING.match(line)]
    words = [_ID.sub("ID", " ".join(line.split())) for line in kept]
    return [re.sub(r"(< )?\d+(\.\d+)?", "N", re.sub(r"\b(now$|\d+ s ago)", "N s ago", line)) for line in words]


def here(command: str, ids: Mapping[str, str]) -> str:
    """Replace the document's IDs and settings with those of this run."""
    command = command.replace(" --config /etc/vps-snapshots/api.toml", "")
    return _ID.sub(lambda found: ids.get(found[0], found[0]), command)


async def said_to(command: str, environment: Mapping[str, str], folder: Path) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    return output.decode().splitlines()


async def test_each_example_shows_what_the_document_says(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state")
    ids: dict[str, str] = {}
    try:
        async with running(state) as service:
            environment = {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "VPS_SNAPSHOTS_URL": service.url,
                "VPS_SNAPSHOTS_TOKEN_FILE": "alice.token",
                "VPS_SNAPSHOTS_REDIS__URL": f"unix://{state.runtime}/redis.sock",
            }
            for command, shown in examples():
                said = await said_to(here(command, ids), environment, tmp_path)
                assert sorted(alike(said)) == sorted(alike(shown)), command
                ids |= dict(zip(_ID.findall("\n".join(shown)), _ID.findall("\n".join(said)), strict=True))
    finally:
        state.close()


def test_the_exit_codes_are_those_of_the_program() -> None:
    assert dict(re.findall(r"^\| (\d+) \| (.*) \|$", CLI, re.MULTILINE)) == {
        str(code.value): code.meaning for code in Exit
    }


def test_the_runbook_names_the_command_beside_each_call() -> None:
    calls = [part for part in re.split(r"\n\n|\n(?=- )", RUNBOOK) if re.search(r"`(GET|POST) \S*ops/", part)]
    assert len(calls) > 8
    assert [part for part in calls if "`vps-snapshots " not in part] == []


PROGRAMS = {  # with the least number of its commands in the documents
    "vps-snapshots": (app, 20),
    "vps-snapshots-api": (front_end, 4),
    "vps-snapshots-gateway": (gateway, 1),
    "vps-snapshots-worker": (worker, 4),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_in_a_document_is_one(program: str) -> None:
    documents = [
        path.read_text().replace("\\\n", "")
        for pattern in ("docs/*.md", "docs/api/*.md", "docs/operations/*.md", "*.md", "deploy/*.md")
        for path in PROJECT.glob(pattern)
    ]
    lines = {
        re.sub(r"--config [^ `]+|\s#.*", "", words)
        for text in documents
        for words in re.findall(rf"[`$ ]{program} ((?!vps-)(?:--config|[a-z])[^`\n|>]*)", text)
    }
    named = {line.strip() for line in lines if re.match(r"\s*[a-z]", line)}
    known = commands(typer.main.get_command(PROGRAMS[program][0]))
    assert len(named) > PROGRAMS[program][1]
    for line in sorted(named):
        words = line.split()
        if any(path[: len(words)] == tuple(words) != path for path in known):  # a group of commands
            continue
        path = max((path for path in known if tuple(words[: len(path)]) == path), key=len, default=None)
        assert path is not None, line
        options = {option for parameter in known[path].params for option in parameter.opts}
        options |= {"--help", "-h"}
        assert {word for word in words if re.match("--[a-z]", word)} <= options, line


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_plain_and_each_command_has_a_whole_line(program: str) -> None:
    told = CliRunner().invoke(PROGRAMS[program][0], ["-h"], prog_name=program)
    assert told.exit_code == 0
    assert told.output.startswith(f"Usage: {program} ")
    assert "-h, --help" in told.output
    assert "..." not in told.output.partition("\n")[2]
    assert told.output.isascii()
