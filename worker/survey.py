"""The survey as text and as JSON: for the first day, before a server is adopted."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from drivers.base import Surveyed, SurveyedDisk

STATE = {"nvram": "UEFI variables", "pflash": "writable firmware", "tpm": "TPM state"}


def as_json(surveyed: Sequence[Surveyed]) -> str:
    servers = [{**asdict(server), "can_be_snapshotted": not server.refused} for server in surveyed]
    return json.dumps({"servers": servers, "summary": _counts(surveyed)}, indent=2)


def as_text(surveyed: Sequence[Surveyed]) -> str:
    lines = [line for server in surveyed for line in _lines(server)]
    counts = _counts(surveyed)
    summary = (
        "{servers} surveyed: {can_be_snapshotted} can be snapshotted, {refused} can't; {left_out} leave something out"
    )
    return "\n".join([*lines, summary.format(**counts)])


def _counts(surveyed: Sequence[Surveyed]) -> dict[str, int]:
    refused = sum(bool(server.refused) for server in surveyed)
    return {
        "servers": len(surveyed),
        "can_be_snapshotted": len(surveyed) - refused,
        "refused": refused,
        "left_out": sum(bool(server.left_out) for server in surveyed),
    }


def _lines(server: Surveyed) -> Iterator[str]:
    adopted = "" if server.server_id is None else f", server {server.server_id}"
    verdict = "can't be snapshotted" if server.refused else "can be snapshotted"
    yield f"{_shown(server.name)}{adopted}: {verdict}"
    for text in server.refused:
        yield f"  refused   {_shown(text)}"
    for disk in server.disks:
        yield f"  holds     {_shown(_disk(disk))}"
    for part in server.state:
        yield f"  holds     {STATE.get(part, part)}"
    for skipped in server.left_out:
        yield f"  left out  {_shown(f'{skipped.target}: {skipped.reason}')}"
    for text in server.noticed:
        yield f"  note      {_shown(text)}"


def _disk(disk: SurveyedDisk) -> str:
    size = "" if disk.virtual_bytes is None else f", {disk.virtual_bytes / (1 << 30):.1f} GiB"
    more = f", {disk.snapshots} snapshots" if disk.snapshots else ""
    more += f", {disk.bitmaps} dirty bitmaps" if disk.bitmaps else ""
    return f"disk {disk.target}{size}{more}: {disk.path}"


def _shown(text: str) -> str:
    """On one line, and nothing that a terminal would obey: names and paths are anyone's."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)
