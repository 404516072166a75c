"""The runbook and the guides for operators as pages. They need neither a session nor Redis, because an operator needs
them most when Redis is down; they contain nothing secret. The package includes them."""

import posixpath
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from markupsafe import Markup

from api.dashboard.context import Context

if TYPE_CHECKING:
    from markdown_it.token import Token

RUNBOOK = "/ops/runbook/"
GUIDES: Mapping[str, str] = {  # the file below docs/, by the page's path
    RUNBOOK: "runbook.md",
    f"{RUNBOOK}operations/": "operations/README.md",
    **{
        f"{RUNBOOK}{name}/": f"operations/{name}.md"
        for name in ("architecture", "install", "configure", "operate", "scale", "recover", "secure", "settings")
    },
    f"{RUNBOOK}cli/": "cli.md",
}
_PATHS = {file: path for path, file in GUIDES.items()} | {"api.md": "/docs"}
_OF_API = re.compile(r"api/([a-z]+)\.md")
_IN_CHECKOUT = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True, kw_only=True)
class Guide:
    title: str
    html: Markup


async def show(file: str, context: Context, request: web.Request) -> web.Response:
    return context.rendering.page(request, "runbook.html", guide=_guide(file))


@cache
def _guide(file: str) -> Guide:
    from markdown_it import MarkdownIt  # noqa: PLC0415 - few front ends ever show the page

    packaged = files("api.dashboard") / "guides" / file
    source = packaged.read_text() if packaged.is_file() else (_IN_CHECKOUT / file).read_text()
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(source)
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", _anchor(tokens[place + 1].content))
        if token.children:
            token.children = _linked(token.children, file)
    html = markdown.renderer.render(tokens, markdown.options, {})
    html = html.replace("<pre>", '<pre tabindex="0">')  # so that the keyboard can scroll it
    html = html.replace("<th></th>", "<td></td>")  # an empty heading is announced as one
    return Guide(title=tokens[1].content, html=Markup(html))  # noqa: S704 - our own file, without HTML


def _anchor(title: str) -> str:
    """The ID that GitHub generates for a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _linked(tokens: "list[Token]", file: str) -> "list[Token]":
    """Point links to the pages of the files, and turn links to files that are not served into text."""
    kept, dropped = [], False
    for token in tokens:
        if token.type == "link_open":
            target = _target(str(token.attrGet("href")), file)
            if target is None:
                dropped = True
                continue
            token.attrSet("href", target)
        elif token.type == "link_close" and dropped:
            dropped = False
            continue
        kept.append(token)
    return kept


def _target(link: str, file: str) -> str | None:
    """The URL for a link in `file`; None if its target is not served."""
    if link.startswith(("#", "https://")):
        return link
    to, mark, anchor = link.partition("#")
    to = posixpath.normpath(posixpath.join(posixpath.dirname(file), to))
    of_api = _OF_API.fullmatch(to)
    path = f"/docs/{of_api[1]}/" if of_api else _PATHS.get(to)
    return f"{path}{mark}{anchor}" if path else None


OPEN_PAGES: Mapping[str, Callable[[Context, web.Request], Awaitable[web.Response]]] = {
    path: partial(show, file) for path, file in GUIDES.items()
}
