"""Settings from the environment and a TOML file, validated at start; errors name the key."""

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AnyUrl, BaseModel, FilePath, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

ENV_PREFIX = "VPS_SNAPSHOTS_"
CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"


def _is_readable(file: Path) -> Path:
    try:
        file.open("rb").close()
    except OSError as error:
        raise ValueError(f"the user of this program can't read {file}: {error.strerror}") from error
    return file


# FilePath only calls stat. An unreadable certificate would then fail each connection, instead of the start.
ReadableFile = Annotated[FilePath, AfterValidator(_is_readable)]


class ConfigurationError(Exception):
    """The settings are invalid; the text names each key and its problem."""


class FileSettings(BaseSettings):
    """Base of a program's settings. The variable VPS_SNAPSHOTS_<KEY> (`__` for a dot) overrides the key in the file."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


Settings = TypeVar("Settings", bound=FileSettings)


def load(kind: type[Settings], file: Path | None) -> Settings:
    """Settings from the environment and the file (default: VPS_SNAPSHOTS_CONFIG). Raises ConfigurationError."""
    if file is None and os.environ.get(CONFIG_VARIABLE):
        file = Path(os.environ[CONFIG_VARIABLE])
    given = _read(file) if file else {}
    try:
        settings = kind(**given)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc'])) or 'all'}: {_said(problem['msg'])}" for problem in error.errors()
        ]
        where = f"{file} and the environment ({ENV_PREFIX}*)" if file else f"the environment ({ENV_PREFIX}*)"
        raise ConfigurationError("\n".join([f"settings from {where}:", *lines])) from error
    except SettingsError as error:  # a variable for a table or list that is not JSON
        raise ConfigurationError(f"settings from the environment ({ENV_PREFIX}*): {error}") from error
    if file:
        _refuse_readable_secrets(file, [*_secrets(settings, given)])
    return settings


def _refuse_readable_secrets(file: Path, secrets: list[str]) -> None:
    mode = stat.S_IMODE(file.stat().st_mode)
    if secrets and mode & stat.S_IROTH:
        raise ConfigurationError(f"{file}: every user can read {', '.join(secrets)}: chmod o-r {file}")


def _secrets(settings: BaseModel, given: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The keys of the secrets that are set in the file."""
    for name, value in settings:
        is_secret = isinstance(value, SecretStr) or (isinstance(value, AnyUrl) and value.password is not None)
        if is_secret and name in given:
            yield f"{above}{name}"
        elif isinstance(value, BaseModel) and isinstance(given.get(name), Mapping):
            yield from _secrets(value, given[name], f"{above}{name}.")


def _said(text: str) -> str:
    return text.removeprefix("Value error, ")


def help_text(kind: type[BaseModel]) -> str:
    """A list of all settings, for the end of a program's --help."""
    described = [*_described(kind)]
    key = next((name for name, _, _ in (line.partition(":") for line in described) if "." in name), "log_level")
    variable = f"{ENV_PREFIX}{key.upper().replace('.', '__')}"
    how = f"Settings, as keys of the file; as a variable {key} is {variable}. Times are in seconds."
    return "\n\n".join([how, *described])


def _described(kind: type[BaseModel], above: str = "") -> Iterator[str]:
    """One line per setting: key, meaning, default."""
    for name, key in kind.model_fields.items():
        if isinstance(key.annotation, type) and issubclass(key.annotation, BaseModel):
            yield from _described(key.annotation, f"{above}{name}.")
        else:
            # not its value: manual pages are made on another machine
            default = "the machine's" if key.default_factory is not None else key.default
            unset = default is None or default == []
            meaning = "; ".join(filter(None, [key.description, "" if unset else f"default {default}"]))
            yield f"{above}{name}: {meaning}" if meaning else f"{above}{name}"


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file} is not TOML: {error}") from error
