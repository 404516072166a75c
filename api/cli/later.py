"""Imports that wait: a command's module until it is called, asyncio until a command uses it.

With all of them, `--help` would take twice as long.
"""

import sys
from importlib import import_module
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand


class Later(TyperCommand):
    """A command, or a group of commands, whose module is imported when it is called.

    `where`: MODULE:NAME of its function, or of the group's Typer. `panel`: the title above it in the list of commands.
    `text`: its help, which is here instead of in its module.
    """

    def __init__(self, name: str, where: str, panel: str, text: str) -> None:
        super().__init__(name=name, help=text, rich_help_panel=panel, rich_markup_mode=None)
        self.module, _, self._attribute = where.partition(":")

    def load(self) -> Any:
        """The command itself."""
        found = getattr(import_module(self.module), self._attribute)
        only = typer.Typer(rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            only.add_typer(found, name=self.name, help=self.help)
        else:
            only.command(self.name, help=self.help)(found)
        (command,) = typer.main.get_group(only).commands.values()
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command itself, which runs in it."""
        command = self.load()
        takes_arguments = any(param.param_type_name == "argument" for param in command.params)
        if args and not args[0].startswith("-") and not takes_arguments and not hasattr(command, "commands"):
            # otherwise `jobs show --help` would print the help of `jobs`
            parent.fail(f"`{self.name}` takes no argument.{_suggestion(str(self.name), args[0], parent)}")
        return command.make_context(info_name, args, parent, **extra)


def _suggestion(name: str, word: str, parent: Any) -> str:
    """`job show` for `jobs show`."""
    singular = name.removesuffix("s")
    group = parent.command.commands.get(singular)
    known = getattr(group.load(), "commands", {}) if isinstance(group, Later) else {}
    return f" Did you mean `{singular} {word}`?" if word in known else ""


def _later(name: str) -> ModuleType:
    """Import lazily, as in "Implementing lazy imports" in Python's documentation of importlib."""
    spec = find_spec(name)
    if name in sys.modules or spec is None or spec.loader is None:
        return sys.modules[name]
    spec.loader = LazyLoader(spec.loader)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    import asyncio as asyncio  # noqa: PLC0414 - exported
else:
    asyncio = _later("asyncio")
