"""The protocol between nodes and gateways: each WebSocket text frame is one JSON object.

A node sends `{"id": 7, "call": "begin", "ask": {...}}`; the gateway answers `{"id": 7, "answer": ...}`,
or `{"id": 7, "error": "lease_lost"}` with a `detail` for people. Many calls can be open at once. The first call is
`hello`.

A node's data is a claim: every field has a type and a limit, and unknown fields are refused. A new field or call
therefore needs a new number in PROTOCOLS, and gateways must be upgraded before nodes. `hello` negotiates the highest
number that both sides support; a node does not send newer fields to an older gateway.

- 1: the first release.
- 2: `take` has the field `begin`, and may return jobs that it has begun; `stop_taking`; a snapshot's `consistency`; a
  begun job's `live`.
- 3: the `cause` of a job's outcome; a node's `slots` and `boot`.
- 4: a node's `slots_max`.
- 5: `take` may wait for up to TAKE_SECONDS instead of 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
)

from worker.program.adapters import adapter
from worker.store.model import (
    CAUSE_MAX,
    AccountId,
    Job,
    JobId,
    JobKind,
    JobState,
    NoteCode,
    ServerId,
    SnapshotId,
    SnapshotStatus,
    Step,
)
from worker.store.nodes.claims import Known, LeaseHeld, Reported

PROTOCOLS = frozenset({1, 2, 3, 4, 5})  # the versions that this release supports
BEGINS_WITH_TAKE = 2
TAKES_LONGER = 5
PATH = "/node"
FRAME_BYTES = 1 << 20  # the longest frame that a gateway reads
# How long `take` waits for a job. A lost wake-up delays a job at most this long. Each `take` of an idle node costs
# Redis eight commands.
TAKE_SECONDS = 10.0
_TAKE_SECONDS_BEFORE_5 = 5.0

LEASE_LOST = "lease_lost"  # error codes that the node distinguishes; it treats any other as StoreUnavailable
BEGIN_REFUSED = "begin_refused"
CLAIM_REFUSED = "claim_refused"  # the detail is the reason
BROKE = "internal_error"  # the gateway has logged why

_ID_MAX = 2**63 - 1
_FITTING = "fitting"  # key in a validation's context: shorten values that are too long instead of refusing them

Read = TypeVar("Read")


def _fitted(most: int) -> BeforeValidator:
    def fit(value: Any, info: ValidationInfo) -> Any:
        if info.context != _FITTING:
            return value
        if isinstance(value, str):
            value = value.encode(errors="replace").decode()  # a domain's name in libvirt may be invalid UTF-8
        return value[:most] if isinstance(value, str | list | tuple) else value

    return BeforeValidator(fit)


def _most(many: int) -> Any:
    """A list of at most so many items. The first invalid item ends its validation: errors of all items of a long list
    would keep a gateway busy for seconds."""
    return Field(max_length=many, fail_fast=True)


def _final(state: JobState) -> JobState:
    if not state.is_final:
        raise ValueError("a job that has ended is completed or failed")
    return state


Count = Annotated[int, Field(strict=True, ge=0, le=_ID_MAX)]
ServerNumber = Annotated[ServerId, Field(strict=True, gt=0, le=_ID_MAX)]
SnapshotNumber = Annotated[SnapshotId, Field(strict=True, gt=0, le=_ID_MAX)]
AccountNumber = Annotated[AccountId, Field(strict=True, gt=0, le=_ID_MAX)]
Flag = Annotated[bool, Field(strict=True)]
Seconds = Annotated[float, Field(ge=0, le=10 * 365 * 86_400, allow_inf_nan=False)]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
JobNumber = Annotated[JobId, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
NodeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Word = Annotated[str, StringConstraints(max_length=128), _fitted(128)]
Text = Annotated[str, StringConstraints(max_length=1000), _fitted(1000)]
Cause = Annotated[str, StringConstraints(max_length=CAUSE_MAX), _fitted(CAUSE_MAX)]
Place = Annotated[str, StringConstraints(max_length=4096), _fitted(4096)]  # Linux's PATH_MAX
LogLine = Annotated[str, StringConstraints(max_length=8192), _fitted(8192)]
Power = Annotated[str, StringConstraints(pattern=r"^(on|off|paused)$")]


class Message(BaseModel):
    """A message, or a part of one. Parts can be created from the store's dataclasses."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, from_attributes=True, hide_input_in_errors=True, defer_build=True
    )

    @classmethod
    def fitting(cls, **fields: Any) -> Self:
        """The message with texts and logs cut to their limits, so that a long text cannot block an outcome.
        Raises ValidationError."""
        return cls.model_validate(fields, context=_FITTING)

    def for_protocol(self, protocol: int) -> Self:  # noqa: ARG002 - most messages are the same in all
        """The message with values that a gateway of that protocol accepts."""
        return self


