"""`make release`: dates the version's section in the changelog, builds its packages, and tags the commit.

The version is that in pyproject.toml. All checks run first, so that a tag marks a commit that has passed them. Nothing
is pushed.
"""

import hashlib
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from deploy.packages.build import version
from deploy.packages.parts import PROJECT

CHANGELOG = PROJECT / "CHANGELOG.md"
CHECKS = ("check", "test-packages", "upgrades")  # targets of make
SUMS = "SHA256SUMS"


class NotReadyError(Exception):
    """The release is not possible yet; the text says what is missing."""


def dated(changelog: str, released: str, day: str) -> str:
    """The changelog with the day (2026-11-28) for `(unreleased)` in the heading of its newest version, `released`.

    Raises NotReadyError if the newest section is for another version.
    """
    newest = re.search(r"^## .*$", changelog, re.MULTILINE)
    if newest is None or newest[0] != f"## {released} (unreleased)":
        found = newest[0] if newest else "no section"
        raise NotReadyError(f"CHANGELOG.md begins with {found!r}, not with '## {released} (unreleased)'")
    return changelog.replace(newest[0], f"## {released} ({day})", 1)


def section(changelog: str, released: str) -> str:
    """The changelog's section on a version, without the heading. Raises NotReadyError if it is missing or empty."""
    found = re.search(rf"^## {re.escape(released)} \([^\n]*\)\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise NotReadyError(f"CHANGELOG.md has no entries for {released}")
    return found[1].strip()


def sums(folder: Path) -> str:
    """The checksums in sha256sum's format."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)


def release() -> None:
    """Raises NotReadyError, before anything is changed, or CalledProcessError if a check or a build fails."""
    released = version()
    tag, dist = f"v{released}", PROJECT / "dist" / released
    if _git("status", "--porcelain"):
        raise NotReadyError("the checkout has changes that are not committed")
    _git("var", "GIT_COMMITTER_IDENT")  # fails if git cannot commit
    if os.geteuid() != 0:
        raise NotReadyError("run this as root: the packages are tried in chroots")
    if _git("tag", "--list", tag):
        raise NotReadyError(f"{tag} exists: set the next version in pyproject.toml")
    if dist.exists():
        raise NotReadyError(f"{dist} exists")
    changelog = dated(CHANGELOG.read_text(), released, f"{datetime.now(UTC):%Y-%m-%d}")
    notes = section(changelog, released)
    subprocess.run(["make", *CHECKS], cwd=PROJECT, check=True)
    CHANGELOG.write_text(changelog)
    _git("commit", "--quiet", "--message", f"release: {released}", str(CHANGELOG))
    subprocess.run(["make", "deb", f"DIST={dist}"], cwd=PROJECT, check=True)  # built from the tagged commit
    (dist / SUMS).write_text(sums(dist))
    _git("tag", "--annotate", "--cleanup=verbatim", "--message", f"{released}\n\n{notes}\n", tag)
    print(f"{tag} is tagged, its packages are in {dist}; next: git push origin HEAD {tag}")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def main() -> None:
    try:
        release()
    except NotReadyError as error:
        _end(str(error))
    except subprocess.CalledProcessError as error:
        _end(f"{' '.join(error.cmd)} failed; nothing is tagged")


def _end(reason: str) -> NoReturn:
    print(f"release: {reason}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
