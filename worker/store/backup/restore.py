"""Writes a backup into Redis. Existing data is not changed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from worker.store.access.audit import HEAD
from worker.store.backup.file import BackupFile
from worker.store.backup.rows import Backup, Row, lives_of
from worker.store.calls import Scripts, reading

AT_ONCE = 200  # rows per script call
# Kinds whose records a restore may complete if Redis has lost nothing since the backup. Missing records of other kinds
# were deleted since.
NEVER_REMOVED = frozenset({"server", "snapshot"})
# backups do not contain the lists by object, so the restored log is searched instead
OF_LISTS = {"listed_from", "listed_seq"}


class AuditLogInUse(Exception):
    """The audit log has entries since the loss: a keeper was started before the log was restored."""


class Restore(Scripts):
    """Every call may raise StoreUnavailable, StoreReadOnly, OutcomeUnknown and BackupUnusable, and can be repeated."""

    async def is_empty(self) -> bool:
        """Whether there are no tokens, so that no customer can have changed anything since the loss."""
        return not await reading(lambda: self._redis.exists("tokens"))

    async def has_lost_nothing(self, backup: BackupFile) -> bool:
        """Whether Redis still has the data of the backup, apart from what was deleted since."""
        return backup.life in await lives_of(self._redis)

    async def records(self, backup: BackupFile, *, now_ms: int, removed: bool = True) -> Mapping[str, int]:
        """Write all but the audit log. `now_ms`: Redis's clock. `removed` False: only what cannot have been deleted
        since the backup. Returns the number of rows written, by kind."""
        written: Counter[str] = Counter()
        age_ms = max(0, now_ms - backup.made_ms)
        by_kind: dict[str, list[Row]] = {}

        async def put(kind: str) -> None:
            rows = by_kind.pop(kind)
            ask = {"last_id": backup.last_id, "made_ms": backup.made_ms, "age_ms": age_ms, "rows": rows}
            written[kind] += (await self._call("backup/put_back", ask))[0]

        for row in backup.rows():
            if row["kind"] in {"audit", "audit_head"} or not (removed or row["kind"] in NEVER_REMOVED):
                continue
            rows = by_kind.setdefault(row["kind"], [])
            rows.append(row)
            if len(rows) == AT_ONCE:
                await put(row["kind"])
        for kind in [*by_kind]:
            await put(kind)
        if backup.life:
            await self._call("backup/put_life", {"life": backup.life, "merged": backup.merged})
        else:
            await Backup(self._redis).life()
        return written

    async def audit(self, backup: BackupFile) -> int:
        """Write the audit log, with the Redis account `audit`. Returns the number of entries. Raises AuditLogInUse."""
        rows = (row for row in backup.rows() if row["kind"] == "audit")
        written = 0
        while batch := [*islice(rows, AT_ONCE)]:
            written += await self._put_audit(batch, head=False)
        head = next((row["record"] for row in backup.rows() if row["kind"] == "audit_head"), None)
        kept = {name: text for name, text in (head or {}).items() if name not in OF_LISTS}
        return written + (await self._put_audit((), head=_flat(kept)) if kept else 0)

    async def _put_audit(self, rows: Iterable[Row], *, head: list[str] | bool) -> int:
        entries = [{"id": row["id"], "fields": _flat(row["record"])} for row in rows]
        is_ours, written = await self._call("backup/put_back_audit", {"entries": entries, "head": head})
        if not is_ours:
            raise AuditLogInUse(f"`{HEAD}` has an entry")
        return int(written)


def _flat(record: Mapping[str, Any]) -> list[str]:
    return [text for pair in record.items() for text in pair]
