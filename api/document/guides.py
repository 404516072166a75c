"""The guides, docs/api.md and docs/api/, as HTML. The package includes them."""

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from api.document.samples import LANGUAGES

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

FIRST = "api"  # docs/api.md; the others are in docs/api/
_IN_CHECKOUT = Path(__file__).parents[2] / "docs"
_SERVED = re.compile(r"(?:api/)?([a-z]+)\.md(#.*)?")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and the content below it. `text` is for the search."""

    id: str
    title: str
    level: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Guide:
    title: str
    html: Markup  # without the title
    sections: tuple[Section, ...]
    codes: tuple[tuple[str, str], ...]  # error codes with a table row, and the IDs of the rows


def guide(name: str, docs_path: str) -> Guide:
    """`docs_path`: where the pages are served."""
    from markdown_it import MarkdownIt  # noqa: PLC0415 - many front ends never show a page

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    title, _, text = _source(name).removeprefix("# ").partition("\n")
    tokens = markdown.parse(text)
    sections = _sections(tokens)
    codes = _name_rows(tokens)
    for token in tokens:
        token.children = token.children and _linked(token.children, docs_path)
    html = "".join(_pieces(markdown, tokens, name))
    return Guide(title=title, html=Markup(html), sections=sections, codes=codes)  # noqa: S704 - our own files


def _source(name: str) -> str:
    path = f"{name}.md" if name == FIRST else f"api/{name}.md"
    packaged = files("api.document") / "guides" / path
    return packaged.read_text() if packaged.is_file() else (_IN_CHECKOUT / path).read_text()


def anchor(title: str) -> str:
    """The ID that GitHub generates for a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _sections(tokens: "list[Token]") -> tuple[Section, ...]:
    """Split a guide into sections, and give its headings IDs."""
    starts = [place for place, token in enumerate(tokens) if token.type == "heading_open"]
    found = []
    for place, end in zip(starts, [*starts, len(tokens)][1:], strict=True):
        title = tokens[place + 1].content.replace("`", "")
        tokens[place].attrSet("id", anchor(title))
        text = " ".join(token.content for token in tokens[place + 2 : end] if token.type == "inline")
        found.append(Section(id=anchor(title), title=title, level=int(tokens[place].tag[1:]), text=text))
    return tuple(found)


def _name_rows(tokens: "list[Token]") -> tuple[tuple[str, str], ...]:
    """Gives each row of a table of error codes its ID: the code, or `job-` and the code for an error of a job."""
    found, prefix = [], None
    for place, token in enumerate(tokens):
        if token.type == "th_open" and tokens[place - 1].type == "tr_open":
            head = tokens[place + 1].content
            prefix = {"`code`": "", "`code` of the job": "job-"}.get(head)
        elif token.type == "tr_open" and prefix is not None and tokens[place + 1].type == "td_open":
            codes = re.findall(r"`([a-z_]+)`", tokens[place + 2].content)
            token.attrSet("id", prefix + codes[0])
            found += [(code, prefix + codes[0]) for code in codes]
    return tuple(found)


def _linked(tokens: "list[Token]", docs_path: str) -> "list[Token]":
    """Point links between guides to their pages, and remove links to files that are not served."""
    kept, dropped = [], False
    for token in tokens:
        if token.type == "link_open":
            target = str(token.attrGet("href"))
            served = _SERVED.fullmatch(target)
            if served:
                token.attrSet("href", f"{docs_path}/{served[1]}/{served[2] or ''}")
            elif not target.startswith(("#", "https://")):
                dropped = True
                continue
        elif token.type == "link_close" and dropped:
            dropped = False
            continue
        kept.append(token)
    return kept


def _pieces(markdown: "MarkdownIt", tokens: "list[Token]", name: str) -> list[str]:
    """The HTML: samples in several languages become one block, and tables scroll on a narrow screen."""
    pieces: list[str] = []
    fences: list[Token] = []

    def flush() -> None:
        if fences:
            pieces.append(code({fence.info: fence.content for fence in fences}, f"{name}-{len(pieces)}"))
            fences.clear()

    rest: list[Token] = []
    for token in [*tokens, None]:
        is_fence = token is not None and token.type == "fence"
        if not is_fence or (fences and token is not None and token.info in {fence.info for fence in fences}):
            flush()
        if token is not None and is_fence:
            pieces.append(markdown.renderer.render(rest, markdown.options, {}))
            rest = []
            fences.append(token)
        elif token is not None:
            rest.append(token)
    pieces.append(markdown.renderer.render(rest, markdown.options, {}))
    return [_scrolling(piece) for piece in pieces]


def _scrolling(html: str) -> str:
    """What may be wider than the screen can be scrolled by keyboard."""
    table = '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'
    html = html.replace("<table>", table).replace("</table>", "</table></div>")
    return html.replace("<pre>", '<pre tabindex="0">')


def code(samples: dict[str, str], name: str) -> Markup:
    """Samples by language, shown one at a time; a single sample has no language selection."""
    blocks = Markup("").join(
        Markup('<pre tabindex="0" data-language="{}"><code>{}</code></pre>').format(language, text)
        for language, text in samples.items()
    )
    if len(samples) == 1:
        return blocks
    choices = Markup("").join(
        Markup('<label><input type="radio" name="{}" value="{}"{}>{}</label>').format(
            name, language, Markup(" checked") if place == 0 else "", LANGUAGES[language]
        )
        for place, language in enumerate(samples)
    )
    legend = Markup('<fieldset><legend class="unseen">Language</legend>{}</fieldset>').format(choices)
    return Markup('<div class="samples">{}{}</div>').format(legend, blocks)


def prose(text: str) -> Markup:
    """HTML of a text with `code` in backquotes."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    )
