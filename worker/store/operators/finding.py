"""The operators' search: objects by ID or name, and a snapshot with its history."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.store import records
from worker.store.model import AccountId, JobId, ServerId, Snapshot, SnapshotId

HITS_MOST = 20  # matches of each kind
KINDS = ("server", "snapshot", "job", "account", "node", "token", "request")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A match. `exact`: the text is its ID or name, or the first digits of a job's ID."""

    kind: str  # one of KINDS
    id: str
    name: str
    account_id: AccountId | None
    server_id: ServerId | None
    state: str
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Happening:
    """An entry of a snapshot's history. `token` None: not a request, or an earlier version did not record the token."""

    what: str
    at: datetime
    token: str | None
    token_name: str | None
    request_id: str | None
    job_id: JobId | None
    schedule_id: str | None


@dataclass(frozen=True, kw_only=True)
class KnownSnapshot:
    """A snapshot and its history. `record` None: the snapshot is gone."""

    id: SnapshotId
    record: Snapshot | None
    status: str
    name: str
    server_id: ServerId | None
    account_id: AccountId | None
    created_at: datetime | None
    history: tuple[Happening, ...]  # oldest first


def asked(text: str) -> tuple[str, str]:
    """Split a search into the kind in front ("snapshot 801"), or "", and the rest."""
    words = " ".join(text.split())
    kind, _, rest = words.replace(":", " ", 1).partition(" ")
    return (kind.lower(), rest.strip()) if rest and kind.lower() in KINDS else ("", words)


def hit(row: Sequence[bytes]) -> Hit:
    kind, found_id, name, account, server, state, exact = map(records.text, row)
    return Hit(
        kind=kind,
        id=found_id,
        name=name,
        account_id=AccountId(records.whole(account)) if account else None,
        server_id=ServerId(records.whole(server)) if server else None,
        state=state,
        exact=bool(exact),
    )


def key_of_hit(row: Sequence[bytes]) -> str:
    return f"{records.text(row[0])}:{records.text(row[1])}"


def known_snapshot(shown: list[Any]) -> KnownSnapshot:
    raw_id, found, entries = shown
    snapshot_id = SnapshotId(int(raw_id))
    key, none = f"snapshot:{snapshot_id}:history", list[tuple[Happening, dict[str, str]]]()
    parsed = records.part(_parsed, entries, key=key, otherwise=none)
    history = tuple(happening for happening, _ in parsed)
    if found:
        record = records.snapshot(snapshot_id, records.pairs(found[1]), records.text(found[2]))
        return KnownSnapshot(
            id=snapshot_id,
            record=record,
            status=str(record.status),
            name=record.name,
            server_id=record.server_id,
            account_id=record.account_id,
            created_at=record.created_at,
            history=history,
        )
    last = parsed[-1][1] if parsed else {}
    return KnownSnapshot(
        id=snapshot_id,
        record=None,
        status="deleted",
        name=last.get("name", ""),
        server_id=ServerId(int(last["server"])) if "server" in last else None,
        account_id=AccountId(int(last["account"])) if "account" in last else None,
        created_at=records.moment(last["created_ms"]) if "created_ms" in last else None,
        history=history,
    )


def _parsed(entries: Sequence[bytes]) -> list[tuple[Happening, dict[str, str]]]:
    return [(_happening(entry), entry) for entry in map(json.loads, entries)]


def _happening(entry: dict[str, str]) -> Happening:
    job_id = entry.get("job")
    return Happening(
        what=str(entry["what"]),
        at=records.moment(entry["ms"]),
        token=entry.get("token"),
        token_name=entry.get("token_name"),
        request_id=entry.get("request") or None,
        job_id=JobId(job_id) if job_id else None,
        schedule_id=entry.get("schedule"),
    )
