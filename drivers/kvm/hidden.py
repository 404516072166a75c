"""Files that the worker's systemd unit hides from the worker. Libvirt and QEMU see them, and so does an operator who
runs the survey."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from drivers import image_chain
from drivers.kvm import firmware_xml
from drivers.kvm.disks_xml import VolumePath, disk_path, target_of
from drivers.kvm.places import Places

# By the folder, the option that a drop-in of the unit needs. A test compares them with all options of the unit that
# hide files. /dev/shm stays visible.
OPTIONS = {
    "/home": "ProtectHome=no",
    "/root": "ProtectHome=no",
    "/run/user": "ProtectHome=no",
    "/tmp": "PrivateTmp=no",  # noqa: S108 - not used
    "/var/tmp": "PrivateTmp=no",  # noqa: S108
    "/dev": "PrivateDevices=no",
    "/usr/lib/modules": "ProtectKernelModules=no",
}
_SEEN = "/dev/shm"  # noqa: S108
_LINKS = 40  # the kernel's own limit for one path


def notes(domain: ET.Element, places: Places, volume_path: VolumePath) -> Iterator[str]:
    """A remark for each hidden file that the domain needs. Reads the images, for their backing files."""
    for word, path in _files(domain, places, volume_path):
        way = _way(path) if path.startswith("/") else ()  # libvirt also takes blanks for a path
        needed = {OPTIONS[folder]: folder for step in way for folder in OPTIONS if _is_below(step, folder)}
        for option, folder in needed.items():
            yield f"{word} is below {folder}, which the worker sees only if its unit has {option}: {path}"


def _files(domain: ET.Element, places: Places, volume_path: VolumePath) -> Iterator[tuple[str, str]]:
    for name in ("kernel", "initrd", "dtb", "loader"):
        if path := domain.findtext(f"./os/{name}"):
            yield f"the file of <{name}>", path
    for part in firmware_xml.state(domain, places).parts:
        if part.kind is not firmware_xml.Kind.PFLASH:  # that is the loader
            yield f"the {'folder' if part.folder else 'file'} of {firmware_xml.WORDS[part.kind]}", str(part.path)
    for disk in domain.iterfind("./devices/disk"):
        if path := disk_path(disk, volume_path):
            yield f"the file of {disk.get('device', 'disk')} {target_of(disk)}", path
            for backing, _ in [*image_chain.files(path)][1:]:
                yield f"a backing file of disk {target_of(disk)}", backing


def _way(path: str) -> Iterator[str]:
    """Each symbolic link on the way to the file, and the file: the worker needs to see all of them."""
    at, left, links = "/", path.split("/"), 0
    while left:
        name = left.pop(0)
        step = os.path.normpath(os.path.join(at, name))  # `at` has no links, so `..` is its parent
        if not os.path.islink(step) or links == _LINKS:
            at = step
            continue
        yield step
        links += 1
        target = os.readlink(step)
        at, left = "/" if target.startswith("/") else at, [*target.split("/"), *left]
    yield at


def _is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/") and not f"{path}/".startswith(f"{_SEEN}/")
