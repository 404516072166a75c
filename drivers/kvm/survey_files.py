"""Surveys a folder of domain definitions and images, without libvirt."""

import asyncio
import os
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from drivers import image_chain
from drivers.base import Surveyed
from drivers.kvm import sharing
from drivers.kvm.disks_xml import FileDisk, disk_path
from drivers.kvm.domain_xml import Hardware, hardware, unknown_volume
from drivers.kvm.judgment import judge_disks
from drivers.kvm.sharing import FileId
from drivers.kvm.survey import surveyed_disks
from drivers.qcow2_header import MAGIC

OTHER_IMAGES = frozenset({".img", ".raw", ".vmdk", ".vdi", ".vhd", ".vhdx", ".qed"})
MAX_XML_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class _Place:
    """The file of a disk, CD-ROM or floppy in a definition."""

    path: str  # the path in the definition
    file: Path | None  # where it was found
    is_certain: bool  # found at that path or next to the definition; else the only file of that name in the folder
    is_disk: bool
    is_read_only: bool


@dataclass(frozen=True, kw_only=True)
class _Definition:
    path: Path
    name: str
    uuid: str  # the file's path if the definition has none
    hardware: Hardware
    places: tuple[_Place, ...]

    @property
    def shown(self) -> str:
        return f"{self.name} ({self.path})"

    @cached_property
    def at(self) -> Mapping[str, _Place]:
        return {place.path: place for place in self.places}


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """The definitions and the files that they use, by UUID of the domain, because a domain may have several
    definitions."""

    definitions: tuple[_Definition, ...]
    uses: sharing.Uses
    names: Mapping[str, str]

    def shares_with(self, of: _Definition, disk: FileDisk) -> Iterator[str]:
        """Remarks about other domains that use the disk's file."""
        place = of.at[disk.path]
        if place.file is not None and place.is_certain:
            found = _file_id(place.file)
            same = {uuid for uuid, uses in self.uses.items() if any(each == found for _, each in uses)}
            text = "uses its file as well, or has a disk based on it"
        else:  # definitions of several nodes may have different files at one path
            named = {other.uuid: {each.path for each in other.places} for other in self.definitions}
            same = {uuid for uuid, paths in named.items() if disk.path in paths}
            text = "has a file at the same path: they share it if they are on one node"
        yield from (f"disk {disk.target}: {self.names[uuid]} {text}" for uuid in sorted(same - {of.uuid}))

    def twins(self, of: _Definition) -> Iterator[str]:
        """Remarks about other files that define the same domain."""
        twins = (each for each in self.definitions if each.uuid == of.uuid and each.path != of.path)
        yield from (f"{each.shown} is the same domain, by its UUID; both are counted" for each in twins)


async def survey_folder(path: Path) -> list[Surveyed]:
    """Survey every domain definition in the folder and its subfolders, and every image that is in no definition.

    A disk's image is searched at its path, and then by file name in the folder. Raises OSError.
    """
    folder, unread, images = await asyncio.to_thread(_read, path)
    definitions = [await _of_definition(each, folder) for each in folder.definitions]
    alone = [await _of_image(image) for image in images]
    return [*definitions, *unread, *(found for found in alone if found is not None)]


def _read(path: Path) -> tuple[_Folder, list[Surveyed], list[Path]]:
    """The definitions, the unreadable ones, and the files that may be disk images and are in no definition."""
    files = [*_once(file for file in sorted(path.resolve(strict=True).rglob("*")) if file.is_file())]
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_name[file.name].append(file)
    definitions, unread = [], []
    for file in (file for file in files if file.suffix == ".xml"):
        try:
            found = _definition(file, by_name)
        except (OSError, UnicodeDecodeError, ET.ParseError) as error:
            unread.append(Surveyed(name=str(file), refused=(f"the file is not valid XML: {error}",)))
        else:
            definitions += [found] if found is not None else []
    images = _of_nobody([file for file in files if file.suffix != ".xml"], definitions)
    return _folder(definitions), unread, images


def _once(files: Iterable[Path]) -> Iterator[Path]:
    """The files without symbolic links to other files of the folder, such as those in libvirt's `autostart`."""
    files = [*files]
    own = {file.resolve() for file in files if not file.is_symlink()}
    return (file for file in files if not file.is_symlink() or file.resolve() not in own)


