"""The pages for providers and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "docs" / "operations"
PAGES = ("README", "architecture", "install", "configure", "operate", "scale", "recover", "secure", "settings")
FILES = {name: FOLDER / f"{name}.md" for name in PAGES} | {
    "upgrade": PROJECT / "deploy" / "README.md",
    "project": PROJECT / "README.md",
    **{name: PROJECT / "docs" / f"{name}.md" for name in ("runbook", "dashboard", "servers", "cli", "versions")},
}
_FENCE = re.compile(r"^```([a-z]+)(?: ([a-z0-9 -]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_ANY_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """`kind`: the word after the language, which for `sh` is where the block is run. `section`: the heading above."""

    page: str
    section: str
    line: int
    language: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{FILES[self.page].relative_to(PROJECT)}:{self.line}"


def text_of(page: str) -> str:
    return FILES[page].read_text()


def without_blocks(page: str) -> str:
    return _ANY_FENCE.sub("", text_of(page))


def blocks(page: str) -> list[Block]:
    text = text_of(page)
    return [
        Block(
            page=page,
            section=_HEADING.findall(_ANY_FENCE.sub("", text[: found.start()]))[-1],
            line=text.count("\n", 0, found.start()) + 1,
            language=found[1],
            kind=found[2] or "",
            text=found[3],
        )
        for found in _FENCE.finditer(text)
    ]
