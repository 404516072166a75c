"""Scripts with `pipefail`: no program in a pipe fails because the next one has read enough."""

import re

from deploy.packages.parts import PROJECT

HEREDOC = re.compile(r"<<-?'?(\w+)'?(.*?)^\1$", re.MULTILINE | re.DOTALL)  # for another shell
# a program that ends before it has read all: the one before it then fails of a closed pipe
EARLY = re.compile(
    r"(?<!\|)\|(?:\s*\\?\n)?\s*(head\b|grep (?:-\w+ )*-\w*[qm]|sed [^|\n]*\bq\b|awk [^|\n]*\bexit\b)[^\n]*"
)


def test_no_script_pipes_into_a_program_that_ends_early() -> None:
    shell = [file for folder in ("deploy", "tests") for file in (PROJECT / folder).rglob("*.sh")]
    scripts = [file for file in (PROJECT / "Makefile", PROJECT / ".ci/run", *shell) if "pipefail" in file.read_text()]
    assert len(scripts) > 5
    found = [
        f"{file.relative_to(PROJECT)}: {early[0]}"
        for file in scripts
        for early in EARLY.finditer(re.sub(r"(^|\s)#.*", "", HEREDOC.sub("", file.read_text())))
    ]
    assert found == []
    for example in ("curl x | grep -qE y", "curl x |\n    grep -q y", "ls | head -1", "git tag | grep -E -m 1 y"):
        assert EARLY.search(example)
