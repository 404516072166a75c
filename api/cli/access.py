"""The URL and the token, from the global options and the environment."""

import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from api.cli.exits import CliError, Exit

PROGRAM = "vps-snapshots"
TOKEN_VARIABLE = "VPS_SNAPSHOTS_TOKEN"  # noqa: S105 - the name, not the secret

_TOKEN = re.compile(r"[\x21-\x7e]{1,500}")  # visible ASCII: it goes into a header
DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a context has."""

    url: str
    account: int | None
    token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The global options. `account`: the account that a service token acts for. `profile`: reads the context; what is
    given by options or variables takes precedence."""

    url: str | None
    token_file: Path | None
    account: int | None
    timeout_seconds: float
    profile: Callable[[], Profile | None] = lambda: None

    def token(self) -> str:
        """The token of the file or the variable; '' if neither is given. Raises CliError."""
        return os.environ.get(TOKEN_VARIABLE, "") if self.token_file is None else _read(self.token_file)


@dataclass(frozen=True, kw_only=True)
class Access:
    url: str
    token: str = field(repr=False)
    account: int | None
    timeout_seconds: float  # limit for one call


def access(options: Options) -> Access:
    """Raises CliError."""
    given = options.token()
    known = options.profile() if not given.strip() or options.url is None else None
    if known is not None and options.url is not None and not given.strip() and options.url.rstrip("/") != known.url:
        known = None  # a token is for its own service only
    where = TOKEN_VARIABLE if options.token_file is None else str(options.token_file)
    token = given if given.strip() or known is None else known.token
    if not token.strip():
        raise CliError(
            Exit.NOT_ALLOWED,
            f"{where} contains no token. Set {TOKEN_VARIABLE}, use --token-file, or create a context.",
        )
    return Access(
        url=checked_url(options.url or (known.url if known else DEFAULT_URL)),
        token=checked_token(token, where=where),
        account=options.account or (known.account if known and not given.strip() else None),
        timeout_seconds=options.timeout_seconds,
    )


def checked_url(given: str) -> str:
    """Raises CliError."""
    url = given.rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in url or "?" in url or "#" in url:
        raise CliError(Exit.USAGE, "--url must look like https://snapshots.example.com, without a user name.")
    return url


def checked_token(text: str, *, where: str = "It") -> str:
    """Raises CliError."""
    if not _TOKEN.fullmatch(text.strip()):
        raise CliError(Exit.NOT_ALLOWED, f"{where} does not contain a valid token.")
    return text.strip()


def _read(file: Path) -> str:
    try:
        if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) and file.is_file():  # a pipe is nobody else's
            sys.stderr.write(f"vps-snapshots: Other users can read {file}. Use: chmod 600 {file}\n")
        return file.read_text()
    except OSError as error:
        raise CliError(Exit.NOT_ALLOWED, f"Cannot read {file}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise CliError(Exit.NOT_ALLOWED, f"{file} does not contain a valid token.") from None
