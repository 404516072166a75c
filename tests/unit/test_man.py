"""The manual pages are generated from the commands' own help."""

import typer

from api.cli.main import app
from api.cli.man import pages
from tests.integration.cli import commands

PAGES = pages()


def test_each_command_has_a_page_with_its_options() -> None:
    found = commands(typer.main.get_command(app))
    for words, command in found.items():
        page = PAGES[f"{'-'.join(('vps-snapshots', *words))}.1"]
        for option in (option for param in command.params for option in param.opts if option.startswith("--")):
            assert option.replace("-", "\\-") in page, (words, option)
    assert "130" in PAGES["vps-snapshots.1"]


def test_no_text_is_read_as_an_order() -> None:
    orders = {line.split()[0] for page in PAGES.values() for line in page.splitlines() if line.startswith((".", "'"))}
    assert orders == {".TH", ".SH", ".TP", ".B", ".BR", ".PP"}
