"""The templates of pages."""

from typing import NoReturn

import pytest

from api.dashboard import rendering
from api.document import pages
from api.http import templates


@pytest.mark.parametrize("package", ["api.dashboard", "api.document"])
def test_a_page_is_shown_although_an_upgrade_has_replaced_the_files(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = (
        rendering._templates.__wrapped__() if package == "api.dashboard" else templates.environment(pages._TEMPLATES)
    )
    assert {*environment.list_templates()} == {*templates.read(package)} != set()

    def refuse(*_words: object, **_named: object) -> NoReturn:
        raise AssertionError("a file is read")

    monkeypatch.setattr("builtins.open", refuse)
    for name in environment.list_templates():
        environment.get_template(name)
