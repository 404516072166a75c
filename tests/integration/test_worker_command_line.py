"""The worker's command line: its settings, its help, and its error messages."""

import json
import os
import shlex
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import needs_module
from tests.integration import warm
from tests.operations.pages import blocks
from tests.unit.test_journal import TASK
from worker.journal import KEPT_FOR_A_PERSON, Journal
from worker.program.configuration import ENV_PREFIX
from worker.settings import WorkerSettings
from worker.store.model import ServerId, Step

ADOPT = ["--server-id", "12345", "--account", "77"]


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    ours = {f"{ENV_PREFIX}{name.upper()}": value for name, value in settings.items()}
    return warm.run("worker.main", arguments, clean | {"COLUMNS": "200"} | ours, program="vps-snapshots-worker")


def refuses(*arguments: str, **settings: str) -> str:
    """Check that it refuses to start. Returns its message, which is never a traceback."""
    done = run(*arguments, **settings)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"node": "two words"}, "node:"),
        ({"driver": "xen"}, "driver:"),
        ({"max_jobs": "0"}, "max_jobs:"),
        ({"grace_seconds": "-1"}, "grace_seconds:"),
        ({"gateway__urls": '["https://x"]'}, "gateway.urls:"),
        ({"gateway__color": "red"}, "gateway.color:"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["adopt", "web-server-01", *ADOPT],
        ["rebuild"],
        ["drop-kept", "vps-safety-j1"],
        ["list-in-virsh", "12345"],
    ],
    ids=lambda words: words[0],
)
def test_a_wrong_setting_is_named_at_start(command: list[str], settings: dict[str, str], named: str) -> None:
    assert named in refuses(*command, **settings)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_jobs = 'four'", "max_jobs:"),
        ("max_job = 4", "max_job:"),
        ("[redis]\nurl = 'x'", "[gateway]"),
        (None, "No such file"),
    ],
)
def test_a_wrong_settings_file_is_named_at_start(tmp_path: Path, text: str | None, named: str) -> None:
    path = tmp_path / "worker.toml"
    if text is not None:
        path.write_text(text)
    said = refuses("run", "--config", str(path))
    assert str(path) in said
    assert named in said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "domain"),
        (["web-server-01", "--account", "77"], "--server-id"),
        (["web-server-01", "--server-id", "0", "--account", "77"], "--server-id"),
        (["web-server-01", "--server-id", "12345", "--account", "x"], "--account"),
        (["web-server-01", "--server-id", str(1 << 63), "--account", "77"], "--server-id"),
    ],
)
def test_an_adoption_that_makes_no_sense_is_refused(arguments: list[str], named: str) -> None:
    assert named in refuses("adopt", *arguments, driver="fake")


def test_a_domain_that_is_not_there_and_a_server_that_is_another_are_named(tmp_path: Path) -> None:
    node = {"driver": "fake", "state_dir": str(tmp_path)}
    assert "no domain nowhere" in refuses("adopt", "nowhere", "--server-id", "1", "--account", "77", **node)
    adopted = run("adopt", "web-server-01", *ADOPT, **node)
    first, second = adopted.stdout.splitlines()
    assert (adopted.returncode, first) == (0, "domain web-server-01 is server 12345 of account 77")
    assert "To change it, use `vps-snapshots server give`" in second
    assert "12345" in refuses("adopt", "web-server-02", *ADOPT, **node)


def test_a_state_folder_of_no_use_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "state_dir" in refuses("run", driver="fake", state_dir=str(tmp_path / "file"))
    (tmp_path / "journal.sqlite").write_bytes(bytes(range(256)) * 16)
    assert "journal.sqlite cannot be opened" in refuses("run", driver="fake", state_dir=str(tmp_path))


def test_a_hypervisor_that_is_not_there_is_named(tmp_path: Path) -> None:
    needs_module("libvirt")
    uri = f"qemu+unix:///system?socket={tmp_path}/nowhere"
    assert uri in refuses("run", libvirt_uri=uri, state_dir=str(tmp_path))


