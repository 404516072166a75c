"""The Debian packages: their contents, and what the lock pins for their Debian release."""

import json
import tomllib
from pathlib import Path

import pytest

from deploy.packages.build import bill_of_wheel
from deploy.packages.lock import pinned, pinned_for
from deploy.packages.parts import CHECKOUT_HOME, PACKAGES, PROJECT, RELEASES
from deploy.release import NotReadyError, dated, section, sums

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


def test_each_package_has_its_files_for_debian() -> None:
    control = (DEPLOY / "debian" / "control").read_text()
    for package in PACKAGES:
        assert f"\nPackage: {package.name}\n" in control
        for script in ("postinst", "prerm"):
            assert f"-p {package.name}" in (DEPLOY / "debian" / f"{package.name}.{script}").read_text()


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
