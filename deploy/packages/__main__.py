"""`python -m deploy.packages dist --debian 12 --debian 13`: the wheel and the packages for these releases, in `dist`.

The same commit gives the same bytes.
"""

import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from deploy.packages.build import bill_of_wheel, debs, wheel
from deploy.packages.parts import PROJECT, RELEASES

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def build(
    dist: Annotated[Path, typer.Argument(help="Output folder.")],
    debian: Annotated[list[str] | None, typer.Option(help="Debian release; can be repeated. Default: all.")] = None,
    revision: Annotated[str, typer.Option(help="Revision of the packages of one version.")] = "1",
) -> None:
    """Build the wheel, and the Debian packages."""
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

        def build_for(number: str) -> None:
            folder = Path(work) / number / "vps-snapshots"
            folder.mkdir(parents=True)
            debs(RELEASES[number], wheel=made, revision=revision, folder=folder, dist=dist)

        with ThreadPoolExecutor() as pool:  # side by side: most of the time is xz, in a program of its own
            list(pool.map(build_for, debian or RELEASES))
    for file in sorted(dist.iterdir()):
        typer.echo(f"{file.stat().st_size:>12,} {file}")


if __name__ == "__main__":
    app()
