"""The audit log in words: every call that changes something has its own phrase."""

import re
from pathlib import Path

import pytest

from api.dashboard.routes import ACTIONS
from api.operators.audit_words import Named
from api.resources import AUDIT_WORDS, CALLS

IDS = {
    "job_id": "0b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b",
    "snapshot_id": "801",
    "account_id": "77",
    "server_id": "12345",
    "node": "fra1-hv02",
    "token_id": "0a1b2c3d4e5f",
    "schedule_id": "1b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b",
    "webhook_id": "2b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b",
    "delivery_id": "3b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b",
}
MADE = {"made": "token 0a1b2c3d4e5f", "server": "12345", "account": "77", "job": IDS["job_id"], "reason": "retry"}


def filled(path: str) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", lambda found: IDS[found[1]], path)


CHANGES = [
    *((call.method, filled(call.path)) for call in CALLS if call.changes),
    *(("POST", filled(path)) for path in ACTIONS),
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_each_call_that_changes_something_has_words(method: str, path: str) -> None:
    fields = {"token": "0a1b2c3d4e5f", "token_name": "ops-night", "method": method, "path": path, **MADE}
    for more in ({}, {"code": "node_not_found"}):
        told = str(AUDIT_WORDS.said(fields | more))
        assert told.startswith("token ops-night ")
        assert path not in told
        assert ("refused: node not found" in told) == bool(more)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"path": "/api/v1/ops/nodes/fra1-hv02/pause/", "reason": "kernel upgrade"},
            "token ops-night paused fra1-hv02: kernel upgrade",
        ),
        (
            {"path": "/ops/nodes/fra1-hv02/pause/", "reason": "kernel upgrade", "code": "node_not_found"},
            "token ops-night tried to pause fra1-hv02, refused: node not found: kernel upgrade",
        ),
        ({"method": "DELETE", "path": "/api/v1/snapshots/801/"}, "token ops-night deleted snapshot 801"),
        (
            {"path": "/api/v1/snapshots/", "made": "snapshot 801", "server": "12345"},
            "token ops-night created snapshot 801 of server 12345",
        ),
        ({"path": "/api/v1/snapshots/", "server": "12345"}, "token ops-night created something of server 12345"),
        (
            {"path": "/ops/jobs/bulk/", "job": "a" * 32, "reason": "retry, forced", "made": f"job {'b' * 32}"},
            "token ops-night retried job aaaaaaaa as job bbbbbbbb: forced",
        ),
        ({"path": "/ops/login/"}, "token ops-night logged in to the dashboard"),
        ({"method": "PUT", "path": "/api/v1/new/things/"}, "token ops-night called PUT /api/v1/new/things/"),
        ({"token_name": "", "method": "CLI", "path": "token create", "made": "token 1"}, None),
        (
            {"token_name": "", "method": "SERVICE", "path": "/ops/nodes/n1/resume/", "reason": "the pause expired"},
            "the service ended the pause of n1: the pause expired",
        ),
        ({"method": "", "path": "", "token_name": "", "unreadable": "no entry"}, None),
    ],
)
def test_each_phrase(fields: dict[str, str], text: str | None) -> None:
    told = str(AUDIT_WORDS.said({"token_name": "ops-night", "method": "POST"} | fields))
    assert told == (text or told)
    assert text or told.startswith("someone ")


COMMANDS = sorted(
    found
    for path in (Path(__file__).parents[2] / "api").rglob("*.py")
    for found in re.findall(r"await record\(.*?, f?\"([^\"]+)\"", path.read_text())
)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_on_a_host_that_is_recorded_has_words(command: str) -> None:
    fields = {"method": "CLI", "address": "root@api-1", "token": "0a1b2c3d4e5f", "path": command.format(node="hv-7")}
    told = str(AUDIT_WORDS.said(fields))
    assert told.startswith("root@api-1 ")
    assert "called" not in told
    assert ("hv-7" in told, "token 0a1b2c3d4e5f" in told) == ("{node}" in command, "token" in command)


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) >= 7


def test_named_objects_can_be_linked() -> None:
    told = AUDIT_WORDS.said({"method": "POST", "path": "/ops/nodes/fra1-hv02/pause/", "token_name": "ops-night"})
    assert told.parts == ("paused ", Named(kind="node", id="fra1-hv02"))
    assert Named(kind="node", id="x").has_page
    assert not Named(kind="webhook", id="x").has_page
