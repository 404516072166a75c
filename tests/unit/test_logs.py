"""The content of the log, and what it never contains."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, logging, structlog
from worker.program import log_fields, logs

logs.configure({options})
log = structlog.get_logger()
log_fields.bind(request_id="r1")

def fail(secret):
    raise ValueError("what is true")

log.debug("unheard")
log.info("job.completed", seconds=1.5)
logging.getLogger("a.library").info("chatter")
logging.getLogger("a.library").warning("of %s", "note")
token = "vps_s3cr3t"
try:
    fail(token)
except ValueError:
    log.exception("request.failed")
    logging.getLogger("a.library").exception("trouble")
"""


def said(options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(options=options)], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == ""
    return done.stderr


def test_without_a_terminal_every_line_is_json_with_its_request() -> None:
    lines = [json.loads(line) for line in said("").splitlines()]

    assert [line["event"] for line in lines] == ["job.completed", "of note", "request.failed", "trouble"]
    assert {line["request_id"] for line in lines} == {"r1"}
    assert all(line["timestamp"].endswith("Z") for line in lines)
    assert lines[0] | {"timestamp": ""} == {
        "event": "job.completed",
        "seconds": 1.5,
        "request_id": "r1",
        "level": "info",
        "timestamp": "",
    }
    assert lines[1]["logger"] == "a.library"


@pytest.mark.parametrize("options", ["json=True", "json=False"])
def test_a_traceback_shows_the_place_and_no_variables(options: str) -> None:
    text = said(options)

    assert text.count("what is true") >= 2
    assert "in fail" in text or '"fail"' in text
    assert "s3cr3t" not in text


COUNTING = """
import logging, structlog
from prometheus_client import generate_latest
from worker.program import logs, metrics

registry = metrics.registry()
logs.configure(count=(metrics.LogEvents(registry),))
log = structlog.get_logger()
log.info("job.completed")
log.warning("job.failed")
log.error("job.stranded", event_id="x")
log.error("what somebody has sent us")
try:
    raise ValueError
except ValueError:
    log.exception("job.stranded")
logging.getLogger("asyncio").error("task.exception was never retrieved")
print(generate_latest(registry).decode())
"""


def test_warnings_and_errors_are_counted_by_name() -> None:
    done = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, check=True, timeout=30)
    assert [line for line in done.stdout.splitlines() if line.startswith("vps_snapshots_log")] == [
        'vps_snapshots_log_events_total{event="library",level="error"} 2.0',
        'vps_snapshots_log_events_total{event="job.failed",level="warning"} 1.0',
        'vps_snapshots_log_events_total{event="job.stranded",level="error"} 2.0',
    ]


def test_on_a_terminal_the_lines_are_colored_for_a_person() -> None:
    ours, theirs = os.openpty()
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(options="")], stderr=theirs, check=True, timeout=30)
    os.close(theirs)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)

    assert done.returncode == 0
    assert "\x1b[" in text
    assert "job.completed" in text
    assert "{" not in text.splitlines()[0]


def test_debug_lines_are_logged_on_request() -> None:
    assert "unheard" in said("level=10")
