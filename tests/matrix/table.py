"""The table in docs/versions.md: a line for each row that was run, with its versions."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).parents[2] / "docs" / "versions.md"
BEGIN, END = "<!-- written by make matrix -->", "<!-- end of what make matrix has written -->"
HEAD = "| row | server | redis-py | Python | libvirt | tests | passed | failed | skipped | minutes | on |"
_ABOUT = re.compile(r"^versions: (.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Result:
    row: str
    tests: str  # all tests of the row, or those that were selected
    versions: dict[str, str]  # from the header of pytest's output
    passed: int
    failed: int
    skipped: int
    minutes: float

    @property
    def line(self) -> str:
        of = [self.versions.get(name, "?") for name in ("server", "redis-py", "Python", "libvirt")]
        counts = map(str, (self.passed, self.failed, self.skipped))
        return (
            "| "
            + " | ".join((self.row, *of, self.tests, *counts, f"{self.minutes:.1f}", f"{datetime.now(UTC):%F}"))
            + " |"
        )


def read(row: str, tests: str, log: str, junit: Path) -> Result:
    """Raises ValueError if pytest did not finish."""
    about = _ABOUT.search(log)
    if about is None or not junit.exists():
        raise ValueError(f"{row}: no tests were run; see its log")
    suite = ElementTree.parse(junit).getroot()[0]  # noqa: S314 - pytest has written it
    of = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = of["failures"] + of["errors"]
    return Result(
        row=row,
        tests=tests,
        versions=dict(one.split("=", 1) for one in about[1].split("; ")),
        passed=of["tests"] - failed - of["skipped"],
        failed=failed,
        skipped=of["skipped"],
        minutes=float(suite.attrib["time"]) / 60,
    )


def write(result: Result, page: Path = PAGE) -> None:
    """Replace the row's line."""
    before, _, rest = page.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {line.split(" ", 2)[1]: line for line in table.strip().splitlines()[2:]} | {result.row: result.line}
    rule = "|".join(["", *("---" for _ in HEAD.split(" | ")), ""])
    written = "\n".join([HEAD, rule, *(lines[name] for name in sorted(lines))])
    page.write_text(f"{before}{BEGIN}\n{written}\n{END}{after}")
