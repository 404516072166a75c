"""How `make matrix` parses a run and writes docs/versions.md, and the setting on which it is based."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import redis_program
from tests.matrix import table
from tests.matrix.__main__ import ROWS

LOG = "versions: server=Valkey 9.1.2; redis-py=8.1.0; Python=3.13.5; libvirt=11.3.0\n"
JUNIT = '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2" time="90"/></testsuites>'
PRINT = "from tests import redis_program as chosen; chosen.choose(); print(chosen.version())"


def test_a_row_replaces_its_line_and_no_other(tmp_path: Path) -> None:
    page, junit = tmp_path / "versions.md", tmp_path / "row.xml"
    page.write_text(f"before\n{table.BEGIN}\n{table.HEAD}\n|---|\n| a | x |\n| valkey-9 | old |\n{table.END}\nafter\n")
    junit.write_text(JUNIT)

    table.write(table.read("valkey-9", "store", LOG, junit), page)

    begin, head, _, first, second, *end = page.read_text().splitlines()[1:]
    assert [begin, head, first, end] == [table.BEGIN, table.HEAD, "| a | x |", [table.END, "after"]]
    assert second.startswith("| valkey-9 | Valkey 9.1.2 | 8.1.0 | 3.13.5 | 11.3.0 | store | 5 | 2 | 2 | 1.5 |")


def test_a_run_without_tests_is_no_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tests were run"):
        table.read("valkey-9", "all", "the chroot has no Python", tmp_path / "row.xml")


def test_the_page_has_rows_of_the_matrix_alone() -> None:
    lines = table.PAGE.read_text().partition(table.BEGIN)[2].partition(table.END)[0].strip().splitlines()
    assert lines[0] == table.HEAD
    assert {line.split()[1] for line in lines[2:]} <= set(ROWS)


def test_one_setting_chooses_the_server_of_all_tests(tmp_path: Path) -> None:
    program = tmp_path / "another"
    program.write_text("#!/bin/sh\necho 'Valkey server v=99.0 sha=1'\n")
    program.chmod(0o755)
    environment = os.environ | {redis_program.SETTING: str(program)}
    done = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "Valkey 99.0\n"
    environment[redis_program.SETTING] = str(tmp_path / "nothing")
    done = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, text=True, check=False)
    assert "no such program" in done.stderr
