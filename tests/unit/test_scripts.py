"""The Lua scripts and their modules: each script includes exactly what it uses."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

from worker.store import scripts

PROJECT = Path(__file__).parents[2]
STORE = files("worker.store")
ROOMS = [room for room in STORE.iterdir() if room.is_dir() and room.name not in {"shared", "__pycache__"}]
SCRIPTS = sorted(
    f"{room.name}/{file.name[:-4]}" for room in ROOMS for file in room.iterdir() if file.name.endswith(".lua")
)
MODULES = ["states", *sorted(file.name[:-4] for file in (STORE / "shared").iterdir() if file.name.endswith(".lua"))]


def code(lua: str) -> str:
    """The code without comments and strings."""
    return re.sub(r"--.*|'[^'\n]*'", "", lua)


def defined(lua: str) -> set[str]:
    """The names that a module defines: functions and constants."""
    functions = re.findall(r"^local function (\w+)", lua, re.MULTILINE)
    constants = re.findall(r"^local ([A-Z_, ]+) =", lua, re.MULTILINE)
    return {*functions, *(name for line in constants for name in line.split(", "))}


def used(lua: str, offered: set[str]) -> set[str]:
    """The defined names that a script uses. Fields with such a name, `{enqueue = 1}` or `job.read`, do not count."""
    return {name for name in offered if re.search(rf"(?<![\w.:]){name}\b(?!\s*=[^=])", code(lua))}


IN_EVERY_SCRIPT = "guard"
OFFERS = {module: defined(scripts.source(f"shared/{module}")) for module in MODULES if module != IN_EVERY_SCRIPT}


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"shared/{module}" for module in MODULES)])
def test_the_first_line_names_what_is_used_and_nothing_else(name: str) -> None:
    lua = scripts.source(name)
    mine = defined(lua) | set(re.findall(r"local (?:function )?(\w+)", lua))
    needed = {module for module, offered in OFFERS.items() if name != f"shared/{module}" and used(lua, offered - mine)}
    assert set(scripts.includes(lua)) == needed


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"shared/{module}" for module in MODULES if module != "states")])
def test_no_line_is_longer_than_pythons_limit(name: str) -> None:
    assert [line for line in scripts.source(name).splitlines() if len(line) > 120] == []


def test_everything_that_a_module_offers_is_used() -> None:
    sources = [scripts.source(name) for name in [*SCRIPTS, *(f"shared/{module}" for module in MODULES)]]
    unused = {
        name
        for offered in OFFERS.values()
        for name in offered
        if sum(len(re.findall(rf"\b{name}\b", code(lua))) for lua in sources) < 2  # used nowhere but in its definition
    }
    assert not unused


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_carries_no_definition_that_it_does_not_use(name: str) -> None:
    text = code(scripts.text(name))
    assert {found for found in defined(text) if len(re.findall(rf"\b{found}\b", text)) < 2} == set()


def test_a_module_is_carried_once_and_behind_what_it_needs() -> None:
    text = scripts.text("customers/admit")
    assert text.count("local function now_ms()") == 1
    assert text.index("local function now_ms()") < text.index("local function put_into(")
    assert text.index("local function put_into(") < text.index(scripts.source("customers/admit"))


def test_a_small_script_stays_small() -> None:
    guard, script = scripts.source("shared/guard"), scripts.source("access/close_session")
    assert scripts.text("access/close_session").startswith(f"{guard}local function script()\n{script}end\n")


def test_a_script_of_a_node_runs_within_the_check_of_its_credential() -> None:
    text, enter = scripts.text("nodes/republish"), scripts.source("nodes/enter")
    assert f"end\n{enter}end\n" in text
    assert text.count("cjson.decode(ARGV[1])") == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_first_comment_says_what_a_script_takes_and_answers(name: str) -> None:
    lines = scripts.source(name).splitlines()
    head = [line.removeprefix("-- ") for line in itertools.takewhile(lambda line: line.startswith("-- "), lines)]
    head = list(itertools.dropwhile(lambda line: line.startswith("include: "), head))
    ask, answers = (
        next((n for n, line in enumerate(head) if line.startswith(word)), -1) for word in ("ask: {", "Answers ")
    )
    assert 0 < ask < answers, "what it does, what it takes, what it answers"
    uses_ask = re.search(r"\bask\b", code(scripts.source(name))) is not None
    assert uses_ask == (head[ask] != "ask: {}")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_reads_one_argument_the_json_of_its_ask(name: str) -> None:
    lua = code(scripts.source(name))
    assert re.findall(r".*\b(?:ARGV|KEYS)\b.*", lua) in ([], ["local ask = cjson.decode(ARGV[1])"])


def test_every_script_is_called_by_its_name() -> None:
    python = "".join(path.read_text() for path in Path("worker").rglob("*.py"))
    assert {name for name in SCRIPTS if f'"{name}"' not in python} == set()
    assert set(re.findall(r'(?:_call|_claim|_do|load)\((?:[a-z_.]+, )?"([a-z_]+/[a-z_]+)"', python)) <= set(SCRIPTS)


WRITES = re.compile(
    r"redis\.call\('(?:SET|DEL|PEXPIRE(?:AT)?|H(?:SET|SETNX|DEL|INCRBY)|L(?:PUSH|POP|TRIM)|RPUSH|[SXZ]ADD|SREM|XTRIM|ZREM\w*)'"
)


@cache
def writing() -> set[str]:
    """The functions of modules that write, directly or through another one."""
    source = "".join(scripts.source(f"shared/{module}") for module in MODULES)
    bodies = dict(re.findall(r"^local function (\w+)(.*?)^end", source, re.MULTILINE | re.DOTALL))
    found = {name for name, body in bodies.items() if WRITES.search(body)}
    while more := {name for name, body in bodies.items() if used(body, found)} - found:
        found |= more
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_only_reads_says_so(name: str) -> None:
    lua = scripts.source(name)
    # `take` writes a counter with `try`, and so does everything that uses it
    writes = WRITES.search(lua) is not None or bool(used(lua, writing() - {"take", "count_call"}))
    notes = bool({"notes", "caller"} & set(scripts.includes(lua))) and not writes
    assert scripts.only_reads(name) == (not writes)
    assert ("-- Only reads and notes." in lua) == notes
    assert scripts.text(name).startswith("#!lua flags=no-writes\n") == (not writes and not notes)


# What each of them adds to a full Redis is bounded by the snapshots, jobs and nodes that it already holds.
WHEN_FULL = {
    *("access/append_audit", "access/close_session", "access/keep_audit"),
    *("access/revoke_credentials", "access/revoke_token"),
    *("chores/compare_clocks", "chores/expire", "chores/fail_late_jobs", "chores/fail_stale_jobs"),
    *("chores/forget_failed", "chores/keep_bounds"),
    *("customers/admit", "customers/cancel", "customers/edit"),
    *("nodes/begin", "nodes/finish", "nodes/lease", "nodes/progress", "nodes/report_again", "nodes/retry_deletes"),
    *("nodes/stop_waiting", "nodes/take", "webhooks/claim_deliveries", "webhooks/settle_deliveries"),
}


def test_scripts_for_a_full_redis_are_listed() -> None:
    assert {name for name in SCRIPTS if scripts.runs_when_full(name)} == WHEN_FULL
    assert scripts.when_full("nodes/lease").startswith("#!lua flags=allow-oom\n")


def test_only_the_clock_reads_redis_own() -> None:
    sources = {name: scripts.source(name) for name in [*SCRIPTS, *(f"shared/{module}" for module in MODULES)]}
    assert [name for name, lua in sources.items() if "'TIME'" in lua] == ["shared/clock"]
    python = {path: path.read_text() for folder in ("api", "worker") for path in Path(folder).rglob("*.py")}
    assert [path for path, text in python.items() if re.search(r"(redis|pool|pipe)\.time\(", text)] == []


@pytest.mark.parametrize("name", [name for name in SCRIPTS if "REPL_NONE" in scripts.source(name)])
def test_a_script_whose_writes_are_not_persisted_reads_the_time_before(name: str) -> None:
    """The clock's own write would otherwise persist them again."""
    lua = scripts.source(name)
    assert "now_ms()" in lua[: lua.index("redis.set_repl(redis.REPL_NONE)")]


