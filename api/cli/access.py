"""The URL and the token, from the global options and the environment."""

import os
import re
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from api.cli.exits import CliError, Exit

TOKEN_VARIABLE = "VPS_SNAPSHOTS_TOKEN"  # noqa: S105 - the name, not the secret

_TOKEN = re.compile(r"[\x21-\x7e]{1,500}")  # visible ASCII: it goes into a header


@dataclass(frozen=True, kw_only=True)
class Options:
    """The global options. `account`: the account that a service token acts for."""

    url: str
    token_file: Path | None
    account: int | None
    timeout_seconds: float


@dataclass(frozen=True, kw_only=True)
class Access:
    url: str
    token: str = field(repr=False)
    account: int | None
    timeout_seconds: float  # of one call


def access(options: Options) -> Access:
    """Raises CliError."""
    url = options.url.rstrip("/")
    return Access(
        url=_checked(url), token=_token(options), account=options.account, timeout_seconds=options.timeout_seconds
    )


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in url or "?" in url or "#" in url:
        raise CliError(Exit.USAGE, "--url must look like https://snapshots.example.com, without a user name.")
    return url


def _token(options: Options) -> str:
    where = TOKEN_VARIABLE if options.token_file is None else str(options.token_file)
    token = os.environ.get(TOKEN_VARIABLE, "") if options.token_file is None else _read(options.token_file)
    if not token.strip():
        raise CliError(Exit.NOT_ALLOWED, f"{where} contains no token. Set {TOKEN_VARIABLE} or use --token-file.")
    if not _TOKEN.fullmatch(token.strip()):
        raise CliError(Exit.NOT_ALLOWED, f"{where} does not contain a valid token.")
    return token.strip()


def _read(file: Path) -> str:
    try:
        if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) and file.is_file():  # a pipe is nobody else's
            sys.stderr.write(f"vps-snapshots: Other users can read {file}. Use: chmod 600 {file}\n")
        return file.read_text()
    except OSError as error:
        raise CliError(Exit.NOT_ALLOWED, f"Cannot read {file}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise CliError(Exit.NOT_ALLOWED, f"{file} does not contain a valid token.") from None
