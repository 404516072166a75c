"""Copies of a server's small state files (UEFI variables, TPM), one set per snapshot.

They are next to the image of the first disk, as `IMAGE.TAG.nvram`, so that they are moved with the disks. A TPM's
folder is one tar file. Older versions stored the UEFI variables next to the original, as `VARIABLES.TAG`; such copies
are used and deleted like the others.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from drivers.kvm import state_files
from drivers.kvm.firmware_xml import Kind, StatePart
from drivers.kvm.state_files import MAX_BYTES, NotPlain, Owner, folder

MAX_FILES = 64  # of a TPM; swtpm has one or two
LONGEST_NAME = 140  # bytes of an image's name: with tag and suffix a copy's name stays below the file system's 255
OUR_TAGS = "vps-"  # only files with such a tag are ours: the folder has files of others, too
ENDINGS = tuple(f".{kind}" for kind in Kind)
PRIVATE = Owner(uid=os.geteuid(), gid=os.getegid(), mode=0o600)
_IGNORED = frozenset({".lock"})  # in a TPM's folder: not part of its state


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The copies of one server's state files."""

    images: Sequence[Path]  # of its disks and of those that its snapshots hold; new copies go next to the first
    parts: Sequence[StatePart] = ()
    former: Sequence[Path] = ()  # former paths of its UEFI variables

    def present(self) -> tuple[StatePart, ...]:
        """The parts whose files exist: what a snapshot taken now would hold besides the disks.

        Raises OSError for a part that cannot be read or copied.
        """
        return tuple(part for part in self.parts if _owner(part) is not None)

    def refuse_unwritable(self) -> None:
        """Raises OSError if copies could not be written."""
        if self.parts and not os.access(self.images[0].parent, os.W_OK | os.X_OK):
            raise NotPlain(f"{self.images[0].parent} cannot be written to")

    def save(self, tag: str) -> None:
        """Copy each part that exists. Idempotent."""
        for part in self.parts:
            content = _content(part)
            with folder(self.images[0].parent) as within:
                name = copy_name(self.images[0], tag, part.kind)
                if content is None:
                    state_files.remove(within, name)
                else:
                    state_files.write(within, name, content, PRIVATE)

    def restore(self, tag: str) -> None:
        """Restore each part that has a copy. Idempotent.

        A part that equals its copy is skipped: if its restore has failed, restoring the safety copy would fail, too.
        """
        for part in self.parts:
            copy = self._read(tag, part)
            if copy is not None and _fits(part, copy) and not _is_there(part, copy):
                self._put_back(part, copy)

    def refuse_unrestorable(self, tag: str) -> None:
        """Raises OSError if a part could not be restored: no space, or read-only storage."""
        for part in self.parts:
            copy = self._read(tag, part)
            if copy is not None and _fits(part, copy):
                place = next(each for each in part.path.parents if each.is_dir())
                if not os.access(place, os.W_OK | os.X_OK):
                    raise NotPlain(f"{place} cannot be written to")
                storage = os.statvfs(place)
                if storage.f_bavail * storage.f_frsize < len(copy):
                    raise NotPlain(f"{place} has too little free space")

    def is_at(self, tag: str) -> bool:
        """Whether each part that has a copy equals it."""
        for part in self.parts:
            copy = self._read(tag, part)
            if copy is not None and not _same(part, copy):
                return False
        return True

    def unfit(self, tag: str) -> frozenset[Kind]:
        """The kinds of parts whose copy does not fit them: a TPM of another version."""
        copies = ((part, self._read(tag, part)) for part in self.parts)
        return frozenset(part.kind for part, copy in copies if copy is not None and not _fits(part, copy))

    def tags(self) -> dict[str, frozenset[Kind]]:
        """Every tag that has copies, with their kinds."""
        found: dict[str, frozenset[Kind]] = {}
        for place in {image.parent for image in self.images} if self.parts else ():
            with suppress(FileNotFoundError), os.scandir(place) as entries:
                for entry in entries:
                    for tag, kind in self._meant(entry.name):
                        found[tag] = found.get(tag, frozenset()) | {kind}
        for part in self.parts:
            if part.kind is Kind.NVRAM:
                for tag in _former_tags(part.path):
                    found[tag] = found.get(tag, frozenset()) | {Kind.NVRAM}
        return found

    def delete(self, tag: str) -> None:
        """Delete all copies of the tag, whatever parts the server has now. Idempotent."""
        if not _is_name(tag):
            return
        for image in self.images:
            with suppress(FileNotFoundError, NotADirectoryError), folder(image.parent) as within:
                for kind in Kind:
                    state_files.remove(within, copy_name(image, tag, kind))
        for path in {*self.former, *(part.path for part in self.parts if part.kind is Kind.NVRAM)}:
            with suppress(FileNotFoundError, NotADirectoryError), folder(path.parent) as within:
                state_files.remove(within, f"{path.name}.{tag}")

    def move_former(self, tag: str) -> None:
        """Move a copy that an older version stored next to the UEFI variables to where copies are stored now, while its
        path is known. Idempotent."""
        if not _is_name(tag):
            return
        for path in (*(part.path for part in self.parts if part.kind is Kind.NVRAM), *self.former):
            with suppress(FileNotFoundError, NotADirectoryError), folder(path.parent) as there:
                content, _ = state_files.read(there, f"{path.name}.{tag}")
                with folder(self.images[0].parent) as here:
                    state_files.write(here, copy_name(self.images[0], tag, Kind.NVRAM), content, PRIVATE)
                state_files.remove(there, f"{path.name}.{tag}")

    def _meant(self, name: str) -> Iterable[tuple[str, Kind]]:
        stem, _, kind = name.rpartition(".")
        if kind not in {*Kind}:
            return
        for image in self.images:
            tag = stem.removeprefix(f"{_image_name(image)}.")
            if tag != stem and tag.startswith(OUR_TAGS):
                yield tag, Kind(kind)

    def _read(self, tag: str, part: StatePart) -> bytes | None:
        if not _is_name(tag):
            return None
        places = [(image.parent, copy_name(image, tag, part.kind)) for image in self.images]
        if part.kind is Kind.NVRAM:
            places += [(path.parent, f"{path.name}.{tag}") for path in (part.path, *self.former)]
        for place, name in places:
            with suppress(FileNotFoundError, NotADirectoryError), folder(place) as within:
                return state_files.read(within, name, at_most=2 * MAX_BYTES)[0]
        return None

    def _put_back(self, part: StatePart, copy: bytes) -> None:
        if part.folder:
            _put_back_folder(part.path, copy)
            return
        with folder(self.images[0].parent) as within:
            image = state_files.read_owner(within, self.images[0].name)
        with folder(part.path.parent) as within:
            # if the file was lost, the owner of the disks must be able to open the new one
            owned = state_files.owner(within, part.path.name) or Owner(uid=image.uid, gid=image.gid, mode=0o600)
            state_files.write(within, part.path.name, copy, owned)


