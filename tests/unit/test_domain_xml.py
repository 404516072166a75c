"""What a domain's XML makes us refuse or skip, without a hypervisor."""

import pytest

from drivers.base import UnsupportedServer
from drivers.kvm.domain_xml import Hardware, hardware, refuse_unsupported

PLAIN = "<disk type='file' device='disk'><driver type='qcow2'/><source file='/d/a'/><target dev='vda'/></disk>"


def of(devices: str, *, os: str = "") -> Hardware:
    return hardware(f"<domain><os>{os}</os><devices>{PLAIN}{devices}</devices></domain>")


def _disk(
    *, kind: str = "file", device: str = "disk", form: str = "qcow2", source: str = "file='/d/b'", more: str = ""
) -> str:
    return (
        f"<disk type='{kind}' device='{device}'><driver name='qemu' type='{form}'/><source {source}/>"
        f"<target dev='vdb' bus='virtio'/>{more}</disk>"
    )


@pytest.mark.parametrize(
    ("devices", "named"),
    [
        (_disk(kind="block", source="dev='/dev/vg/lv'"), "vdb"),
        (_disk(kind="network", source="protocol='rbd' name='pool/image'"), "vdb"),
        (_disk(kind="volume", source="pool='p' volume='v'"), "vdb"),
        (_disk(kind="nvme", source="type='pci'"), "vdb"),
        (_disk(kind="vhostuser", source="type='unix'"), "vdb"),
        (_disk(device="lun", kind="block", source="dev='/dev/sdb'"), "vdb"),
        (_disk(form="raw"), "vdb"),
        (_disk(form="vmdk"), "vdb"),
        (_disk(source="startupPolicy='optional'"), "vdb"),
        (_disk(source="file='relative'"), "vdb"),
        (_disk(source="file='/d/a'"), "vd[ab] shares its file"),
        (_disk(more="<transient/>"), "vdb"),
        (_disk(more="<encryption format='luks'/>"), "vdb"),
        ("<disk type='file'><source file='/d/b'/><target dev='vdb'/></disk>", "vdb"),
        ("<tpm model='tpm-crb'><backend type='emulator'/></tpm>", "TPM"),
        ("<memory model='nvdimm'/>", "nvdimm"),
        ("<memory model='virtio-pmem'/>", "pmem"),
        ("<filesystem type='mount'/>", "folder"),
        ("<hostdev mode='subsystem' type='scsi'/>", "SCSI"),
    ],
)
def test_what_no_snapshot_can_hold_is_refused_by_name(devices: str, named: str) -> None:
    with pytest.raises(UnsupportedServer, match=named):
        refuse_unsupported(of(devices))


@pytest.mark.parametrize(
    "devices",
    [
        _disk(device="cdrom", form="raw"),
        _disk(device="floppy", form="raw"),
        _disk(kind="block", form="raw", source="dev='/dev/vg/lv'", more="<readonly/>"),
        _disk(form="raw", more="<shareable/>"),
    ],
)
def test_what_no_snapshot_needs_to_hold_is_skipped_and_named(devices: str) -> None:
    found = of(devices)
    refuse_unsupported(found)
    assert [disk.target for disk in found.disks] == ["vda"]
    assert [skipped.target for skipped in found.skipped] == ["vdb"]


@pytest.mark.parametrize(
    ("os", "path"),
    [
        ("<nvram>/n/a_VARS.fd</nvram>", "/n/a_VARS.fd"),
        ("<nvram template='/t'>/n/a_VARS.fd</nvram>", "/n/a_VARS.fd"),
        ("<nvram type='file'><source file='/n/a_VARS.fd'/></nvram>", "/n/a_VARS.fd"),  # libvirt 8.5 and later
        ("<nvram type='block'><source dev='/dev/vg/nvram'/></nvram>", None),
    ],
)
def test_uefi_variables_are_found_wherever_libvirt_writes_them(os: str, path: str | None) -> None:
    found = of("", os=os)
    assert found.uefi
    assert (str(found.nvram) if found.nvram else None) == path


def test_a_firmware_chosen_by_libvirt_is_uefi_though_its_variables_have_no_file_yet() -> None:
    found = hardware(f"<domain><os firmware='efi'/><devices>{PLAIN}</devices></domain>")
    assert found.uefi
    assert found.nvram is None
