"""Surveys what snapshots of servers would hold: of the domains of a libvirt, or of a folder of XML and images.

Read-only. Uses the checks of `KvmHypervisor.layout`, except those for temporary conditions: a migration, a backup, a
program that holds a disk.
"""

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import libvirt

from drivers.base import DriverError, Surveyed, SurveyedDisk
from drivers.kvm import connection, domain, listing, readiness, sharing
from drivers.kvm.domain_xml import FileDisk, Hardware, hardware
from drivers.kvm.judgement import judge, judge_disks
from drivers.kvm.places import places_of
from drivers.qcow2_image import Image
from drivers.qcow2_tables import MAGIC

OTHER_IMAGES = frozenset({".img", ".raw", ".vmdk", ".vdi", ".vhd", ".vhdx", ".qed"})
MAX_XML_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A domain, as read from libvirt."""

    name: str
    uuid: str
    server_id: int | None
    hardware: Hardware | None
    refusals: tuple[str, ...]


async def survey_libvirt(uri: str) -> list[Surveyed]:
    """Survey every domain, adopted or not. Raises HypervisorUnavailable."""
    opened = connection.Connection(uri)
    await opened.open()
    try:
        found = await opened.call(lambda handle: [_read(one, uri) for one in handle.listAllDomains(0)])
        uses = await opened.call(sharing.uses)
        return [await _of_domain(one, uses, opened) for one in sorted(found, key=lambda one: one.name)]
    finally:
        await opened.close()


def _read(of: Any, uri: str) -> _Found:
    refusals: list[str] = []
    mark = found = None
    try:
        mark = connection.mark_of(of)
        found = domain.configured_hardware(of, places_of(uri))
        domain.ready_hardware(of, places_of(uri))
    except DriverError as error:
        refusals.append(str(error))
    except libvirt.libvirtError as error:  # the domain has vanished, or a storage pool does not answer
        refusals.append(f"libvirt reports an error: {error}")
    return _Found(
        name=of.name(),
        uuid=of.UUIDString(),
        server_id=mark.server_id if mark else None,
        hardware=found,
        refusals=tuple(refusals),
    )


async def _of_domain(found: _Found, uses: sharing.Uses, of: connection.Connection) -> Surveyed:
    if found.hardware is None:
        return Surveyed(name=found.name, server_id=found.server_id, refused=found.refusals)
    disks = found.hardware.disks
    judged = await judge(found.hardware)
    shared = await asyncio.to_thread(lambda: [*sharing.shared(disks, found.uuid, uses)])
    refusals = (*found.refusals, *map(str, judged.refusals), *map(sharing.refusal, shared))
    if not refusals:
        refusals = await of.call(lambda handle: _stopping_refused(handle, found.uuid, disks, of.uri))
    return Surveyed(
        name=found.name,
        server_id=found.server_id,
        disks=_disks(disks, judged.images),
        state=tuple(part.kind for part in judged.parts),
        left_out=judged.skipped,
        refused=refusals,
    )


def _stopping_refused(handle: Any, uuid: str, disks: Sequence[FileDisk], uri: str) -> tuple[str, ...]:
    """Why a server whose parts can be snapshotted must not be stopped; empty if it may be."""
    try:
        found = handle.lookupByUUIDString(uuid)
        readiness.refuse_unstoppable(found, disks)
        sharing.refuse_overlays(disks, listing.written_down(found, places_of(uri)).ours)
    except DriverError as error:
        return (str(error),)
    except libvirt.libvirtError as error:
        return (f"libvirt reports an error: {error}",)
    return ()


async def survey_folder(folder: Path) -> list[Surveyed]:
    """Survey every domain definition and every image in the folder and its subfolders.

    A disk's image is searched at its path, and then by file name in the folder. Raises OSError.
    """
    files = await asyncio.to_thread(_files, folder)
    seen: set[Path] = set()
    definitions = [await _of_definition(path, files, seen) for path in files if path.suffix == ".xml"]
    images = [await _of_image(path) for path in files if path.suffix != ".xml" and path not in seen]
    return [one for one in (*definitions, *images) if one is not None]


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.resolve(strict=True).rglob("*")) if path.is_file()]


async def _of_definition(path: Path, files: Sequence[Path], seen: set[Path]) -> Surveyed | None:
    """None if the XML is not of a domain. Adds the images of its disks to `seen`."""
    try:
        domain_xml = await asyncio.to_thread(_domain_in, path)
    except (OSError, UnicodeDecodeError, ET.ParseError) as error:
        return Surveyed(name=str(path), refused=(f"the file is not valid XML: {error}",))
    if domain_xml is None:
        return None
    name, text = domain_xml
    found = hardware(text)
    at = {disk: await asyncio.to_thread(_where, Path(disk.path), path, files) for disk in found.disks}
    here = [replace(disk, path=str(file)) for disk, file in at.items() if file is not None]
    seen.update(file for file in at.values() if file is not None)
    images, refusals = await judge_disks(here)
    away = [disk.target for disk, file in at.items() if file is None]
    return Surveyed(
        name=f"{name} ({path})",
        disks=_disks(found.disks, images),
        state=tuple(part.kind for part in found.parts),
        left_out=found.skipped,
        refused=(*found.troubles, *(str(error) for error in refusals)),
        noticed=tuple(f"disk {target}: its image is not here; only its definition was checked" for target in away),
    )


def _where(path: Path, definition: Path, files: Sequence[Path]) -> Path | None:
    """The file of a disk: at the path in the definition, else next to the definition, else the only one of its name."""
    if path.is_file():
        return path.resolve()
    named = [file for file in files if file.name == path.name]
    beside = [file for file in named if file.parent == definition.parent]
    found = beside or named
    return found[0] if len(found) == 1 else None


def _domain_in(path: Path) -> tuple[str, str] | None:
    """The domain's name and definition; also from the status file that libvirt keeps of a running domain."""
    if path.stat().st_size > MAX_XML_BYTES:
        return None
    text = path.read_text()
    root = ET.fromstring(text)  # noqa: S314 - expat loads no external entity and bounds the others
    element = root if root.tag == "domain" else root.find("./domain") if root.tag == "domstatus" else None
    if element is None:
        return None
    return element.findtext("name") or "unnamed", text if element is root else ET.tostring(element, encoding="unicode")


async def _of_image(path: Path) -> Surveyed | None:
    """None if the file is not a disk image."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        return Surveyed(name=str(path), refused=(f"the file cannot be read: {error.strerror}",))
    if magic != MAGIC:
        text = "it is not a qcow2 image, and only qcow2 can be snapshotted"
        return Surveyed(name=str(path), refused=(text,)) if path.suffix in OTHER_IMAGES else None
    disk = FileDisk(target=path.name, path=str(path))
    images, refusals = await judge_disks([disk])
    return Surveyed(name=str(path), disks=_disks([disk], images), refused=tuple(str(error) for error in refusals))


def _disks(disks: Sequence[FileDisk], images: Mapping[FileDisk, Image]) -> tuple[SurveyedDisk, ...]:
    by_target = {disk.target: image for disk, image in images.items()}
    return tuple(_disk(disk, by_target.get(disk.target)) for disk in disks)


def _disk(disk: FileDisk, image: Image | None) -> SurveyedDisk:
    """`image`: None if it is missing or cannot be read."""
    if image is None:
        return SurveyedDisk(target=disk.target, path=disk.path)
    return SurveyedDisk(
        target=disk.target,
        path=disk.path,
        virtual_bytes=image.virtual_bytes,
        snapshots=len(image.tags),
        bitmaps=len(image.bitmaps),
    )