def copy_name(image: Path, tag: str, kind: Kind) -> str:
    return f"{_image_name(image)}.{tag}.{kind}"


def _image_name(image: Path) -> str:
    name = image.name
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST_NAME else hashlib.sha256(encoded).hexdigest()


def _is_name(tag: str) -> bool:
    """Whether the tag can be part of a file name. A snapshot of another tool with any other name has no copies."""
    return bool(tag) and "/" not in tag and "\0" not in tag and len(os.fsencode(tag)) <= 255 - LONGEST_NAME - 16


def _former_tags(variables: Path) -> Iterable[str]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(variables.parent) as entries:
        for entry in entries:
            tag = entry.name.removeprefix(f"{variables.name}.")
            if tag != entry.name and tag.startswith(OUR_TAGS) and not tag.endswith((".new", *ENDINGS)):
                yield tag


# --- one part: a file, or a folder of files ---


def _owner(part: StatePart) -> Owner | None:
    if not part.folder:
        with folder(part.path.parent) as within:
            return state_files.owner(within, part.path.name)
    return None if _content(part) is None else PRIVATE


def _content(part: StatePart) -> bytes | None:
    """The content of a copy of the part; None if the part does not exist."""
    if part.folder:
        files = _files(part.path)
        return _packed(part.path, files) if files else None
    try:
        with folder(part.path.parent) as within:
            return state_files.read(within, part.path.name)[0]
    except FileNotFoundError:
        return None


