"""`python -m deploy.packages dist --debian 12 --debian 13`: the wheel and the packages for these releases, in `dist`.

The same commit gives the same bytes.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from deploy.packages.build import MACHINES, architecture, bill_of_wheel, debs, wheel
from deploy.packages.parts import PROJECT, RELEASES, Release

REVISION = re.compile(r"[A-Za-z0-9.+~]+")  # what dpkg accepts

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def build(
    dist: Annotated[Path, typer.Argument(help="Output folder.")],
    debian: Annotated[list[str] | None, typer.Option(help="Debian release; can be repeated. Default: all.")] = None,
    revision: Annotated[str, typer.Option(help="Revision of the packages of one version.")] = "1",
) -> None:
    """Build the wheel, and the Debian packages."""
    releases = _supported(debian or [*RELEASES], architecture=architecture(), revision=revision)
    os.umask(0o022)
    committed = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    os.environ.setdefault("SOURCE_DATE_EPOCH", committed.stdout.strip())
    dist.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vps-snapshots-") as work:
        made = wheel(Path(work))
        shutil.copy(made, dist)
        (dist / made.with_suffix(".sbom.json").name).write_text(bill_of_wheel())

        def build_for(release: Release) -> None:
            folder = Path(work) / release.number / "vps-snapshots"
            folder.mkdir(parents=True)
            debs(release, wheel=made, revision=revision, folder=folder, dist=dist)

        with ThreadPoolExecutor() as pool:  # side by side: most of the time is xz, in a program of its own
            list(pool.map(build_for, releases))
    for file in sorted(dist.iterdir()):
        typer.echo(f"{file.stat().st_size:>12,} {file}")


def _supported(numbers: Sequence[str], *, architecture: str, revision: str) -> list[Release]:
    """The releases. Raises BadParameter for what no package is built for, before minutes are spent."""
    for what, given, known in (("Debian", numbers, RELEASES), ("architecture", [architecture], MACHINES)):
        if unknown := sorted(set(given) - set(known)):
            raise typer.BadParameter(f"{what} {', '.join(unknown)}: packages are built for {' and '.join(known)}")
    if not REVISION.fullmatch(revision):
        raise typer.BadParameter(f"revision {revision!r}: it may have letters, digits, and . + ~")
    return [RELEASES[number] for number in dict.fromkeys(numbers)]


if __name__ == "__main__":
    app()
