"""The software bill of materials."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.sbom import LOCK_PROPERTY, LOCKS, NPM_LOCK, bill
from tests.conftest import lacking


@pytest.fixture(scope="module")
def written() -> str:
    if not Path(f"{sys.prefix}-client").exists():
        lacking("the venv of the tests' API clients is not installed")
    return bill()


def components(written: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(written)["components"]
    return found


def test_it_lists_each_locked_package_in_its_version_and_no_other(written: str) -> None:
    pinned = set()
    for lock in LOCKS:
        for line in lock.read_text().splitlines():
            if "==" in line:
                name, _, version = line.partition("==")
                pinned.add((lock.stem, name.partition("[")[0].lower(), version.split()[0]))
    npm = json.loads(NPM_LOCK.read_text())["packages"]
    pinned |= {("npm", path.rpartition("node_modules/")[2], entry["version"]) for path, entry in npm.items() if path}
    listed = {
        (lock["value"], component["name"], component["version"])
        for component in components(written)
        for lock in component["properties"]
        if lock["name"] == LOCK_PROPERTY
    }
    assert listed == pinned
    assert {lock.stem for lock in LOCKS} >= {"front-end", "node", "dev", "client"}


def test_each_package_has_a_license_and_an_address(written: str) -> None:
    for component in components(written):
        (stated,) = component["licenses"]
        assert stated.get("expression") or stated["license"].get("id") or stated["license"]["name"], component
        assert component["purl"].startswith(("pkg:pypi/", "pkg:npm/"))
        assert component["purl"].endswith(f"@{component['version']}")


def test_it_is_the_same_each_time_and_of_the_version_that_it_says(written: str) -> None:
    assert bill() == written
    document = json.loads(written)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert "serialNumber" not in document
    assert "timestamp" not in document["metadata"]
    assert document["metadata"]["component"]["name"] == "vps-snapshots"
