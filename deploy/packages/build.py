"""Stages the files of all packages, and builds the packages with debhelper."""

import os
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

from deploy.packages import venv
from deploy.packages.licenses import licenses_of
from deploy.packages.lock import Entry, pinned, pinned_for
from deploy.packages.parts import CHECKOUT_HOME, HOME, PACKAGES, PROJECT, Package, Release
from deploy.sbom import bill

DEPLOY = PROJECT / "deploy"
SHELLS = {
    "bash": "usr/share/bash-completion/completions/vps-snapshots",
    "zsh": "usr/share/zsh/vendor-completions/_vps-snapshots",
    "fish": "usr/share/fish/vendor_completions.d/vps-snapshots.fish",
}
WHEEL_LOCKS = ("cli", "front-end", "node", "tracing")  # of everything that may be installed with the wheel
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def version() -> str:
    found: str = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    return found


def wheel(folder: Path) -> Path:
    """Build our wheel in `folder`. SOURCE_DATE_EPOCH sets the times of its files."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(PROJECT)], check=True)
    (made,) = folder.glob("vps_snapshots-*.whl")
    return made


def bill_of_wheel() -> str:
    """The wheel itself contains no other package: the bill of materials lists what the locks install with it."""
    entries = [entry for lock in WHEEL_LOCKS for entry in pinned(DEPLOY / "lock" / f"{lock}.txt")]
    return bill(only={(entry.name, entry.version) for entry in entries})


def architecture() -> str:
    """Debian's name for that of this machine, for which the packages are: amd64."""
    return _said("dpkg", "--print-architecture")


def debs(release: Release, *, wheel: Path, revision: str, folder: Path, dist: Path) -> None:
    """Build the packages for `release` in `dist`, each with its bill of materials and its licenses beside it.

    `folder` is the build folder, and must be empty. Raises CalledProcessError if a tool fails.
    """
    full_version = f"{version()}-{revision}~deb{release.number}"
    shutil.copytree(DEPLOY / "debian", folder / "debian")
    for package in PACKAGES:
        root = folder / "staged" / package.name
        _stage(root, package, release, wheel=wheel, machine=MACHINES[architecture()])
        shutil.copy(folder / "debian" / "lintian-overrides", folder / "debian" / f"{package.name}.lintian-overrides")
        for name in ("sbom.json", "licenses.txt"):
            beside = dist / f"{package.name}_{full_version}_{architecture()}.{name}"
            shutil.copy(root / "usr/share/doc" / package.name / name, beside)
    (folder / "debian" / "lintian-overrides").unlink()
    (folder / "debian" / "changelog").write_text(_changelog(full_version))
    environment = os.environ | {"BUNDLED_DEPENDS": release.depends}
    subprocess.run(["debian/rules", "binary"], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    for made in folder.parent.glob("*.deb"):
        shutil.move(made, dist / made.name)  # which may be another file system


def _stage(root: Path, package: Package, release: Release, *, wheel: Path, machine: str) -> None:
    entries = _bundled(package, release, machine=machine)
    site = venv.make(root, package, release, entries=entries, wheel=wheel, machine=machine)
    for there, here in package.files.items():
        file = root / there
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((DEPLOY / here).read_text().replace(CHECKOUT_HOME, f"/{HOME}/{package.side}/bin/"))
        file.chmod(0o600 if there.endswith(".toml") else 0o755 if here.endswith(".sh") else 0o644)
    programs = root / "usr/bin"
    programs.mkdir(parents=True)
    for program in package.programs:
        (programs / program).symlink_to(f"../lib/vps-snapshots/{package.side}/bin/{program}")
    if package.has_completion:
        _write_completion(root)
    _said(sys.executable, "-m", "deploy.man", str(root / "usr/share/man/man1"), *package.programs)
    documents = root / "usr/share/doc" / package.name
    documents.mkdir(parents=True, exist_ok=True)  # an example may be there
    (documents / "sbom.json").write_text(bill(name=package.name, only={(e.name, e.version) for e in entries}))
    (documents / "licenses.txt").write_text(licenses_of(site))
    shutil.copy(PROJECT / "CHANGELOG.md", documents / "NEWS.md")


def _bundled(package: Package, release: Release, *, machine: str) -> list[Entry]:
    found = {
        entry.name: entry
        for lock in package.locks
        for entry in pinned_for(DEPLOY / "lock" / f"{lock}.txt", python=release.python, machine=machine)
        if entry.name != "libvirt-python"  # Debian's
    }
    return [found[name] for name in sorted(found)]


def _write_completion(root: Path) -> None:
    for shell, path in SHELLS.items():
        file = root / path
        file.parent.mkdir(parents=True)
        environment = os.environ | {"_VPS_SNAPSHOTS_COMPLETE": f"source_{shell}"}
        file.write_text(_said(str(Path(sys.executable).with_name("vps-snapshots")), environment=environment) + "\n")


def _changelog(full_version: str) -> str:
    when = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), tz=UTC)
    maintainer = next(
        line.partition(": ")[2]
        for line in (DEPLOY / "debian" / "control").read_text().splitlines()
        if line.startswith("Maintainer: ")
    )
    return (
        f"vps-snapshots ({full_version}) stable; urgency=medium\n\n  * See NEWS.md.\n\n"
        f" -- {maintainer}  {when:%a, %d %b %Y %H:%M:%S +0000}\n"
    )


def _said(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=PROJECT)
    return done.stdout.strip()