# --- parts ---


class HeldDisk(Message):
    target: Word
    path: Place
    virtual_bytes: Count
    stamp: Text = ""
    base: Place | None = None


class LeftOut(Message):
    target: Word
    reason: Text


class Contents(Message):
    disks: Annotated[tuple[HeldDisk, ...], _most(64)]
    left_out: Annotated[tuple[LeftOut, ...], _most(64), _fitted(64)] = ()
    firmware: Word = "bios"
    nvram: Flag = False
    tpm: Flag = False
    consistency: Word | None = None


class Failure(Message):
    code: Code
    detail: Text
    stranded: Flag = False


class Note(Message):
    code: NoteCode
    detail: Text
    disks: Annotated[tuple[Word, ...], _most(64), _fitted(64)] = ()


class Outcome(Message):
    state: Annotated[JobState, AfterValidator(_final)]
    failure: Failure | None = None
    downtime_seconds: Seconds | None = None
    size_mb: Count | None = None
    snapshot_status: SnapshotStatus | None = None
    undoable_seconds: Seconds | None = None
    notes: Annotated[tuple[Note, ...], _most(64), _fitted(64)] = ()
    contents: Contents | None = None
    cause: Cause = ""


class StepBegun(Message):
    step: Step | None
    at: Annotated[float, Field(ge=0, le=1 << 40, allow_inf_nan=False)]
    attempt: Count


class JobReport(Message):
    steps: Annotated[tuple[StepBegun, ...], _most(200), _fitted(200)] = ()
    log: Annotated[tuple[LogLine, ...], _most(100), _fitted(100)] = ()
    resumed: Annotated[int, Field(strict=True, ge=0, le=1000)] = 0


class ReportedServer(Message):
    id: ServerNumber
    account_id: AccountNumber
    name: Word
    power: Power


class Pool(Message):
    path: Place
    free_bytes: Count
    total_bytes: Count


class NodeFacts(Message):
    worker: Word
    hypervisor: Word
    emulator: Word
    pools: Annotated[tuple[Pool, ...], _most(64)]
    slots: Count = 0
    slots_max: Count = 0
    boot: Word = ""


class PublishedSnapshot(Message):
    id: SnapshotNumber
    name: Word
    description: Text
    created_at: AwareDatetime
    size_mb: Count | None
    status: SnapshotStatus
    contents: Contents | None = None


class BegunJob(Message):
    id: JobNumber
    kind: JobKind
    snapshot_id: SnapshotNumber
    snapshot_name: Word
    snapshot_description: Text
    snapshot_created_at: AwareDatetime
    request_id: Word
    undoes: JobNumber | None
    present_only: Flag = False
    live: Flag = False


class Finding(Message):
    finding: Code
    tag: Word
    at: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,15}$")]


# --- calls of a node ---


class Hello(Message):
    """Unknown fields are ignored, so that a gateway can tell a newer node which protocols it supports."""

    model_config = ConfigDict(extra="ignore")

    protocols: Annotated[tuple[Count, ...], Field(min_length=1), _most(16)]
    node: NodeName
    owner: Hex32  # identifies this process as holder of the lease
    machine: Place
    who: Word


class Nothing(Message):
    pass


class TakeLease(Message):
    seconds: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]


