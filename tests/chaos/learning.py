"""The outcomes of jobs according to the node's journal, and the state of their servers that follows from them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from deploy.demo.client import Answer
from tests.acceptance.cell import AcceptanceCell
from tests.chaos import model
from tests.chaos.model import SAFETY_PREFIX, End, Expected
from tests.chaos.summary import Summary

OVERWRITING = {"restore", "undo"}
WITHOUT_ITS_QEMU = {"server_not_ready", "disk_failed", "hypervisor_unavailable"}  # of a live create
CHAIN_ENDED = "backup_chain_ended"


class Learning:
    def __init__(
        self, cell: AcceptanceCell, servers: Sequence[Expected], summary: Summary, *, refusals: Collection[str] = ()
    ) -> None:
        """`refusals`: codes of expected failures."""
        self._cell = cell
        self._servers = {expected.server.id: expected for expected in servers}
        self._summary = summary
        self._refusals = refusals
        self._seen = 0  # the newest journal row that the model has read
        self._given: set[int] = set()  # IDs of snapshots

    def learn(
        self, journal: Path, answers: Mapping[int, Answer | None], *, may_vanish: bool, may_fail: bool
    ) -> dict[int, str]:
        """Update the model with the jobs that have ended. Returns their ends by server ID."""
        outcomes: dict[int, str] = {}
        for end in model.ends(journal, after=self._seen):
            self._seen = end.row
            expected = self._servers[end.server_id]
            refused = end.code == "disks_differ" and expected.differs(end.tag) and not end.present_only
            refused |= end.code in self._refusals
            refused |= end.live and expected.qemu_was_killed and end.code in WITHOUT_ITS_QEMU
            if end.state == "failed" and not (may_fail or expected.disturbed or refused or end.stranded):
                self._violated(end, f"failed: {end.code}")
            self._learn(expected, end, undoable=not may_vanish)
            outcomes[end.server_id] = f"{outcomes.get(end.server_id, '')} {end.code if refused else end.state}".strip()
        for server_id, answer in answers.items():
            if answer is not None and answer.status < 300 and server_id not in outcomes and not may_vanish:
                self._summary.violations.append(f"server {server_id}: an accepted job has vanished")
        for expected in self._servers.values():
            if (expected.qemu_was_killed or expected.was_started) and not expected.must_run:
                expected.running = self._cell.is_on(expected.server)
        return outcomes

    def _learn(self, expected: Expected, end: End, *, undoable: bool) -> None:
        if end.stranded:
            self._violated(end, f"{end.job_id} is stranded: {end.code}")
        if end.kind == "create":
            if end.snapshot_id in self._given:
                self._violated(end, f"the id {end.snapshot_id} came twice")
            self._given.add(end.snapshot_id)
        if end.kind == "delete":
            expected.snapshots.pop(end.snapshot_id, None)
        if end.kind in OVERWRITING:
            self._learn_of_the_chain(expected, end)
        if end.state != "completed":
            return
        expected.damaged &= end.kind == "delete"
        if end.kind == "create":
            expected.snapshots[end.snapshot_id] = expected.content
            expected.held[end.tag] = frozenset(expected.server.disks)
        elif end.kind in OVERWRITING:
            self._learn_of_a_restore(expected, end)
            expected.undoable = end.job_id if undoable else None

    def _learn_of_a_restore(self, expected: Expected, end: End) -> None:
        before = expected.content
        if expected.differs(end.tag) and not end.present_only:
            self._violated(end, "a part was restored, and called all")
        expected.stayed = {disk: before for disk in expected.server.disks if disk not in expected.holders(end.tag)}
        expected.content = expected.overwrote[end.undoes] if end.undoes else expected.snapshots[end.snapshot_id]
        expected.overwrote[end.job_id] = before
        expected.held[f"{SAFETY_PREFIX}{end.job_id}"] = frozenset(expected.server.disks)

    def _learn_of_the_chain(self, expected: Expected, end: End) -> None:
        """Check that no bitmap remains after a revert and that the end of a backup chain is reported."""
        for disk in [disk for disk in expected.server.disks if expected.bitmaps.get(disk)]:
            left = frozenset[str]() if end.state == "completed" else model.look(disk).bitmaps
            dropped = end.state != "completed" and expected.may_drop_bitmaps and left < expected.bitmaps[disk]
            if left != expected.bitmaps[disk] and not dropped and CHAIN_ENDED not in end.notes:
                self._violated(end, f"{disk.name}: bitmaps went without a word")
            if not dropped:
                expected.bitmaps[disk] = left

    def _violated(self, end: End, what: str) -> None:
        self._summary.violations.append(f"server {end.server_id}: {end.kind}: {what}")