def test_kept_snapshots_can_be_released_beside_a_running_worker(tmp_path: Path) -> None:
    node = {"driver": "fake", "state_dir": str(tmp_path)}
    assert f"{tmp_path}/journal.sqlite: unable to open" in refuses("drop-kept", "vps-safety-j1", **node)
    assert list(tmp_path.iterdir()) == []
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:  # as a running worker keeps it
        journal.track_safety_tag(ServerId(12345), "vps-safety-j1", kept_seconds=KEPT_FOR_A_PERSON)
        journal.track_safety_tag(ServerId(12345), "vps-safety-j2", kept_seconds=3600)
        for other in ("vps-safety-j2", "nightly"):  # one of a restore that can still be undone, and one of another tool
            assert f"no tag {other} that is kept" in refuses("drop-kept", other, **node)
        assert journal.due_safety_tags() == []
        done = run("drop-kept", "vps-safety-j1", **node)
        assert (done.returncode, "vps-safety-j1 from the disks of server 12345" in done.stdout) == (0, True), done
        assert [safety.tag for safety in journal.due_safety_tags()] == ["vps-safety-j1"]


def test_a_journal_of_a_newer_version_ends_the_start_with_a_message(tmp_path: Path) -> None:
    path, node = tmp_path / "journal.sqlite", {"state_dir": str(tmp_path), "driver": "fake"}
    with closing(Journal(path)) as journal:
        journal.begin(TASK, Step.PREFLIGHT)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE jobs SET step = 'cooling'")
        said = refuses("run", **node)
        assert f"{path}: a job at the step cooling was written by a newer version or is damaged" in said
        assert "Install the version that began it again, and let it end" in said
        db.execute("PRAGMA user_version = 3")
        assert f"{path} has version 3; this program supports up to 2" in refuses("run", **node)


def test_help_tells_all() -> None:
    told = run("--help").stdout.split()
    assert {"run", "adopt", "rebuild", "drop-kept", "environment", "VPS_SNAPSHOTS_CONFIG);"} <= set(told)
    settings = run("run", "--help").stdout
    assert [
        key for key in WorkerSettings.model_fields if f" {key}:" not in settings and f" {key}." not in settings
    ] == []
    assert "gateway.tls_ca_file:" in settings
    assert "redis" not in settings.partition("Settings")[2].partition("node:")[0]
    assert {"--server-id", "--account", "--config"} <= set(run("adopt", "--help").stdout.split())


def test_the_survey_needs_no_settings_and_ends_well_whatever_it_finds(tmp_path: Path) -> None:
    (tmp_path / "web.xml").write_text("<domain><name>web-1</name><devices/></domain>")
    done = run("survey", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "the server has no disk that can be snapshotted" in done.stdout
    assert done.stdout.endswith(
        "Servers: 1. Can be snapshotted: 0. Refused: 1. Image not found: 0. With parts left out: 0.\n"
    )
    told = json.loads(run("survey", str(tmp_path), "--json").stdout)
    assert told["summary"]["refused"] == 1


@pytest.mark.parametrize(
    "line", [line for block in blocks("project") if block.kind == "survey" for line in block.text.splitlines()]
)
def test_the_survey_works_as_the_readme_calls_it(line: str, tmp_path: Path) -> None:
    needs_module("libvirt")
    (tmp_path / "web.xml").write_text("<domain><name>test</name><devices/></domain>")
    program, *arguments = shlex.split(line.replace("/srv/definitions", str(tmp_path)), comments=True)
    if str(tmp_path) not in arguments:
        arguments += ["--libvirt", "test:///default"]
    assert program == "vps-snapshots-worker"
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Servers: 1. " in done.stdout


def test_a_survey_of_what_is_not_there_says_so(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'} is not a folder" in refuses("survey", str(tmp_path / "none"))
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} is not a folder" in refuses("survey", str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    done = run("survey", str(tmp_path / "empty"))
    assert (done.returncode, "has no domain XML (*.xml) and no disk image" in done.stderr) == (0, True)


def test_a_survey_of_a_libvirt_that_does_not_answer_names_it_and_what_to_do(tmp_path: Path) -> None:
    needs_module("libvirt")
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    said = refuses("survey", "--libvirt", uri)
    assert f"{uri}: the hypervisor is not responding" in said
    assert f"'{tmp_path}/none'" in said  # libvirt's own message
    assert "--libvirt URI" in said
    assert "survey FOLDER" in said
    assert "root" in refuses("survey", "--libvirt", "qemu:///embed")