class Take(Message):
    running: Annotated[tuple[JobNumber, ...], _most(1000)]
    free: Annotated[int, Field(strict=True, ge=1, le=100)]
    seconds: Annotated[float, Field(ge=0, le=TAKE_SECONDS, allow_inf_nan=False)]
    begin: Flag = False

    def for_protocol(self, protocol: int) -> Self:
        if protocol >= TAKES_LONGER:
            return self
        return self.model_copy(update={"seconds": min(self.seconds, _TAKE_SECONDS_BEFORE_5)})


class Begin(Message):
    job_id: JobNumber


class Progress(Message):
    job_id: JobNumber
    step: Step
    report: JobReport


class Finish(Message):
    job_id: JobNumber
    outcome: Outcome
    report: JobReport
    power: Annotated[str, StringConstraints(pattern=r"^(on|off|paused|)$")]


class Report(Message):
    servers: Annotated[tuple[ReportedServer, ...], _most(5000)]
    about: NodeFacts | None


class Publish(Message):
    server_id: ServerNumber
    snapshots: Annotated[tuple[PublishedSnapshot, ...], _most(500)]
    begun: Annotated[tuple[BegunJob, ...], _most(100)]


class AskKnown(Message):
    server_id: ServerNumber
    on_disk: Annotated[tuple[SnapshotNumber, ...], _most(500)]


class Lose(Message):
    server_id: ServerNumber
    snapshot_id: SnapshotNumber


class Regain(Message):
    server_id: ServerNumber
    snapshot_id: SnapshotNumber
    size_mb: Count


class TellFindings(Message):
    server_id: ServerNumber
    findings: Annotated[tuple[Finding, ...], _most(200), _fitted(200)]


class Greeting(Message):
    """A gateway's answer to `hello`. Unknown fields of a newer gateway are ignored."""

    model_config = ConfigDict(extra="ignore")

    protocol: Count
    node: str


Excluded = dict[str, Any]  # fields, in the form that `model_dump` takes


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a node with the type of its answer. `newer`: the fields that each older protocol lacks."""

    ask: type[Message]
    answer: TypeAdapter[Any]
    newer: Mapping[int, Excluded]

    def said(self, ask: Message, protocol: int) -> str:
        """The message as JSON, without what a gateway of that protocol would refuse."""
        return ask.for_protocol(protocol).model_dump_json(exclude=self.newer.get(protocol))


def _call(ask: type[Message], answer: Any, *, newer: Mapping[int, Excluded] | None = None) -> Call:
    return Call(ask=ask, answer=TypeAdapter(answer), newer=newer or {})


_NEWER_FACTS = {"about": {"slots", "boot", "slots_max"}}
_NEWER_CONTENTS = {"contents": {"consistency"}}


CALLS: Mapping[str, Call] = {
    "hello": _call(Hello, Greeting),
    "take_lease": _call(TakeLease, LeaseHeld | None),
    "lease_holder": _call(Nothing, LeaseHeld | None),
    "take": _call(Take, tuple[JobId | Job, ...], newer={1: {"begin": True}}),
    "stop_taking": _call(Nothing, None),
    "begin": _call(Begin, Job),
    "progress": _call(Progress, None),
    "finish": _call(
        Finish, str, newer={1: {"outcome": _NEWER_CONTENTS | {"cause": True}}, 2: {"outcome": {"cause": True}}}
    ),
    "report": _call(Report, Reported, newer={1: _NEWER_FACTS, 2: _NEWER_FACTS, 3: {"about": {"slots_max"}}}),
    "publish": _call(
        Publish,
        tuple[SnapshotId, ...],
        newer={1: {"snapshots": {"__all__": _NEWER_CONTENTS}, "begun": {"__all__": {"live"}}}},
    ),
    "known": _call(AskKnown, Known),
    "lose": _call(Lose, bool),
    "regain": _call(Regain, bool),
    "tell_findings": _call(TellFindings, None),
    "republish": _call(Nothing, int),
    "retry_deletes": _call(Nothing, int),
}


def told(kind: type[Read], part: Message) -> Read:
    """Convert a part of a message to the store's dataclass with the same fields."""
    return adapter(kind).validate_python(part.model_dump())