def _files(path: Path) -> dict[str, tuple[bytes, Owner]]:
    """The files of a folder with their owners; empty if it does not exist. Raises NotPlain unless it has only a few
    small files."""
    found = {}
    left = MAX_BYTES
    try:
        with folder(path, follow=False) as within:
            names = sorted({*os.listdir(within)} - _IGNORED)
            if len(names) > MAX_FILES:
                raise NotPlain("too many files")
            for name in names:
                with suppress(FileNotFoundError):  # a running TPM replaces its files
                    found[name] = state_files.read(within, name, at_most=left)
                    left -= len(found[name][0])
    except FileNotFoundError:
        return {}
    return found


def _packed(path: Path, files: dict[str, tuple[bytes, Owner]]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        with folder(path, follow=False) as within:
            tar.addfile(_entry(path.name, Owner.of(os.fstat(within)), type=tarfile.DIRTYPE))
        for name, (content, owned) in files.items():
            entry = _entry(f"{path.name}/{name}", owned, type=tarfile.REGTYPE)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _entry(name: str, owned: Owner, *, type: bytes) -> tarfile.TarInfo:  # noqa: A002 - tarfile's name
    entry = tarfile.TarInfo(name)
    entry.type, entry.uid, entry.gid, entry.mode = type, owned.uid, owned.gid, owned.mode
    return entry


def _unpacked(copy: bytes, name: str) -> dict[str, tuple[bytes, Owner]]:
    """The files in the archived folder of that name, by name; "" is the folder itself."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(copy), mode="r:") as tar:
            for entry in tar:
                top, _, file = entry.name.partition("/")
                if top != name or "/" in file or file in {".", ".."}:
                    continue
                owned = Owner(uid=entry.uid, gid=entry.gid, mode=entry.mode & 0o777)
                if entry.isdir() and not file:
                    found[""] = (b"", owned)
                elif entry.isreg() and file and (content := tar.extractfile(entry)) is not None:
                    found[file] = (content.read(), owned)
    except tarfile.TarError as error:
        raise NotPlain("not a copy of a TPM") from error
    return found


def _fits(part: StatePart, copy: bytes) -> bool:
    return not part.folder or bool(_unpacked(copy, part.path.name))


def _put_back_folder(path: Path, copy: bytes) -> None:
    files = _unpacked(copy, path.name)
    _, owned = files.pop("", (b"", PRIVATE))
    if not files:
        raise NotPlain("a copy of another TPM")
    _make_folder(path, owned)
    with folder(path, follow=False) as within:
        for name, (content, of_file) in files.items():
            state_files.write(within, name, content, state_files.owner(within, name) or of_file)
        for name in {*os.listdir(within)} - _IGNORED - files.keys():
            state_files.remove(within, name)
        os.fsync(within)


def _make_folder(path: Path, owned: Owner) -> None:
    """Create the folder with the modes of swtpm: everyone may enter the domain's folder; the one in it is private."""
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        os.chown(path, owned.uid, owned.gid)
        path.chmod(owned.mode)


def _same(part: StatePart, copy: bytes) -> bool:
    if not part.folder:
        return _content(part) == copy
    then = {name: content for name, (content, _) in _unpacked(copy, part.path.name).items() if name}
    return then == {name: content for name, (content, _) in _files(part.path).items()}


def _is_there(part: StatePart, copy: bytes) -> bool:
    with suppress(NotPlain):  # for example a link, which will be replaced
        return _same(part, copy)
    return False
