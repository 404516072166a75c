"""The records of snapshots in a domain's metadata: read back unchanged, whatever others have edited."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.base import Contents, Firmware, HeldDisk, SkippedDisk, SnapshotSpec
from tests.conftest import needs_module

needs_module("libvirt")

from drivers.kvm import records  # noqa: E402 - only where there is a libvirt

SPEC = SnapshotSpec(tag="vps-7", name="before", description="", created_at=datetime(2025, 1, 15, 1, 2, 3, 4000, UTC))
DISK = HeldDisk(target="vda", path="/d/a.qcow2", virtual_bytes=64 << 20, stamp="1764230400.123456789")
RECORD = records.Record(
    spec=SPEC,
    contents=Contents(
        disks=(DISK,),
        left_out=(SkippedDisk(target="sda", reason="it is a cdrom"),),
        firmware=Firmware.UEFI,
        nvram=True,
        consistency="agent_frozen",
        tpm=True,
    ),
)
ANY_TEXT = st.text(max_size=100)


@settings(deadline=None)
@given(name=ANY_TEXT, description=ANY_TEXT, path=ANY_TEXT, reason=ANY_TEXT)
def test_any_text_is_read_back_as_it_was(name: str, description: str, path: str, reason: str) -> None:
    record = records.Record(
        spec=replace(SPEC, name=name, description=description),
        contents=replace(
            RECORD.contents,
            disks=(replace(DISK, path=path),),
            left_out=(SkippedDisk(target="vdb", reason=reason),),
        ),
    )
    xml = records.with_record(None, record)
    ET.fromstring(xml.encode())  # noqa: S314 - our own
    assert records.read(xml) == {"vps-7": record}


@pytest.mark.parametrize(
    "text", ["a\rb", "a\r\nb", " blanks ", "\n", "\0", "]]>", "<&\"'", "🎉", "\ud800", "\ufffe", ""]
)
def test_hostile_texts_too(text: str) -> None:
    record = replace(RECORD, spec=replace(SPEC, name=text, description=text))
    assert records.read(records.with_record(None, record)) == {"vps-7": record}


@pytest.mark.parametrize(
    "entry",
    [
        "<snapshot/>",
        "<snapshot tag='vps-8'/>",
        "<snapshot tag='vps-8' created='yesterday'/>",
        "<snapshot tag='vps-8' created='0001-01-01T00:00:00+14:00'/>",
        "<snapshot tag='vps-8' created='2025-01-15'><disk bytes='many'/></snapshot>",
        "<snapshot tag='vps-8' created='2025-01-15'><disk bytes='-1'/></snapshot>",
        f"<snapshot tag='vps-8' created='2025-01-15'><disk bytes='{'9' * 5000}'/></snapshot>",
        "<snapshot tag='vps-8' created='2025-01-15'><disk bytes='1' stamp='../etc'/></snapshot>",
        "<snapshot tag='vps-8' created='2025-01-15'><name form='json'>{</name></snapshot>",
        "<snapshot tag='vps-8' created='2025-01-15' firmware='coreboot'/>",
        f"<snapshot tag='vps-8' created='2025-01-15'><name form='json'>{'[' * 100_000}</name></snapshot>",
        "<other/>",
        "<!-- by hand -->",
        "text",
    ],
)
def test_unreadable_entries_break_nothing_and_stay(entry: str) -> None:
    xml = records.with_record(None, RECORD).replace("</snapshots>", f"{entry}</snapshots>")
    assert records.read(xml) == {"vps-7": RECORD}
    other = replace(RECORD, spec=replace(SPEC, tag="vps-9"))
    more = records.with_record(xml, other)
    assert set(records.read(more)) == {"vps-7", "vps-9"}
    assert records.read(records.without_record(more, "vps-9")) == {"vps-7": RECORD}


@pytest.mark.parametrize("xml", [None, "", "<", "<server/>", "<snapshots/>"])
def test_nothing_or_something_else_is_no_record(xml: str | None) -> None:
    assert records.read(xml) == {}
    assert records.without_record(xml, "vps-7") is None
    assert records.read(records.with_record(xml, RECORD)) == {"vps-7": RECORD}


def test_a_record_is_written_once_and_the_last_one_takes_the_element_along() -> None:
    again = replace(RECORD, spec=replace(SPEC, name="after"))
    xml = records.with_record(records.with_record(None, RECORD), again)
    assert records.read(xml) == {"vps-7": again}
    assert records.without_record(xml, "vps-7") is None


def test_a_prefix_is_no_matter() -> None:
    xml = records.with_record(None, RECORD)
    prefixed = xml.replace("</", "</v:").replace("<", "<v:").replace("<v:/v:", "</v:")
    prefixed = prefixed.replace("<v:snapshots", f"<v:snapshots xmlns:v='{records.NAMESPACE}'", 1)
    assert records.read(prefixed) == {"vps-7": RECORD}


def test_entries_without_end_are_read_up_to_a_bound() -> None:
    xml = "<snapshots>" + "<snapshot tag='vps-8' created='2025-01-15'/>" * 100_000 + "</snapshots>"
    assert len(records.read(xml)) == 1
