"""Contexts: the URL, the account and the token of a service under a name, in a file that only its owner can read.

{"current": "production", "contexts": {"production": {"url": ..., "account": 77 or null, "token": ...}}}
"""

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from api.cli.access import Profile
from api.cli.exits import CliError, Exit
from api.cli.files import private

FILE_VARIABLE = "VPS_SNAPSHOTS_CONFIG"


def file() -> Path:
    """The file of the contexts: ~/.config/vps-snapshots/contexts.json, according to the XDG specification."""
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "vps-snapshots" / "contexts.json"


def profile(name: str | None) -> Profile | None:
    """The context of that name, or the current one; None if there is none. Raises CliError."""
    known = read()
    chosen = name or known["current"]
    if chosen is None:
        return None
    found = known["contexts"].get(chosen)
    if found is None:
        raise CliError(Exit.USAGE, f"There is no context {chosen}. See: vps-snapshots context list")
    return Profile(url=str(found["url"]), account=found["account"], token=str(found["token"]))


def read() -> dict[str, Any]:
    path = file()
    try:
        text = path.read_text()
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            sys.stderr.write(f"vps-snapshots: Other users can read {path}. Use: chmod 600 {path}\n")
        found = json.loads(text)
        return {"current": found["current"], "contexts": dict(found["contexts"])}
    except FileNotFoundError:
        return {"current": None, "contexts": {}}
    except OSError as error:
        raise CliError(Exit.USAGE, f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, LookupError, TypeError) as error:
        raise CliError(Exit.USAGE, f"{path} is not a contexts file.") from error


def write(known: dict[str, Any]) -> None:
    path = file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(Exit.USAGE, f"Cannot write {path}: {error.strerror}.") from error
    with private(path) as new:
        new.write_text(json.dumps(known, indent=2) + "\n")
