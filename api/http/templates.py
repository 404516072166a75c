"""Templates of pages."""

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def read(package: str) -> Mapping[str, str]:
    """The templates of the package, by name. Read them when the program starts: after an upgrade of its own package,
    the files are those of another release."""
    return {file.name: file.read_text() for file in (files(package) / "templates").iterdir() if file.is_file()}


def environment(templates: Mapping[str, str]) -> "Environment":
    from jinja2 import DictLoader, Environment, StrictUndefined  # noqa: PLC0415 - many front ends never show a page

    return Environment(
        loader=DictLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
