"""Limits on data from a node. Longer data is cut instead of refused, so that the rest of the message still counts."""

import math
from dataclasses import replace

from worker.store import written
from worker.store.model import Note, bounded_cause
from worker.store.outcome import JOB_KEPT_SECONDS, Outcome
from worker.store.reports import NodeFacts, Pool

TEXT_MAX = 2000  # characters of a failure's or a note's detail
NOTES_MAX = 100
CONTENTS_MAX = 65_536  # characters of JSON
DOWNTIME_MAX = 1e7  # seconds: 115 days
POOLS_MAX = 64
NAME_MAX = 256  # characters of a version or of a path


def bounded_outcome(outcome: Outcome) -> Outcome:
    failure, downtime = outcome.failure, outcome.downtime_seconds
    fits = len(written.contents(outcome.contents)) <= CONTENTS_MAX
    return replace(
        outcome,
        cause=bounded_cause(outcome.cause) if failure else "",
        failure=failure and replace(failure, detail=failure.detail[:TEXT_MAX]),
        downtime_seconds=None if downtime is None or math.isnan(downtime) else min(max(0.0, downtime), DOWNTIME_MAX),
        undoable_seconds=outcome.undoable_seconds and min(max(0.0, outcome.undoable_seconds), JOB_KEPT_SECONDS),
        notes=tuple(_bounded_note(note) for note in outcome.notes[:NOTES_MAX]),
        contents=outcome.contents if fits else None,
    )


def _bounded_note(note: Note) -> Note:
    return replace(note, detail=note.detail[:TEXT_MAX], disks=tuple(disk[:NAME_MAX] for disk in note.disks[:NOTES_MAX]))


def bounded_facts(facts: NodeFacts) -> NodeFacts:
    return NodeFacts(
        worker=facts.worker[:NAME_MAX],
        hypervisor=facts.hypervisor[:NAME_MAX],
        emulator=facts.emulator[:NAME_MAX],
        pools=tuple(
            Pool(path=pool.path[:NAME_MAX], free_bytes=pool.free_bytes, total_bytes=pool.total_bytes)
            for pool in facts.pools[:POOLS_MAX]
        ),
        slots=max(0, facts.slots),
        slots_max=max(0, facts.slots_max),
        boot=facts.boot[:NAME_MAX],
    )
