"""The manual pages are generated from the commands' own help."""

import tomllib
from importlib import import_module

import pytest
import typer

from deploy.man import MODULES, pages
from deploy.packages.parts import PROJECT
from tests.integration.cli import commands
from worker.settings import WorkerSettings

PAGES = {program: pages(program) for program in MODULES}
each_program = pytest.mark.parametrize("program", MODULES)


def test_each_program_has_its_pages() -> None:
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {program: f"{module}:main" for program, module in MODULES.items()} == scripts


@each_program
def test_each_command_has_a_page_with_its_options(program: str) -> None:
    found = commands(typer.main.get_command(import_module(MODULES[program]).app))
    for words, command in found.items():
        page = PAGES[program][f"{'-'.join((program, *words))}.1"]
        for option in (option for param in command.params for option in param.opts if option.startswith("--")):
            assert option.replace("-", "\\-") in page, (words, option)


@each_program
def test_no_text_is_read_as_an_order(program: str) -> None:
    lines = [line for page in PAGES[program].values() for line in page.splitlines()]
    orders = {line.split()[0] for line in lines if line.startswith((".", "'"))}
    assert orders == {".TH", ".SH", ".TP", ".B", ".BR", ".PP"}


def test_a_service_tells_its_settings_which_are_those_of_no_machine() -> None:
    page = PAGES["vps-snapshots-worker"]["vps-snapshots-worker-run.1"]
    assert {name for name in WorkerSettings.model_fields if f"\n{name}" not in page} == set()
    assert "node: the name of this node, unique in the cell; default the machine's" in page


def test_the_client_tells_its_exit_codes() -> None:
    assert "130" in PAGES["vps-snapshots"]["vps-snapshots.1"]