def _definition(file: Path, by_name: Mapping[str, Sequence[Path]]) -> _Definition | None:
    """The definition; None if the XML is not that of a domain."""
    if file.stat().st_size > MAX_XML_BYTES:
        return None
    text = file.read_text()
    root = ET.fromstring(text)  # noqa: S314 - expat loads no external entity and bounds the others
    # also accepts libvirt's status file of a running domain
    element = root if root.tag == "domain" else root.find("./domain") if root.tag == "domstatus" else None
    if element is None:
        return None
    return _Definition(
        path=file,
        name=element.findtext("name") or "unnamed",
        uuid=element.findtext("uuid") or str(file),
        hardware=hardware(text if element is root else ET.tostring(element, encoding="unicode")),
        places=tuple(_places(element, file, by_name)),
    )


def _places(domain: ET.Element, definition: Path, by_name: Mapping[str, Sequence[Path]]) -> Iterator[_Place]:
    for element in domain.iterfind("./devices/disk"):
        if path := disk_path(element, unknown_volume):
            file, is_certain = _where(Path(path), definition, by_name)
            yield _Place(
                path=path,
                file=file,
                is_certain=is_certain,
                is_disk=element.get("device", "disk") == "disk",
                is_read_only=element.find("readonly") is not None,
            )


def _where(path: Path, definition: Path, by_name: Mapping[str, Sequence[Path]]) -> tuple[Path | None, bool]:
    """The file of a disk, and whether that is certain. The file is searched at the path in the definition, then next to
    the definition, then as the only file of its name."""
    if path.is_absolute() and path.is_file():
        return path.resolve(), True
    named = by_name.get(path.name, ())
    for file in named:
        if file.parent == definition.parent:
            return file, True
    return (named[0] if len(named) == 1 else None), False


def _folder(definitions: Sequence[_Definition]) -> _Folder:
    uses: defaultdict[str, set[tuple[sharing.Use, FileId]]] = defaultdict(set)
    for each in definitions:
        certain = [place for place in each.places if place.file and place.is_certain and place.is_disk]
        uses[each.uuid].update(sharing.uses_of((str(place.file), place.is_read_only) for place in certain))
    return _Folder(
        definitions=tuple(definitions),
        uses={uuid: frozenset(found) for uuid, found in uses.items()},
        names={each.uuid: each.shown for each in definitions},
    )


def _of_nobody(files: Iterable[Path], definitions: Iterable[_Definition]) -> list[Path]:
    """The files that are neither in a definition nor a backing file of another image."""
    files = [*files]
    in_definitions = [place.file for each in definitions for place in each.places if place.file is not None]
    taken = {_id(status) for file in in_definitions for _, status in image_chain.files(str(file))}
    taken |= {_id(status) for file in files for _, status in [*image_chain.files(str(file))][1:]}
    return [file for file in files if _file_id(file) not in taken]


def _file_id(file: Path) -> FileId | None:
    with suppress(OSError):
        return _id(file.stat())
    return None


def _id(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino


async def _of_definition(of: _Definition, folder: _Folder) -> Surveyed:
    found = of.hardware
    at = {disk: of.at[disk.path] for disk in found.disks}
    here = {replace(disk, path=str(place.file)): place for disk, place in at.items() if place.file is not None}
    images, refusals = await judge_disks([*here])
    certain = [disk for disk, place in here.items() if place.is_certain]
    shared = await asyncio.to_thread(lambda: [*sharing.shared(certain, of.uuid, folder.uses)])
    away = [f"disk {disk.target}: its image was not found" for disk, place in at.items() if place.file is None]
    return Surveyed(
        name=of.shown,
        disks=surveyed_disks(found.disks, images),
        state=tuple(part.kind for part in found.parts),
        left_out=found.skipped,
        refused=(
            *(text for text in found.troubles if text not in found.away),
            *(str(error) for error in refusals),
            *map(sharing.refusal, shared),
        ),
        not_judged=(*found.away, *away),
        noticed=(*folder.twins(of), *(text for disk in found.disks for text in folder.shares_with(of, disk))),
    )


async def _of_image(path: Path) -> Surveyed | None:
    """The survey of an image; None if the file is not a disk image."""
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
    return Surveyed(name=str(path), disks=surveyed_disks([disk], images), refused=tuple(map(str, refusals)))
