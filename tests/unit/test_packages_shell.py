"""The shell functions with which the packages are tested."""

import re
import subprocess
from pathlib import Path

import pytest

from deploy.packages.parts import PROJECT

FOLDER = PROJECT / "tests" / "packages"
BEGIN = 'set -euo pipefail; limit=1; die() { echo "died: $*"; exit 9; }\n'


def ran(script: str) -> tuple[int, str]:
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=30)
    return done.returncode, done.stdout


def shared(script: str) -> tuple[int, str]:
    return ran(f"{BEGIN} . {FOLDER}/shared.sh\n{script}")


def test_a_program_says_a_pattern_only_if_it_succeeds() -> None:
    assert shared("says '^begin' sh -c 'echo begin; seq 100000' && echo yes") == (0, "yes\n")
    assert shared("says other echo text || echo no") == (0, "no\n")
    assert shared("says text sh -c 'echo text; exit 1' || echo no") == (0, "no\n")


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("'echo not removed: 1 jobs >&2; exit 1'", (0, "")),
        ("'echo not removed: 1 jobs'", (9, "died: it has succeeded: sh -c echo not removed: 1 jobs\n")),
        ("'echo no lock; exit 2'", (9, "died: it has failed of something else: sh -c echo no lock; exit 2: no lock\n")),
    ],
)
def test_a_refusal_is_one_by_its_text(command: str, answer: tuple[int, str]) -> None:
    assert shared(f"refuses 'not removed: 1' sh -c {command}") == answer


def test_what_does_not_become_true_ends_the_script() -> None:
    assert shared("until_true false; echo on") == (9, "died: not within 1 s: false\n")
    assert shared("until_true true; echo on") == (0, "on\n")


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("sleep 0.01", (0, r"([2-9]|\d\d+) calls went through\n")),
        ("sleep 0.01; [ ! -e {tmp}/restarted ]", (9, "died: .*call failed.*\n")),
        ("false", (9, "died: .*call failed.*\n")),
        ("sleep 1; false", (9, r"died: not within 1 s: has_calls 1\n|died: a call failed\n")),  # none ever ends
    ],
)
def test_calls_during_a_restart_are_made_and_none_fails(tmp_path: Path, call: str, answer: tuple[int, str]) -> None:
    (functions,) = re.findall(
        r"^begin_calls.*?^}\nhas_calls.*?^}\nend_calls.*?^}$",
        (FOLDER / "machine.sh").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    functions = functions.replace("/root/", f"{tmp_path}/")
    script = f"""trap 'touch {tmp_path}/enough' EXIT # also ends the calls if this dies
call() {{ {call.format(tmp=tmp_path)}; }}; step() {{ echo "$*"; }}
{functions}
begin_calls; touch {tmp_path}/restarted; end_calls "the restart"
"""
    code, said = shared(script)
    assert code == answer[0]
    assert re.fullmatch(answer[1], said)
