"""The documents are correct: their commands run, their paths exist, their tables are complete."""

import asyncio
import re
import tomllib
from pathlib import Path

import pytest

from deploy.demo.service import Service, free_port
from deploy.demo.state import State
from drivers import base
from tests.conftest import needs
from worker.settings import Driver
from worker.store import outcome
from worker.store.errors import REFUSALS
from worker.store.model import CANCELLED, WINDOW_MISSED

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()
CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text()
API = (PROJECT / "docs" / "api" / "errors.md").read_text()


async def test_the_calls_in_the_readme_do_what_it_says(tmp_path: Path) -> None:
    needs("redis-server")
    needs("curl")
    (script,) = re.findall(r"```sh calls\n(.*?)```", README, re.DOTALL)
    assert script == (PROJECT / "deploy" / "demo" / "calls.sh").read_text()  # what `make run` prints
    functions, _, calls = script.partition("\n\n")
    script = f"{script}sleep 1\n{script}"  # as a user who repeats it, after the node has freed the space
    state, folder = State.open(tmp_path / "state"), tmp_path / "user"
    folder.mkdir()
    service = Service(state, port=free_port(), driver=Driver.FAKE)
    refused = """
for command in call start; do
    $command "$URL/api/v1/snapshots/" -d '{}'
    echo "code $?, $snapshot"
done
start "$URL/api/v1/snapshots" -d '{}'  # without the slash
follow
"""

    async def said(commands: str, *, code: int = 0) -> str:
        """What they print, as a user's log file shows it."""
        log = folder / "log"
        with log.open("w") as output:
            process = await asyncio.create_subprocess_exec(
                *("bash", "-u", "-c", commands),
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "URL": service.url, "TOKEN": service.client.token},
                stdout=output,
                stderr=output,
            )
            async with asyncio.timeout(60):
                await process.wait()
        assert process.returncode == code, log.read_text()
        return log.read_text()

    try:
        await service.start()
        done, failed = await said(script), await said(f"snapshot=''\n{functions}{refused}", code=1)
        unknown = await said(f"{functions}\n{calls.replace('12345', '99')}", code=22)
    finally:
        await service.stop()
        state.close()
    assert done.count('"state": "completed"') == 4
    assert done.strip().endswith("204")
    assert failed.count('"code": "invalid_request"') == 3
    assert re.findall(r"\}\ncode (\d+), \n", failed) == ["22", "22"]  # each on a line of its own
    assert failed.endswith("job: no job was started\n\n")
    assert re.fullmatch(r"curl: \(22\) .*\n\{.*\"server_not_found\".*\}\n", unknown)  # nothing else was tried
    assert [path.name for path in folder.iterdir()] == ["log"]  # the commands leave no file behind


@pytest.mark.parametrize(
    "target",
    sorted(set(re.findall(r"(?:^ {4}|`)(?:[A-Z]+=\w+ )?make ([a-z-]+)", README + CONTRIBUTING, re.MULTILINE))),
)
def test_every_make_target_that_the_readme_and_the_guide_name_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["readme", "guide"])
def test_every_place_that_they_name_exists(text: str) -> None:
    places = set(re.findall(r"`([a-z_/]+/|[a-z_]+/[a-z_./]+\.[a-z]+)`", text))
    places |= set(re.findall(r"\]\(([^)#]+)\)", text))
    places -= {"dist/"}  # which `make deb` creates
    missing = [place for place in places if not (PROJECT / place).exists() and not _is_below_tests(place)]
    assert missing == []


def test_every_layer_of_the_import_contracts_is_in_the_picture() -> None:
    picture = set(re.findall(r"\w+", CONTRIBUTING.split("```")[1]))
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {
        name for one in contracts if one["type"] == "layers" for layer in one["layers"] for name in layer.split(" | ")
    }
    resources = {path.parent.name for path in (PROJECT / "api").glob("*/calls.py")}  # the picture shows where they are
    assert len(layers - resources) > 45
    assert layers - resources - picture == set()


def _is_below_tests(place: str) -> bool:
    return (PROJECT / "tests" / place).exists()


def test_every_warning_and_error_in_the_log_has_its_line_in_the_runbook() -> None:
    sources = [path.read_text() for part in ("api", "worker", "drivers") for path in (PROJECT / part).rglob("*.py")]
    logged = re.compile(r'(?:log\.(?:warning|error|exception)|outage\.tell)\(\s*"([^"]+)"')
    events = {event for source in sources for event in logged.findall(source)}
    runbook = (PROJECT / "docs" / "runbook.md").read_text()
    assert len(events) > 10
    assert {event for event in events if f"`{event}`" not in runbook} == set()


def test_every_refusal_is_in_the_document_of_the_api() -> None:
    assert [refusal.code for refusal in REFUSALS if f"`{refusal.code}`" not in API] == []


def test_every_error_of_a_driver_is_in_the_document_of_the_api() -> None:
    codes = {kind.code for kind in base.DriverError.__subclasses__()}
    assert {code for code in codes if f"`{code}`" not in API} == set()


def test_every_error_of_a_job_is_in_the_runbook_and_in_the_document_of_the_api() -> None:
    sources = [path.read_text() for path in (PROJECT / "worker").rglob("*.py")]
    codes = {code for source in sources for code in re.findall(r'Failure\(\s*code="([a-z_]+)"', source)}
    codes |= {kind.code for kind in base.DriverError.__subclasses__()} | {CANCELLED}
    outcomes = [made for made in vars(outcome).values() if isinstance(made, outcome.Outcome)]
    codes |= {made.failure.code for made in outcomes if made.failure}
    runbook = (PROJECT / "docs" / "runbook.md").read_text()
    assert len(codes) > 10
    assert WINDOW_MISSED in codes
    assert {code for code in codes if f"\n### {code}\n" not in runbook} == set()
    assert {code for code in codes if f"`{code}`" not in API.partition("## Errors of jobs")[2]} == set()
