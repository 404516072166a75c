"""The records of our snapshots: one element in the domain's metadata, which is migrated with the domain.

They are not in libvirt's snapshot list because a domain with an entry there cannot be migrated. People and other tools
may edit the element: an unreadable entry does not affect the others, and is kept when another is written.
"""

import json
import re
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from drivers.base import Contents, Firmware, HeldDisk, SkippedDisk, SnapshotSpec

NAMESPACE = "https://vps-snapshots.dev/libvirt/snapshots/1"
PREFIX = "vpss"

ENTRIES_MAX = 200  # read per domain; a server has 5, a safety snapshot, and leftovers of failed deletes
DISKS_MAX = 100  # read per entry
TEXT_MAX = 10_000  # characters per text; the API allows a tenth of it
BYTES_MAX = (1 << 63) - 1  # size of a disk, QEMU's limit
_STAMP = re.compile(r"[0-9]{1,10}\.[0-9]{9}")
_WORD = re.compile(r"[a-z][a-z_]{0,31}")
# Any other text is written as JSON, because XML does not preserve control characters, lone surrogates, and
# leading or trailing spaces, which libvirt treats as indentation.
_SURVIVES = re.compile(r"[\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of one snapshot."""

    spec: SnapshotSpec
    contents: Contents

    @classmethod
    def read(cls, element: ET.Element) -> Self:
        """Raises ValueError if the element is invalid."""
        tag = element.get("tag", "")
        if not tag:
            raise ValueError("the entry has no tag")
        spec = SnapshotSpec(
            tag=tag[:TEXT_MAX],
            name=_text(element, "name"),
            description=_text(element, "description"),
            created_at=_moment(element.get("created", "")),
        )
        contents = Contents(
            disks=tuple(_held_disk(disk) for disk in _children(element, "disk")[:DISKS_MAX]),
            left_out=tuple(
                SkippedDisk(target=_attribute(skipped, "target"), reason=_attribute(skipped, "reason"))
                for skipped in _children(element, "left-out")[:DISKS_MAX]
            ),
            firmware=Firmware(element.get("firmware", Firmware.BIOS)),
            nvram=element.get("nvram") == "yes",
            tpm=element.get("tpm") == "yes",
            consistency=_word(element.get("consistency")),
        )
        return cls(spec=spec, contents=contents)

    def element(self) -> ET.Element:
        spec, contents = self.spec, self.contents
        created = spec.created_at.astimezone(UTC).isoformat()
        element = ET.Element("snapshot", {"tag": spec.tag, "created": created, "firmware": contents.firmware})
        for part in ("nvram", "tpm"):
            if getattr(contents, part):
                element.set(part, "yes")
        if contents.consistency is not None:
            element.set("consistency", contents.consistency)
        _add_text(element, "name", spec.name)
        _add_text(element, "description", spec.description)
        for disk in contents.disks:
            about = {"target": disk.target, "path": disk.path, "bytes": str(disk.virtual_bytes), "stamp": disk.stamp}
            _add(element, "disk", about if disk.base is None else {**about, "base": disk.base})
        for skipped in contents.left_out:
            _add(element, "left-out", {"target": skipped.target, "reason": skipped.reason})
        return element


def read(xml: str | None) -> dict[str, Record]:
    """The records by tag; invalid ones are skipped."""
    found: dict[str, Record] = {}
    for element in _entries(_root(xml)):
        with suppress(ValueError):
            record = Record.read(element)
            found.setdefault(record.spec.tag, record)
    return found


def with_record(xml: str | None, record: Record) -> str:
    """The element with this record added; it replaces one with the same tag."""
    root = _root(xml)
    _drop(root, record.spec.tag)
    root.append(record.element())
    return ET.tostring(root, encoding="unicode")


def without_record(xml: str | None, tag: str) -> str | None:
    """The element without the record of this tag; None if it would be empty."""
    root = _root(xml)
    _drop(root, tag)
    return ET.tostring(root, encoding="unicode") if len(root) else None


def _root(xml: str | None) -> ET.Element:
    """The parsed element; an empty one if the XML is not ours."""
    with suppress(ET.ParseError):
        root = ET.fromstring(xml or "")  # noqa: S314 - libvirt's own output
        if _name(root) == "snapshots":
            root.tag = "snapshots"
            return root
    return ET.Element("snapshots")


def _entries(root: ET.Element) -> list[ET.Element]:
    return _children(root, "snapshot")[:ENTRIES_MAX]


def _drop(root: ET.Element, tag: str) -> None:
    for element in _children(root, "snapshot"):
        if element.get("tag") == tag:
            root.remove(element)


def _children(element: ET.Element, name: str) -> list[ET.Element]:
    return [child for child in element if _name(child) == name]


def _name(element: ET.Element) -> str:
    # in ElementTree, the tag of a comment is a function
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _word(text: str | None) -> str | None:
    return text if text is not None and _WORD.fullmatch(text) else None


def _held_disk(element: ET.Element) -> HeldDisk:
    virtual_bytes = int(element.get("bytes", "0")[:20])
    stamp = element.get("stamp", "")
    if not 0 <= virtual_bytes <= BYTES_MAX or not (stamp == "" or _STAMP.fullmatch(stamp)):
        raise ValueError("a disk's size or stamp is invalid")
    return HeldDisk(
        target=_attribute(element, "target"),
        path=_attribute(element, "path"),
        virtual_bytes=virtual_bytes,
        stamp=stamp,
        base=base if (base := element.get("base")) is None else base[:TEXT_MAX],
    )


def _moment(text: str) -> datetime:
    """Parse an ISO 8601 time, in UTC unless it names a zone. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:  # within hours of the smallest or largest datetime
        raise ValueError("a time is out of range") from error


def _add(parent: ET.Element, name: str, about: dict[str, str]) -> None:
    element = ET.SubElement(parent, name)
    for attribute, text in about.items():
        element.set(*_written(attribute, text))


def _attribute(element: ET.Element, name: str) -> str:
    return _unwritten(element.get(name), element.get(f"{name}-json"))


def _add_text(parent: ET.Element, name: str, text: str) -> None:
    form, written = _written("text", text)
    element = ET.SubElement(parent, name, {} if form == "text" else {"form": "json"})
    element.text = written


def _text(parent: ET.Element, name: str) -> str:
    for element in _children(parent, name):
        is_json = element.get("form") == "json"
        return _unwritten(None if is_json else element.text or "", element.text if is_json else None)
    return ""


def _written(name: str, text: str) -> tuple[str, str]:
    if _SURVIVES.fullmatch(text) and text == text.strip():
        return name, text
    return f"{name}-json", json.dumps(text)


def _unwritten(plain: str | None, as_json: str | None) -> str:
    """The inverse of `_written`. Raises ValueError."""
    if as_json is None:
        return (plain or "")[:TEXT_MAX]
    try:
        text = json.loads(as_json)
    except RecursionError as error:
        raise ValueError("a text is nested too deeply") from error
    if not isinstance(text, str):
        raise ValueError("a text is not a string")  # noqa: TRY004 - like every other invalid value
    return text[:TEXT_MAX]
