"""Copies of a server's small state files (UEFI variables, TPM), one set for each snapshot.

They lie beside the image of the first disk, `IMAGE.TAG.nvram`, so that they are wherever the disks are. A TPM's folder
is one tar file. Versions before these laid the UEFI variables beside the original, `VARIABLES.TAG`: such copies are
used and deleted like the others.
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
LONGEST_NAME = 140  # bytes of an image's name: with tag and ending the copy's stays below the file system's 255
OUR_TAGS = "vps-"  # with others in the same folder, only such a name says whose copy it is
ENDINGS = tuple(f".{kind}" for kind in Kind)
PRIVATE = Owner(uid=os.geteuid(), gid=os.getegid(), mode=0o600)
_PASSED_OVER = frozenset({".lock"})  # in a TPM's folder: no state


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Where the copies of one server lie."""

    images: Sequence[Path]  # of its disks, and of those that its snapshots hold; new copies lie beside the first
    parts: Sequence[StatePart] = ()
    former: Sequence[Path] = ()  # other places where its UEFI variables may have been

    def present(self) -> tuple[StatePart, ...]:
        """The parts whose files are there: what a snapshot taken now holds beside the disks.

        Raises OSError for one that can't be looked at or copied.
        """
        return tuple(part for part in self.parts if _owner(part) is not None)

    def refuse_unwritable(self) -> None:
        """Raises OSError where no copy could be written."""
        if self.parts and not os.access(self.images[0].parent, os.W_OK | os.X_OK):
            raise NotPlain(f"{self.images[0].parent} can't be written to")

    def save(self, tag: str) -> None:
        """A copy of each part that is there; of one that isn't, none. May be run again."""
        for part in self.parts:
            content = _content(part)
            with folder(self.images[0].parent) as within:
                name = copy_name(self.images[0], tag, part.kind)
                if content is None:
                    state_files.remove(within, name)
                else:
                    state_files.write(within, name, content, PRIVATE)

    def restore(self, tag: str) -> None:
        """Each part of which there is a copy becomes what it was; the others stay. May be run again.

        A part that is there already is left alone: what refuses to take it away refuses to bring it back, too.
        """
        for part in self.parts:
            copy = self._read(tag, part)
            if copy is not None and _fits(part, copy) and not _is_there(part, copy):
                self._put_back(part, copy)

    def refuse_unrestorable(self, tag: str) -> None:
        """Raises OSError where a part could not become what its copy holds: no room, or read-only storage."""
        for part in self.parts:
            copy = self._read(tag, part)
            if copy is not None and _fits(part, copy):
                place = next(each for each in part.path.parents if each.is_dir())
                if not os.access(place, os.W_OK | os.X_OK):
                    raise NotPlain(f"{place} can't be written to")
                storage = os.statvfs(place)
                if storage.f_bavail * storage.f_frsize < len(copy):
                    raise NotPlain(f"{place} has no room")

    def is_at(self, tag: str) -> bool:
        """Whether each part of which there is a copy holds just what the copy holds."""
        for part in self.parts:
            copy = self._read(tag, part)
            if copy is not None and not _same(part, copy):
                return False
        return True

    def unfit(self, tag: str) -> frozenset[Kind]:
        """The parts whose copy is of another thing: a TPM of another version."""
        copies = ((part, self._read(tag, part)) for part in self.parts)
        return frozenset(part.kind for part, copy in copies if copy is not None and not _fits(part, copy))

    def tags(self) -> dict[str, frozenset[Kind]]:
        """Every tag that has a copy, and of what."""
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
        """Every copy of the tag, whatever parts the server has now. None is fine."""
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
        """Bring a copy that an older version laid beside the UEFI variables to where copies lie now, while it is known
        where that is. May be run again; none is fine."""
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
            # lost: whoever may open the disks has to open this
            owned = state_files.owner(within, part.path.name) or Owner(uid=image.uid, gid=image.gid, mode=0o600)
            state_files.write(within, part.path.name, copy, owned)


def copy_name(image: Path, tag: str, kind: Kind) -> str:
    return f"{_image_name(image)}.{tag}.{kind}"


def _image_name(image: Path) -> str:
    name = image.name
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST_NAME else hashlib.sha256(encoded).hexdigest()


def _is_name(tag: str) -> bool:
    """Others' snapshots are called as they like: what is no file's name has no copy."""
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
    """What a copy holds; None where there is nothing yet."""
    if part.folder:
        files = _files(part.path)
        return _packed(part.path, files) if files else None
    try:
        with folder(part.path.parent) as within:
            return state_files.read(within, part.path.name)[0]
    except FileNotFoundError:
        return None


def _files(path: Path) -> dict[str, tuple[bytes, Owner]]:
    """Raises NotPlain for anything else than a few small files."""
    found = {}
    left = MAX_BYTES
    try:
        with folder(path, follow=False) as within:
            names = sorted({*os.listdir(within)} - _PASSED_OVER)
            if len(names) > MAX_FILES:
                raise NotPlain("has too many files")
            for name in names:
                with suppress(FileNotFoundError):  # of a TPM that is in use and has just taken a new file
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


def _entry(name: str, owned: Owner, *, type: bytes) -> tarfile.TarInfo:  # noqa: A002 - tarfile's word
    entry = tarfile.TarInfo(name)
    entry.type, entry.uid, entry.gid, entry.mode = type, owned.uid, owned.gid, owned.mode
    return entry


def _unpacked(copy: bytes, name: str) -> dict[str, tuple[bytes, Owner]]:
    """The files of the folder of that name by their names, "" for the folder itself; nothing of another folder."""
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
        raise NotPlain("is no copy of a TPM") from error
    return found


def _fits(part: StatePart, copy: bytes) -> bool:
    return not part.folder or bool(_unpacked(copy, part.path.name))


def _put_back_folder(path: Path, copy: bytes) -> None:
    files = _unpacked(copy, path.name)
    _, owned = files.pop("", (b"", PRIVATE))
    if not files:
        raise NotPlain("is a copy of another TPM")
    _make_folder(path, owned)
    with folder(path, follow=False) as within:
        for name, (content, of_file) in files.items():
            state_files.write(within, name, content, state_files.owner(within, name) or of_file)
        for name in {*os.listdir(within)} - _PASSED_OVER - files.keys():
            state_files.remove(within, name)
        os.fsync(within)


def _make_folder(path: Path, owned: Owner) -> None:
    """As swtpm's: that of the domain can be entered by all, the one within is its own."""
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
    with suppress(NotPlain):  # a link, say: it is replaced
        return _same(part, copy)
    return False
