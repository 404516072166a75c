"""The program of the front end."""

from worker.program import lean  # noqa: F401, I001 - before all others

import typer

from api import audit_command, backup_command, token_command
from api.options import Config, fail, settings_of
from api.settings import ApiSettings
from worker.program.command_line import program
from worker.program.configuration import help_text

app = program(add_completion=False, no_args_is_help=False)  # without a command it serves
app.add_typer(token_command.app, name="token")
app.add_typer(audit_command.app, name="audit")
app.command()(backup_command.backup)
app.command()(backup_command.restore)


@app.callback(invoke_without_command=True)
def start(context: typer.Context, config: Config = None) -> None:
    """The HTTP front end of the snapshot service, and its access tokens. Without a command: serve.

    Settings come from the environment and from a TOML file (--config, or VPS_SNAPSHOTS_CONFIG); see serve --help.
    """
    context.obj = config
    if context.invoked_subcommand is None:
        serve(context, config)


@app.command(epilog=help_text(ApiSettings))
def serve(context: typer.Context, config: Config = None) -> None:
    """Answer requests until SIGTERM or SIGINT."""
    from api import serving  # noqa: PLC0415 - importing it takes as long as all of another command

    settings = settings_of(ApiSettings, context, config)
    try:
        serving.run(settings)
    except OSError as error:
        fail(f"can't listen on {serving.configured_address(settings)}: {error.strerror or error}")


def main() -> None:
    app()
