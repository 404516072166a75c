"""Messages between nodes and gateways match the store's own types, and nothing is out of bounds."""

import dataclasses
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from api.gateway.answers import ANSWERS
from api.gateway.limits import Allowance
from worker.gateway_address import GatewayAddress
from worker.gateway_client import GatewayClient
from worker.store import model, outcome, reports
from worker.store.nodes import claims, protocol
from worker.store.nodes.port import NodePort

TWINS: list[tuple[type[protocol.Message], Any]] = [
    (protocol.HeldDisk, model.HeldDisk),
    (protocol.LeftOut, model.LeftOut),
    (protocol.Contents, model.Contents),
    (protocol.Failure, model.Failure),
    (protocol.Note, model.Note),
    (protocol.Outcome, outcome.Outcome),
    (protocol.StepBegun, reports.StepBegun),
    (protocol.JobReport, reports.JobReport),
    (protocol.ReportedServer, claims.ReportedServer),
    (protocol.PublishedSnapshot, claims.PublishedSnapshot),
    (protocol.BegunJob, claims.BegunJob),
]
JOB = model.JobId("a" * 32)
AT = datetime(2026, 1, 1, tzinfo=UTC)
CONTENTS = model.Contents(
    disks=(model.HeldDisk(target="vda", path="/d", virtual_bytes=1 << 40),),
    left_out=(model.LeftOut(target="sda", reason="a CD-ROM"),),
    firmware="uefi",
    nvram=True,
)

BEGUN = model.Job(
    id=model.JobId("b" * 32),
    kind=model.JobKind.CREATE,
    state=model.JobState.IN_PROGRESS,
    server_id=model.ServerId(1),
    server_name="web",
    account_id=model.AccountId(2),
    node="n1",
    snapshot_id=model.SnapshotId(3),
    snapshot_name="n",
    snapshot_description="d",
    snapshot_created_at=AT,
    request_id="r",
    queued_at=AT,
    started_at=AT,
    attempts=1,
    contents=CONTENTS,
)


@pytest.mark.parametrize(("message", "own"), TWINS, ids=lambda kind: kind.__name__)
def test_a_part_has_the_fields_of_the_stores_own_type(message: type[protocol.Message], own: Any) -> None:
    assert set(message.model_fields) == {field.name for field in dataclasses.fields(own)}


@pytest.mark.parametrize(
    "own",
    [
        outcome.Outcome(
            state=model.JobState.FAILED,
            failure=model.Failure(code="disk_failed", detail="é", stranded=True),
            downtime_seconds=1.5,
            snapshot_status=model.SnapshotStatus.FAILED,
            undoable_seconds=60,
            notes=(model.Note(code=model.NoteCode.LEFT_OUT, detail="x", disks=("vda",)),),
            contents=CONTENTS,
            cause="starting: no memory",
        ),
        reports.JobReport(steps=(reports.StepBegun(step=None, at=1e9, attempt=2),), log=('{"event": "x"}',), resumed=1),
        reports.NodeFacts(
            worker="1", hypervisor="2", emulator="3", pools=(reports.Pool(path="/", free_bytes=0, total_bytes=9),)
        ),
        claims.PublishedSnapshot(
            id=model.SnapshotId(5),
            name="n",
            description="d\r\n🎉",
            created_at=AT,
            size_mb=None,
            status=model.SnapshotStatus.COMPLETED,
            contents=CONTENTS,
        ),
    ],
    ids=lambda own: type(own).__name__,
)
def test_a_nodes_message_arrives_unchanged(own: Any) -> None:
    message = getattr(protocol, type(own).__name__)
    sent = message.model_validate(own, context="fitting").model_dump_json()
    assert protocol.told(type(own), message.model_validate(from_json(sent))) == own


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("take_lease", claims.LeaseHeld(who="x", seconds_left=1.5)),
        ("take_lease", None),
        ("take", (JOB,)),
        ("take", (BEGUN, JOB)),
        (
            "known",
            claims.Known(
                busy=True,
                on_disk={
                    model.SnapshotId(1): None,
                    model.SnapshotId(2): claims.KnownSnapshot(
                        status=model.SnapshotStatus.FAILED, lost=True, name="n", description="", created_at=AT
                    ),
                },
                listed={model.SnapshotId(2): model.SnapshotStatus.FAILED},
                undoable=JOB,
                elsewhere=frozenset({model.SnapshotId(1)}),
            ),
        ),
        (
            "report",
            claims.Reported(
                conflicts=frozenset(),
                fresh=frozenset({model.ServerId(1)}),
                gone=frozenset(),
                reconcile_asked="1",
                accounts={model.ServerId(1): model.AccountId(2)},
            ),
        ),
    ],
)
def test_a_gateways_answer_arrives_unchanged(call: str, answer: Any) -> None:
    kind: TypeAdapter[Any] = protocol.CALLS[call].answer
    assert kind.validate_python(from_json(kind.dump_json(answer))) == answer


