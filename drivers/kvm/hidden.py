"""Files that the worker's systemd unit hides from the worker. Libvirt and QEMU see them, and so does an operator who
runs the survey."""

import os.path
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from drivers import image_chain
from drivers.kvm.disks_xml import VolumePath, disk_path, target_of

# By the folder, the option that a drop-in of the unit needs; a test compares them with the unit. /dev/shm stays
# visible.
OPTIONS = {
    "/home": "ProtectHome=no",
    "/root": "ProtectHome=no",
    "/run/user": "ProtectHome=no",
    "/tmp": "PrivateTmp=no",  # noqa: S108 - not used
    "/var/tmp": "PrivateTmp=no",  # noqa: S108
    "/dev": "PrivateDevices=no",
}
_SEEN = "/dev/shm"  # noqa: S108


def notes(domain: ET.Element, volume_path: VolumePath) -> Iterator[str]:
    """A remark for each hidden file that the domain needs. Reads the images, for their backing files."""
    for word, path in _files(domain, volume_path):
        real = os.path.realpath(path)
        if folder := next((folder for folder in OPTIONS if _is_below(real, folder)), None):
            yield f"{word} is below {folder}, which the worker sees only if its unit has {OPTIONS[folder]}: {path}"


def _files(domain: ET.Element, volume_path: VolumePath) -> Iterator[tuple[str, str]]:
    for name in ("kernel", "initrd", "dtb", "loader", "nvram"):
        if path := domain.findtext(f"./os/{name}"):
            yield f"the file of <{name}>", path
    for disk in domain.iterfind("./devices/disk"):
        if path := disk_path(disk, volume_path):
            yield f"the file of {disk.get('device', 'disk')} {target_of(disk)}", path
            for backing, _ in [*image_chain.files(path)][1:]:
                yield f"a backing file of disk {target_of(disk)}", backing


def _is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/") and not f"{path}/".startswith(f"{_SEEN}/")
