"""What the commands of the front end share: `--config`, and how they fail."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from api.settings import ApiSettings
from worker.program.configuration import ConfigurationError, load

Config = Annotated[Path | None, typer.Option(help="A TOML file with the settings; environment variables override it.")]


def settings_of(context: typer.Context, config: Path | None) -> ApiSettings:
    try:
        return load(ApiSettings, config or context.obj)
    except ConfigurationError as error:
        fail(str(error))


def fail(why: str, *, code: int = 2) -> NoReturn:
    typer.echo(f"vps-snapshots-api: {why}", err=True)
    sys.exit(code)
