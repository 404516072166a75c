"""Where the service is and who calls it: from the global options and the environment."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from api.cli.exits import Exit, Trouble

TOKEN_VARIABLE = "VPS_SNAPSHOTS_TOKEN"  # noqa: S105 - the name, not the secret

_TOKEN = re.compile(r"[\x21-\x7e]{1,500}")  # nothing that could end or break a header


@dataclass(frozen=True, kw_only=True)
class Options:
    """The global options, as given. `account`: for which a service token acts."""

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
    """Raises Trouble where the options lead nowhere."""
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
        raise Trouble(Exit.USAGE, "--url is to be like https://snapshots.example.com, with no user in it.")
    return url


def _token(options: Options) -> str:
    where = TOKEN_VARIABLE if options.token_file is None else str(options.token_file)
    token = os.environ.get(TOKEN_VARIABLE, "") if options.token_file is None else _read(options.token_file)
    if not token.strip():
        raise Trouble(Exit.NOT_ALLOWED, f"{where} has no token: set {TOKEN_VARIABLE}, or give --token-file.")
    if not _TOKEN.fullmatch(token.strip()):
        raise Trouble(Exit.NOT_ALLOWED, f"What {where} has is no token.")
    return token.strip()


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise Trouble(Exit.NOT_ALLOWED, f"{file} has no token: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise Trouble(Exit.NOT_ALLOWED, f"What {file} has is no token.") from None