def test_an_older_gateway_gets_nothing_that_it_would_refuse() -> None:
    take = protocol.CALLS["take"]
    ask = take.ask.fitting(running=(), free=1, seconds=5, begin=True)
    assert set(from_json(take.said(ask, 1))) == {"running", "free", "seconds"}
    assert from_json(take.said(ask, 2))["begin"] is True
    finish = protocol.CALLS["finish"]
    for contents in (None, CONTENTS):
        ended = outcome.Outcome(state=model.JobState.COMPLETED, contents=contents)
        ask = finish.ask.fitting(job_id=JOB, outcome=ended, report=reports.EMPTY_REPORT, power="")
        assert "consistency" not in finish.said(ask, 1)
    assert "consistency" in finish.said(ask, 2)
    assert "cause" not in finish.said(ask, 2)
    assert "cause" in finish.said(ask, 3)
    publish = protocol.CALLS["publish"]
    snapshot = {"id": 1, "name": "n", "description": "", "created_at": AT, "size_mb": 1, "status": "completed"}
    begun = {"id": JOB, "kind": "create", "snapshot_id": 1, "snapshot_name": "n", "snapshot_description": ""}
    begun |= {"snapshot_created_at": AT, "request_id": "r", "undoes": None}
    ask = publish.ask.fitting(server_id=1, snapshots=[snapshot | {"contents": CONTENTS}], begun=[begun])
    said = from_json(publish.said(ask, 1))
    assert "consistency" not in said["snapshots"][0]["contents"]
    assert "live" not in said["begun"][0]


def test_each_call_is_answered_asked_and_part_of_the_port() -> None:
    asked = {name for name in vars(GatewayClient) if not name.startswith("_")} - {"keep_connected"}
    port = {name for name in vars(NodePort) if not name.startswith("_")} - {"node"}
    assert set(protocol.CALLS) - {"hello"} == set(ANSWERS) == asked == port


def test_texts_are_cut_by_the_node_and_refused_by_the_gateway() -> None:
    long = {"code": "x", "detail": "é" * 5000 + "\udcff"}
    assert protocol.Failure.fitting(**long).detail == "é" * 1000
    with pytest.raises(ValidationError):
        protocol.Failure.model_validate(long)


@pytest.mark.parametrize("message", [call.ask for call in protocol.CALLS.values()], ids=lambda kind: kind.__name__)
def test_every_text_and_list_that_a_node_sends_has_a_bound(message: type[protocol.Message]) -> None:
    unbounded: list[str] = []

    def look(schema: Any, where: str) -> None:
        if not isinstance(schema, dict):
            return
        bounds = {"maxLength", "pattern", "enum", "const", "format"}  # the only format is that of timestamps
        if schema.get("type") == "string" and not (bounds & schema.keys()):
            unbounded.append(where)
        if schema.get("type") == "array" and "maxItems" not in schema:
            unbounded.append(where)
        if schema.get("type") in {"integer", "number"} and "maximum" not in schema:
            unbounded.append(where)
        for name, below in schema.items():
            for one in below if isinstance(below, list) else [below]:
                look(one, f"{where}.{name}")

    look(message.model_json_schema(), message.__name__)
    assert unbounded == []


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("wss://gateway.example:7443", True),
        ("wss://[::1]:7443", True),
        ("unix:///run/gateway.sock", True),
        ("ws://gateway.example:7443", False),
        ("https://gateway.example", False),
        ("wss://user:secret@gateway.example", False),
        ("wss://gateway.example/path", False),
        ("unix://relative", False),
    ],
)
def test_a_node_sends_plain_text_to_nobody_else(url: str, fits: bool) -> None:
    if fits:
        GatewayAddress(urls=(url,))
    else:
        with pytest.raises(ValidationError, match=re.escape(url)):
            GatewayAddress(urls=(url,))


def test_an_allowance_is_spent_and_comes_back() -> None:
    slow, fast = (Allowance(per_second=per_second, at_once=5) for per_second in (0.001, 1e9))
    assert [slow.take(1) for _ in range(5)] == [0.0] * 5
    assert 900 < slow.take(1) <= 1000
    assert not slow.may_take()
    fast.take(6)
    assert fast.may_take()


def lists_of(message: type[protocol.Message]) -> list[str]:
    return [name for name, field in message.model_fields.items() if str(field.annotation).startswith("tuple[")]


PARTS = [kind for kind in vars(protocol).values() if isinstance(kind, type) and issubclass(kind, protocol.Message)]
LISTS = [(kind, name) for kind in PARTS for name in lists_of(kind)]


@pytest.mark.parametrize(("kind", "name"), LISTS, ids=str)
def test_a_long_list_ends_at_its_first_invalid_item(kind: type[protocol.Message], name: str) -> None:
    """Errors of all items would keep a gateway, which serves all nodes, busy for seconds."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate({name: [[]] * 10_000})
    assert len([error for error in refused.value.errors() if error["loc"][0] == name and error["loc"][1:]]) == 1


def test_each_list_is_tried() -> None:
    assert {(protocol.Report, "servers"), (protocol.Publish, "snapshots"), (protocol.Contents, "disks")} <= {*LISTS}
