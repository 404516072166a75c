"""docs/runbook.md as a page. The package includes it; errors link to its sections."""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from markupsafe import Markup

from api.dashboard.context import Context, Section
from api.dashboard.session import OperatorRequest

if TYPE_CHECKING:
    from markdown_it.token import Token

RUNBOOK = "/ops/runbook/"
_IN_CHECKOUT = Path(__file__).parents[2] / "docs" / "runbook.md"


async def show(context: Context, request: OperatorRequest) -> web.Response:
    return context.rendering.page(request.http, "runbook.html", text=_html())


@cache
def _html() -> Markup:
    from markdown_it import MarkdownIt  # noqa: PLC0415 - few front ends ever show the page

    packaged = files("api.dashboard") / "runbook.md"
    source = packaged.read_text() if packaged.is_file() else _IN_CHECKOUT.read_text()
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(source)
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", _anchor(tokens[place + 1].content))
        if token.children:
            token.children = _without_relative_links(token.children)
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704 - our own file, without HTML


def _anchor(title: str) -> str:
    """The ID that GitHub generates for a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _without_relative_links(tokens: "list[Token]") -> "list[Token]":
    """Turn links to other files of the checkout into text: those files are not served."""
    kept, dropped = [], False
    for token in tokens:
        if token.type == "link_open" and not str(token.attrGet("href")).startswith(("#", "https://")):
            dropped = True
        elif token.type == "link_close" and dropped:
            dropped = False
        else:
            kept.append(token)
    return kept


SECTION = Section(pages={RUNBOOK: show})