# What a script reads as a whole, and why it never has more than 2,000 entries.
BOUNDED = {
    "'server:' .. server_id .. ':snapshots'": "LISTED_MOST of snapshots, and what is created beside them",
    "'server:' .. ask.server .. ':snapshots'": "as above",
    "'account:' .. job.account .. ':webhooks'": "WEBHOOKS_PER_ACCOUNT",
    "'account:' .. ask.account .. ':webhooks'": "WEBHOOKS_PER_ACCOUNT",
    "'node:' .. job.node .. ':milliseconds:' .. job.kind": "20",
    "'node:' .. ask.node .. ':servers'": "the servers of one node",
    "'server:' .. id .. ':counted'": "SNAPSHOTS_PER_SERVER",
    "lines": "MOST of job_reports",
    "key .. ':steps'": "MOST of job_reports",
    "key .. ':log'": "MOST of job_reports",
    "key .. ':history'": "HISTORY_MOST of history",
    "list": "webhooks/drop_webhook: DELIVERIES_LISTED twice",
    "log": "DELIVERIES_LISTED",
    "mine": "access/put_token: tokens_per_account; nodes/report: the servers of one node",
    "claimed": "nodes/report: what one node says of itself",
    "key .. ':snapshots'": "operators/place_server: of one server, as above",
    "'refused_claims'": "REFUSED_LISTED of claims",
    "'unreadable'": "operators/set_aside: 1000",
    "ended": "shared/health: three outcomes in each five minutes of an hour",
}
WHOLE = re.compile(
    r"redis\.call\('(?:SMEMBERS|HKEYS|HVALS)', ([^)]+)\)"
    r"|redis\.call\('(?:LRANGE|ZRANGE|ZREVRANGE)', ([^)]+), 0, -1\)"
    r"|redis\.call\('(?:ZRANGEBYSCORE|ZREVRANGEBYSCORE|ZREMRANGEBYSCORE)', ([^),]+),(?!.*LIMIT)"
    r"|redis\.call\('(?:XRANGE|XREVRANGE)', ([^),]+),(?!.*COUNT)"
    r"|redis\.call\('(?:KEYS|SCAN|HSCAN|SORT)', ([^),]+)"
)


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"shared/{module}" for module in MODULES if module != "states")])
def test_no_script_reads_a_list_whole_that_has_no_bound(name: str) -> None:
    whole = {next(filter(None, groups)) for groups in WHOLE.findall(scripts.source(name))}
    assert whole - BOUNDED.keys() == set()


def test_a_program_whose_package_is_upgraded_uses_the_scripts_with_which_it_was_started(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "worker", tmp_path / "worker")
    program = f"""
import shutil
from worker.store import scripts
assert scripts.__file__.startswith({str(tmp_path)!r})
shutil.rmtree({str(tmp_path / "worker")!r})
print(len(scripts.text("access/note_uses")))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    said = subprocess.run([sys.executable, "-P", "-c", program], env=environment, check=True, capture_output=True)
    assert int(said.stdout) == len(scripts.text("access/note_uses"))
