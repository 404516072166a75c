"""The survey as text and as JSON: for the first day, before a server is adopted."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from drivers.base import Surveyed, SurveyedDisk

STATE = {"nvram": "UEFI variables", "pflash": "writable firmware", "tpm": "TPM state"}
# None: not all of it is here
VERDICTS = {
    True: "can be snapshotted",
    False: "can't be snapshotted",
    None: "can't be judged here: image not found",
}
SUMMARY = (
    "{servers} surveyed: {can_be_snapshotted} can be snapshotted, {refused} can't, {not_judged} can't be judged here"
    " (image not found); {left_out} leave something out"
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
    yield f"{_shown(server.name)}{adopted}: {VERDICTS[_verdict(server)]}"
    for text in server.refused:
        yield f"  refused   {_shown(text)}"
    for text in server.not_judged:
        yield f"  not here  {_shown(text)}"
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
