"""Renders the survey as text and as JSON."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from drivers.base import Surveyed, SurveyedDisk

STATE = {"nvram": "UEFI variables", "pflash": "writable firmware", "tpm": "TPM state"}
VERDICTS = {True: "can be snapshotted", False: "cannot be snapshotted", None: "cannot be checked: image not found"}
SUMMARY = (
    "Servers: {servers}. Can be snapshotted: {can_be_snapshotted}. Refused: {refused}. Image not found: {not_judged}."
    " With parts left out: {left_out}."
)


def as_json(surveyed: Sequence[Surveyed]) -> str:
    servers = [{**asdict(server), "can_be_snapshotted": _verdict(server)} for server in surveyed]
    return json.dumps({"servers": servers, "summary": _counts(surveyed)}, indent=2)


def as_text(surveyed: Sequence[Surveyed]) -> str:
    lines = [line for server in surveyed for line in _lines(server)]
    return "\n".join([*lines, SUMMARY.format(**_counts(surveyed))])


def _verdict(server: Surveyed) -> bool | None:
    if server.refused:
        return False
    return None if server.not_judged else True


def _counts(surveyed: Sequence[Surveyed]) -> dict[str, int]:
    verdicts = Counter(map(_verdict, surveyed))
    return {
        "servers": len(surveyed),
        "can_be_snapshotted": verdicts[True],
        "refused": verdicts[False],
        "not_judged": verdicts[None],
        "left_out": sum(bool(server.left_out) for server in surveyed),
    }


def _lines(server: Surveyed) -> Iterator[str]:
    adopted = "" if server.server_id is None else f", server {server.server_id}"
    yield f"{_printable(server.name)}{adopted}: {VERDICTS[_verdict(server)]}"
    for text in server.refused:
        yield f"  refused   {_printable(text)}"
    for text in server.not_judged:
        yield f"  not here  {_printable(text)}"
    for disk in server.disks:
        yield f"  holds     {_printable(_disk(disk))}"
    for part in server.state:
        yield f"  holds     {STATE.get(part, part)}"
    for skipped in server.left_out:
        yield f"  left out  {_printable(f'{skipped.target}: {skipped.reason}')}"
    for text in server.noticed:
        yield f"  note      {_printable(text)}"


def _disk(disk: SurveyedDisk) -> str:
    size = "" if disk.virtual_bytes is None else f", {disk.virtual_bytes / (1 << 30):.1f} GiB"
    more = f", {disk.snapshots} snapshots" if disk.snapshots else ""
    more += f", {disk.bitmaps} dirty bitmaps" if disk.bitmaps else ""
    return f"disk {disk.target}{size}{more}: {disk.path}"


def _printable(text: str) -> str:
    """The text as one line without control characters, because anyone may have chosen the names and paths in it."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)
