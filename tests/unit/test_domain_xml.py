"""What a snapshot holds, leaves out and refuses, decided from a domain's XML without a hypervisor.

Each file in `domains/` begins with the expected result: `holds: vda /path`, `left out: vdb WHY`, `refused: WHY`,
`state: nvram /path`, `backing: vdb=/path:format ends`, `firmware: uefi`, `generation id`.
"""

from pathlib import Path

import pytest

from drivers.base import Firmware
from drivers.kvm.disks_xml import FileDisk, NoVolumeFile
from drivers.kvm.domain_xml import Hardware, hardware
from drivers.kvm.firmware_xml import StatePart
from drivers.kvm.libvirt_xml import escaped, read
from drivers.kvm.places import SYSTEM, Places, pid_files_of, places_of

DOMAINS = sorted((Path(__file__).parent / "domains").glob("*.xml"))
PLACES = Places(variables=Path("/libvirt/qemu/nvram"), tpms=Path("/libvirt/swtpm"))


def volume_path(pool: str, volume: str) -> str:
    if pool == "inactive":
        raise NoVolumeFile("is in a storage pool that is not active")
    if pool == "logical":
        raise NoVolumeFile("is not a file but of type block, which cannot be snapshotted")
    return f"/pool/{pool}/{volume}"


@pytest.mark.parametrize("path", DOMAINS, ids=lambda path: path.stem)
def test_a_domain_is_read_as_its_first_lines_say(path: Path) -> None:
    comment, _, xml = path.read_text().partition("-->\n")
    found = hardware(xml, places=PLACES, volume_path=volume_path)
    assert sorted(verdict(found)) == sorted(comment.splitlines()[1:])


def verdict(found: Hardware) -> list[str]:
    lines = [f"holds: {disk.target} {disk.path}" for disk in found.disks]
    lines += [f"refused: {trouble}" for trouble in found.troubles]
    lines += [f"left out: {skipped.target} {skipped.reason}" for skipped in found.skipped]
    lines += [f"state: {of_part(part)}" for part in found.parts]
    lines += [f"backing: {of_backing(disk)}" for disk in found.disks if disk.backing is not None]
    lines += ["firmware: uefi"] if found.firmware is Firmware.UEFI else []
    return [*lines, "generation id"] if found.generation_id else lines


def of_part(part: StatePart) -> str:
    return f"{part.kind} {part.path}" + (" folder" if part.folder else "") + (" assumed" if part.assumed else "")


def of_backing(disk: FileDisk) -> str:
    files = ",".join(f"{file.path}:{file.format}" for file in disk.backing or ())
    return f"{disk.target}={files}" + (" ends" if disk.backing_ends else "")


def test_every_refusal_is_named_at_once() -> None:
    path = next(path for path in DOMAINS if path.stem == "persistent-memory")
    troubles = hardware(path.read_text()).troubles
    assert ["nvdimm" in troubles[0], "pmem" in troubles[1]] == [True, True]


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "a\rb", "  a  ", 'it\'s > "it"'])
def test_libvirts_escaping_is_read_correctly(text: str) -> None:
    # as libvirt's virBufferEscapeString does: quotes and brackets, but no line breaks
    printed = text.replace("&", "&amp;").replace("'", "&apos;").replace('"', "&quot;").replace(">", "&gt;")
    others = "<!-- it's a\nb --><m><![CDATA[<a b='\n'>]]></m>"
    xml = f"<domain>{others}<name>{printed}</name><source\n file='{printed}'/></domain>"
    domain = read(xml)
    source = domain.find("source")
    assert source is not None
    assert source.get("file") == text
    assert domain.findtext("name") == text
    assert domain.findtext("m") == "<a b='\n'>"
    assert escaped(escaped(xml)) == escaped(xml)


@pytest.mark.parametrize(
    ("uri", "variables", "tpms"),
    [
        ("qemu:///system", SYSTEM.variables, SYSTEM.tpms),
        ("qemu+unix:///system", SYSTEM.variables, SYSTEM.tpms),
        ("qemu+unix:///system?socket=/var/run/libvirt/libvirt-sock", SYSTEM.variables, SYSTEM.tpms),
        ("qemu:///embed?root=/r", Path("/r/lib/qemu/nvram"), Path("/r/lib/swtpm")),
        ("qemu+unix:///system?socket=/f/run/libvirt-sock", Path("/f/lib/qemu/nvram"), Path("/f/lib/swtpm")),
        (
            "qemu+unix:///system?socket=/opt/l/var/run/libvirt/libvirt-sock",
            Path("/opt/l/var/lib/libvirt/qemu/nvram"),
            Path("/opt/l/var/lib/libvirt/swtpm"),
        ),
    ],
)
def test_unnamed_files_are_at_that_libvirts_default_paths(uri: str, variables: Path, tpms: Path) -> None:
    assert places_of(uri) == Places(variables=variables, tpms=tpms)


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("qemu:///system", "/run/libvirt/qemu"),
        ("qemu:///embed?root=/r", "/r/run/qemu"),
        ("qemu+unix:///system?socket=/f/run/libvirt-sock", "/f/run/qemu"),
        ("qemu+ssh://root@other/system", None),
        ("qemu+tcp:///system", None),
    ],
)
def test_the_pid_files_of_a_libvirt_are_in_its_folder(uri: str, folder: str | None) -> None:
    assert pid_files_of(uri) == (Path(folder) if folder else None)
