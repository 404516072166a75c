"""The part of docs/benchmarks.md that `make bench` writes, between two marks: a section for each benchmark."""

import re
from collections.abc import Sequence

BEGIN, END = "<!-- written by make bench -->", "<!-- end of what make bench has written -->"
_HEADING = re.compile(r"^### (.+), measured\n", re.MULTILINE)


def with_section(page: str, *, about: str, title: str, text: str, titles: Sequence[str]) -> str:
    """The page with this section instead of its former one. All other sections of `titles` stay as they are, and all
    come in the order of `titles`. `about`: the machine and the versions of this run."""
    before, _, rest = page.partition(BEGIN)
    written, _, after = rest.partition(END)
    parts = _HEADING.split(written)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True)) | {title: text}
    shown = [f"### {one}, measured\n\n{sections[one].strip()}" for one in titles if one in sections]
    lines = [before.rstrip(), BEGIN, "## The latest run of `make bench`", about, *shown, END]
    return "\n\n".join(lines) + (after or "\n")
