"""The runbook as a page: docs/runbook.md, which the package carries. The links of errors lead here."""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from aiohttp import web
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from api.dashboard.desk import Desk, Pages
from api.dashboard.session import Visit

RUNBOOK = "/ops/runbook/"
_IN_CHECKOUT = Path(__file__).parents[2] / "docs" / "runbook.md"


async def show(desk: Desk, visit: Visit) -> web.Response:
    return desk.rendering.page(visit.request, "runbook.html", text=_html())


@cache
def _html() -> Markup:
    carried = files("api.dashboard") / "runbook.md"
    source = carried.read_text() if carried.is_file() else _IN_CHECKOUT.read_text()
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(source)
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", _anchor(tokens[place + 1].content))
        if token.children:
            token.children = _without_far_links(token.children)
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704 - our own file, without HTML


def _anchor(title: str) -> str:
    """As the places that show Markdown make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _without_far_links(tokens: list[Token]) -> list[Token]:
    """Links within the page stay; what is beside the file in the checkout is not here."""
    kept, dropped = [], False
    for token in tokens:
        if token.type == "link_open" and not str(token.attrGet("href")).startswith(("#", "https://")):
            dropped = True
        elif token.type == "link_close" and dropped:
            dropped = False
        else:
            kept.append(token)
    return kept


PAGES: Pages = {RUNBOOK: show}
