"""The operators' pages and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "docs" / "operations"
PAGES = ("README", "architecture", "install", "configure", "operate", "scale", "recover", "secure", "settings")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_FENCE = re.compile(r"^```([a-z]+)(?: ([a-z0-9 -]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
        return f"{self.page}.md:{self.line}"


def text_of(page: str) -> str:
    return (FOLDER / f"{page}.md").read_text()


def blocks(page: str) -> list[Block]:
    text = text_of(page)
    prose = _FENCE.sub(lambda found: " " * len(found[0]), text)  # a comment in a block is no heading
    return [
        Block(
            page=page,
            section=_HEADING.findall(prose, 0, found.start())[-1],
            line=text.count("\n", 0, found.start()) + 1,
            language=found[1],
            kind=found[2] or "",
            text=found[3],
        )
        for found in _FENCE.finditer(text)
    ]
