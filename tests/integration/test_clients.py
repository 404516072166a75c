"""Clients that other generators make from the document work with the running service."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.service import SERVER_ID, Service
from deploy.demo.state import State
from tests.conftest import lacking, needs
from tests.integration.whole_service import running

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
VENDORED = Path(__file__).parents[2] / "api" / "dashboard" / "static" / "vendor"
PROGRAMS = Path(__file__).with_name("clients")
TOOLS = Path(f"{sys.prefix}-client")  # the generators, Node, and npm packages
RUN_SECONDS = 120.0

EXPECTED = {
    "jobs": ["create completed", "restore completed", "undo completed"],
    "refused": "name_taken",
    "status": "completed",
    "count": 1,
    "deleted": 204,
}
STATUSES = {"create": 201, "list": 200, "restore": 200, "delete": 204}


@pytest.fixture
def tools() -> Path:
    if not (TOOLS / ".lock").exists():
        lacking(f"{TOOLS} is missing: make test sets it up")
    return TOOLS


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    with closing(State.open(tmp_path / "state")) as state:
        async with running(state) as service:
            yield service


@pytest.mark.parametrize(
    ("package", "files"),
    [
        ("htmx.org", {"dist/htmx.min.js": "htmx-{}.min.js", "LICENSE": "htmx.LICENSE"}),
        ("uplot", {"dist/uPlot.iife.min.js": "uplot-{}.min.js", "dist/uPlot.min.css": "uplot-{}.min.css"}),
        ("uplot", {"LICENSE": "uplot.LICENSE"}),
    ],
)
def test_what_the_dashboard_ships_is_what_the_locked_package_has(
    tools: Path, package: str, files: dict[str, str]
) -> None:
    folder = tools / "node_modules" / package
    version = json.loads((folder / "package.json").read_text())["version"]
    for theirs, ours in files.items():
        assert (VENDORED / ours.format(version)).read_bytes() == (folder / theirs).read_bytes()


async def run(folder: Path, program: str | Path, *arguments: str | Path) -> str:
    """The standard output of one of these programs, which must succeed."""
    process = await asyncio.create_subprocess_exec(
        *(program, *arguments),
        cwd=folder,
        env={"PATH": f"{TOOLS / 'bin'}:/usr/bin:/bin", "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(RUN_SECONDS):
        output, trouble = await process.communicate()
    assert process.returncode == 0, output.decode() + trouble.decode()
    return output.decode()


async def did(folder: Path, service: Service, *command: str | Path) -> Any:
    return json.loads(await run(folder, *command, service.url, service.client.token, str(SERVER_ID)))


async def test_the_client_of_openapi_python_client_creates_follows_and_restores(
    tools: Path, service: Service, tmp_path: Path
) -> None:
    generate = (tools / "bin" / "openapi-python-client", "generate", "--path", DOCUMENT, "--meta", "none")
    await run(tmp_path, *generate, "--output-path", "vps_snapshots_client", "--fail-on-warning")
    program = tmp_path / "restores.py"
    program.write_text((PROGRAMS / program.name).read_text())

    assert await did(tmp_path, service, tools / "bin" / "python", program) == EXPECTED


async def test_the_client_of_openapi_typescript_creates_follows_and_restores(
    tools: Path, service: Service, tmp_path: Path
) -> None:
    modules = tmp_path / "node_modules"
    modules.symlink_to(tools / "node_modules")
    program = tmp_path / "restores.ts"
    program.write_text((PROGRAMS / program.name).read_text())
    (tmp_path / "package.json").write_text('{"type": "module"}')
    await run(tmp_path, modules / ".bin" / "openapi-typescript", DOCUMENT, "--output", "schema.ts")
    strict = ("--strict", "--noEmit", "--target", "esnext", "--module", "nodenext", "--allowImportingTsExtensions")
    await run(tmp_path, modules / ".bin" / "tsc", *strict, "--types", "node", program)

    assert await did(tmp_path, service, "node", program) == EXPECTED


@pytest.mark.parametrize(
    "command",
    [("bash", "contract.sh"), (sys.executable, "contract.py"), ("node", "contract.mjs")],
    ids=["curl", "requests", "fetch"],
)
async def test_the_contracts_four_calls_as_anyone_makes_them(
    tools: Path, service: Service, tmp_path: Path, command: tuple[str, str]
) -> None:
    program, script = command
    if script.endswith(".sh"):
        needs("curl")
    answers = await did(tmp_path, service, program, PROGRAMS / script)

    assert {name: status for name, (status, _) in answers.items()} == STATUSES
    (_, created), (_, listed), (_, restoring), (_, deleted) = (answers[name] for name in STATUSES)
    keys = ["id", "server", "name", "status", "size_mb", "created_at", "description"]
    assert list(created) == [*keys, "message"]
    assert listed["count"] == 1
    assert list(listed["results"][0]) == keys
    assert listed["results"][0] | {"size_mb": None} == {key: created[key] for key in keys} | {"status": "completed"}
    assert list(restoring) == ["status", "message", "snapshot", "server"]
    assert restoring["server"]["status"] == "restoring"
    assert deleted is None


async def test_the_linter_has_nothing_to_say(tools: Path, tmp_path: Path) -> None:
    spectral = tools / "node_modules" / ".bin" / "spectral"

    await run(tmp_path, spectral, "lint", "--fail-severity=hint", "--ruleset", PROGRAMS / "spectral.yaml", DOCUMENT)


def test_the_lock_of_node_packages_names_no_host_and_has_a_hash_for_each() -> None:
    lock = (PROGRAMS / "package-lock.json").read_text()
    packages = json.loads(lock)["packages"]

    assert "://" not in lock
    assert [name for name, package in packages.items() if name and "integrity" not in package] == []
