"""The Debian packages: their contents, and what the lock pins for their Debian release."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.packages.build import bill_of_wheel
from deploy.packages.lock import pinned, pinned_for
from deploy.packages.parts import CHECKOUT_HOME, PACKAGES, PROJECT, RELEASES, UNITS, Package
from deploy.release import NotReadyError, dated, section, sums
from tests.conftest import needs

DEPLOY = PROJECT / "deploy"
CHANGELOG = "# Changelog\n\n## 1.1.0 (unreleased)\n\n### Added\n- b\n\n## 1.0.0 (2026-01-02)\n\n- a\n"


def test_each_unit_each_example_and_each_program_is_in_one_package() -> None:
    shipped = [here for package in PACKAGES for here in package.files.values()]
    handed_out = [f"{folder}/{file.name}" for folder in ("systemd", "examples") for file in (DEPLOY / folder).iterdir()]
    assert sorted(shipped) == sorted([*handed_out, "libvirt/hook.sh"])
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert sorted(program for package in PACKAGES for program in package.programs) == sorted(scripts)


def test_a_unit_starts_programs_of_its_own_package() -> None:
    for package in PACKAGES:
        for here in package.files.values():
            for word in (DEPLOY / here).read_text().split():
                program = word.partition("=")[2] or word
                if program.startswith(CHECKOUT_HOME):
                    assert program.removeprefix(CHECKOUT_HOME) in {*package.programs, "python"}


def builds(folder: Path, *options: str, architecture: str = "amd64") -> subprocess.CompletedProcess[str]:
    """Build on a machine of the architecture, if it begins at all."""
    (folder / "dpkg").write_text(f"#!/bin/sh\necho {architecture}\n")
    (folder / "dpkg").chmod(0o755)
    (folder / "git").write_text("#!/bin/sh\nexit 9\n")  # with which a build begins
    (folder / "git").chmod(0o755)
    command = [sys.executable, "-m", "deploy.packages", str(folder / "dist"), *options]
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


def test_what_no_package_is_built_for_is_refused_before_the_build(tmp_path: Path) -> None:
    for done, why in (
        (builds(tmp_path, "--debian", "12", "--debian", "11"), "Debian 11: packages are built for 12 and 13"),
        (builds(tmp_path, architecture="riscv64"), "architecture riscv64: packages are built for amd64 and arm64"),
        (builds(tmp_path, "--revision", "1_2"), "revision '1_2'"),
    ):
        assert done.returncode == 2
        assert why in " ".join(done.stderr.replace("│", " ").split())
    assert "git" in builds(tmp_path, "--debian", "12", architecture="arm64").stderr
    assert not (tmp_path / "dist").exists()


def test_each_package_has_its_files_for_debian() -> None:
    control = (DEPLOY / "debian" / "control").read_text()
    for package in PACKAGES:
        assert f"\nPackage: {package.name}\n" in control
        for script in ("postinst", "prerm"):
            assert f"-p {package.name}" in (DEPLOY / "debian" / f"{package.name}.{script}").read_text()


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """The folder `debian` after debhelper has written its part of the maintainer scripts, with units only."""
    needs("dh_installsystemd")
    debian = tmp_path / "debian"
    shutil.copytree(DEPLOY / "debian", debian)
    (debian / "changelog").write_text("vps-snapshots (1-1) stable; urgency=medium\n")
    for package in PACKAGES:
        for there, here in package.files.items():
            if there.startswith(UNITS):
                (debian / package.name / there).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(DEPLOY / here, debian / package.name / there)
    subprocess.run(["debian/rules", "override_dh_installsystemd"], cwd=tmp_path, check=True, capture_output=True)
    return debian


def invoked(generated: Path, package: str, script: str) -> list[tuple[str, set[str]]]:
    """Each call of deb-systemd-invoke in a maintainer script: the verb, and the units."""
    files = [generated / f"{package}.{script}", *generated.glob(f".debhelper/generated/{package}/{script}.*")]
    text = "".join(file.read_text() for file in files if file.exists()).replace("\\\n", " ").replace("'", "")
    found = re.findall(r"deb-systemd-invoke (\S+) (.*?) +>/dev/null", text)
    return [(verb, set(units.split())) for verb, units in found]


def units_of(package: str) -> set[str]:
    (found,) = [each for each in PACKAGES if each.name == package]
    return {Path(there).name for there in found.files if Path(there).match("vps-snapshots-*.*") and UNITS in there}


def test_an_upgrade_restarts_what_is_running_and_neither_the_socket_nor_a_backup(generated: Path) -> None:
    """Connections that wait in the socket would be reset. `restart` would also start stopped units."""
    kept = {"vps-snapshots-api.socket", "vps-snapshots-backup.service"}
    for package in ("vps-snapshots-api", "vps-snapshots-worker"):
        assert invoked(generated, package, "preinst") == []
        units = {unit for unit in units_of(package) if "conf" not in unit} - kept
        assert invoked(generated, package, "postinst") == [("try-restart", units)]


def test_a_removal_stops_every_unit(generated: Path) -> None:
    for package in ("vps-snapshots-api", "vps-snapshots-worker"):
        assert invoked(generated, package, "prerm") == [("stop", units_of(package))]


@pytest.mark.parametrize("unfinished", [0, 2])
def test_a_worker_with_unfinished_jobs_in_its_own_state_folder_is_not_removed(tmp_path: Path, unfinished: int) -> None:
    text = (DEPLOY / "debian" / "vps-snapshots-worker.prerm").read_text()
    for there, here in (
        ("/usr/lib/vps-snapshots/worker/bin/python", sys.executable),
        ("/etc/vps-snapshots/worker.toml", str(tmp_path / "worker.toml")),
        ("/run/systemd/system", str(tmp_path / "no-systemd")),
        ("py3clean -p vps-snapshots-worker", ""),
    ):
        assert there in text
        text = text.replace(there, here)
    (tmp_path / "prerm").write_text(text)
    (tmp_path / "worker.toml").write_text(f'state_dir = "{tmp_path}/state"\n')

    def removed() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", tmp_path / "prerm", "remove"], capture_output=True, text=True, check=False)

    assert (removed().returncode, removed().stderr) == (0, "")  # there is no journal
    (tmp_path / "state").mkdir()
    with sqlite3.connect(tmp_path / "state" / "journal.sqlite") as journal:
        journal.execute("CREATE TABLE jobs (published INTEGER)")
        journal.executemany("INSERT INTO jobs VALUES (?)", [(1,), *[(0,)] * unfinished])
    journal.close()
    assert removed().returncode == (1 if unfinished else 0)
    assert (f": {unfinished} jobs" in removed().stderr) == bool(unfinished)
    (tmp_path / "worker.toml").write_text("state_dir = ")  # nobody knows where the journal is
    assert removed().returncode == 1


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_an_installation_names_the_files_of_a_checkout_that_hide_those_of_the_package(
    package: Package, tmp_path: Path
) -> None:
    hiding = [Path("/etc/systemd/system", *Path(there).parts[3:]) for there in package.files if there.startswith(UNITS)]
    hiding += [Path("/usr/local/bin", program) for program in package.programs]
    text = (DEPLOY / "debian" / f"{package.name}.postinst").read_text()
    text = re.sub(
        r" (/etc/|/usr/local/)", rf" {tmp_path}\1", re.sub(r"^ +py3compile .*$", "", text, flags=re.MULTILINE)
    )
    (tmp_path / "postinst").write_text(text)

    def said() -> list[str]:
        done = subprocess.run(["sh", tmp_path / "postinst", "configure"], check=True, capture_output=True, text=True)
        return done.stderr.splitlines()

    assert said() == []
    for file in hiding:
        (tmp_path / file.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.relative_to("/")).symlink_to("/dev/null")  # masked
    assert said() == []
    for file in hiding:
        (tmp_path / file.relative_to("/")).unlink()
        (tmp_path / file.relative_to("/")).touch()
    assert sorted(line.split()[2].removeprefix(str(tmp_path)) for line in said()) == sorted(map(str, hiding))


def test_a_purge_leaves_no_key_and_no_certificate_but_the_backups(tmp_path: Path) -> None:
    settings, backups = tmp_path / "etc/vps-snapshots", tmp_path / "var/lib/private/vps-snapshots-backup"
    for folder in (settings, backups):
        folder.mkdir(parents=True)
    for name in ("gateway.key", "gateway.crt", "redis-ca.crt", "credential", "gateway-ca.crt"):  # as in docs/operations
        (settings / name).touch()
    for package in ("vps-snapshots-api", "vps-snapshots-worker"):
        text = (DEPLOY / "debian" / f"{package}.postrm").read_text()
        (tmp_path / "postrm").write_text(re.sub(" (/(?:etc|var)/)", rf" {tmp_path}\1", text))
        subprocess.run(["sh", tmp_path / "postrm", "purge"], check=True, capture_output=True)
    assert [*settings.iterdir()] == []
    assert backups.is_dir()


def test_the_bill_of_the_wheel_lists_what_is_installed_with_it() -> None:
    listed = {component["name"] for component in json.loads(bill_of_wheel())["components"]}
    assert listed >= {"aiohttp", "arq", "libvirt-python", "opentelemetry-sdk", "rich"}
    assert not listed & {"pytest", "hatchling", "mypy"}


@pytest.mark.parametrize("side", ["front-end", "node", "cli"])
def test_a_lock_is_for_the_python_of_the_target_not_for_the_one_that_builds(side: str) -> None:
    lock = DEPLOY / "lock" / f"{side}.txt"
    of_debian_12 = {entry.name for entry in pinned_for(lock, python=RELEASES["12"].python, machine="x86_64")}
    of_debian_13 = {entry.name for entry in pinned_for(lock, python=RELEASES["13"].python, machine="x86_64")}
    assert of_debian_12 - of_debian_13 == ({"async-timeout"} if side != "cli" else set())  # for Python < 3.11.3
    assert "colorama" not in of_debian_12 | of_debian_13  # for Windows
    assert all(entry.hashes for entry in pinned(lock))


def test_a_lock_that_pins_no_version_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("aiohttp>=3\n")
    with pytest.raises(ValueError, match="pins no version"):
        list(pinned(lock))


def test_a_release_dates_its_section_and_tells_what_it_says() -> None:
    changelog = dated(CHANGELOG, "1.1.0", "2026-11-28")
    assert "\n## 1.1.0 (2026-11-28)\n" in changelog
    assert section(changelog, "1.1.0") == "### Added\n- b"
    assert section(changelog, "1.0.0") == "- a"


@pytest.mark.parametrize("version", ["1.0.0", "1.2.0"])
def test_a_version_that_the_changelog_does_not_begin_with_is_not_released(version: str) -> None:
    with pytest.raises(NotReadyError, match=r"not with '## "):
        dated(CHANGELOG, version, "2026-11-28")


def test_a_version_without_changes_is_not_released() -> None:
    with pytest.raises(NotReadyError):
        section("## 1.1.0 (2026-11-28)\n\n## 1.0.0 (2026-01-02)\n- a\n", "1.1.0")


def test_the_sums_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_bytes(b"a")
    (tmp_path / "SHA256SUMS").write_text("old")
    assert sums(tmp_path) == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a.deb\n"
