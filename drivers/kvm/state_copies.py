"""Copies of a server's small state files (UEFI variables, TPM), one set per snapshot.

They are next to the image of the first disk, as `IMAGE.TAG.nvram`, so that they are moved with the disks. A TPM's
folder is one tar file. Older versions stored the UEFI variables next to the original, as `VARIABLES.TAG`; such copies
are used and deleted like the others.

A copy is only written to and read from a folder in which QEMU's user cannot replace it (ADR 26); otherwise a guest
that has broken out could exchange the copies of two servers.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from drivers import safe_files
from drivers.kvm import state_files
from drivers.kvm.firmware_xml import Kind, StatePart
from drivers.kvm.places import Places
from drivers.kvm.state_archive import packed, unpacked
from drivers.kvm.state_files import MAX_BYTES, NotPlain, Owner
from drivers.safe_files import Stranger, folder

MAX_FILES = 64  # files of a TPM; swtpm has one or two
# bytes of an image's name, so that with tag and suffix, a copy's name stays below the file system's limit of 255
LONGEST_NAME = 140
OUR_TAGS = "vps-"  # only files with such a tag are ours, because others use the folder too
ENDINGS = tuple(f".{kind}" for kind in Kind)
PRIVATE = Owner(uid=os.geteuid(), gid=os.getegid(), mode=0o600)
_OURS = frozenset({0, PRIVATE.uid})  # the owners of copies
_IGNORED = frozenset({".lock"})  # files in a TPM's folder that are not part of its state


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The copies of one server's state files."""

    # images of its disks and of the disks that its snapshots hold; new copies are stored next to the first one
    images: Sequence[Path]
    parts: Sequence[StatePart] = ()
    former: Sequence[Path] = ()  # former paths of its UEFI variables
    places: Places | None = None  # folders of its libvirt, whose owners show which user QEMU runs as

    @cached_property
    def _qemu(self) -> Stranger | None:
        """QEMU's user, to whom libvirt gives the folder of UEFI variables; None if QEMU runs as root or as we do."""
        return safe_files.user_of(self.places.variables) if self.places else None

    @cached_property
    def _image_owner(self) -> Owner | None:
        with suppress(OSError):
            return Owner.of(safe_files.status(self.images[0]))
        return None

    def _owners(self, within: int) -> frozenset[int]:
        """The users who may own a server's state files in the folder."""
        found = {*_OURS, os.fstat(within).st_uid}
        found |= {self._qemu.uid} if self._qemu else set()
        found |= {self._image_owner.uid} if self._image_owner else set()
        return frozenset(found)

    def present(self) -> tuple[StatePart, ...]:
        """The parts whose files exist, which a snapshot taken now would hold besides the disks.

        Raises OSError for a part that cannot be read or copied.
        """
        return tuple(part for part in self.parts if self._is_present(part))

    def refuse_unwritable(self) -> None:
        """Raises OSError if copies could not be written."""
        if self.parts:
            with folder(self.images[0].parent, keep_out=self._qemu) as within:
                _refuse_read_only(within)

    def save(self, tag: str) -> None:
        """Copy each part that exists. Idempotent."""
        for part in self.parts:
            content = self._content(part)
            with folder(self.images[0].parent, keep_out=self._qemu) as within:
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
            if copy is not None and _fits(part, copy) and not self._is_there(part, copy):
                self._put_back(part, copy)

    def refuse_unrestorable(self, tag: str) -> None:
        """Raises OSError if a part could not be restored: no space, or read-only storage."""
        for part in self.parts:
            copy = self._read(tag, part)
            if copy is not None and _fits(part, copy):
                place = next(each for each in part.path.parents if each.is_dir())
                with folder(place) as within:
                    _refuse_read_only(within)
                    storage = os.fstatvfs(within)
                if storage.f_bavail * storage.f_frsize < len(copy):
                    raise NotPlain(f"{place} has too little free space")

    def is_at(self, tag: str) -> bool:
        """Whether each part that has a copy equals it."""
        for part in self.parts:
            copy = self._read(tag, part)
            if copy is not None and not self._same(part, copy):
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
            with suppress(FileNotFoundError), folder(place) as within:
                for name in os.listdir(within):
                    for tag, kind in self._meant(name):
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
                content, _ = state_files.read(there, f"{path.name}.{tag}", owners=self._owners(there))
                with folder(self.images[0].parent, keep_out=self._qemu) as here:
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
        for image in self.images:
            with suppress(FileNotFoundError, NotADirectoryError), folder(image.parent, keep_out=self._qemu) as within:
                name = copy_name(image, tag, part.kind)
                return state_files.read(within, name, owners=_OURS, at_most=2 * MAX_BYTES)[0]
        for path in (part.path, *self.former) if part.kind is Kind.NVRAM else ():
            with suppress(FileNotFoundError, NotADirectoryError), folder(path.parent) as within:
                return state_files.read(within, f"{path.name}.{tag}", owners=self._owners(within))[0]
        return None

    def _put_back(self, part: StatePart, copy: bytes) -> None:
        if part.folder:
            self._put_back_folder(part.path, copy)
            return
        with folder(part.path.parent) as within:
            owned = state_files.owner(within, part.path.name, owners=self._owners(within))
            if owned is None:  # the file was lost; the owner of the disks must be able to open the new one
                image = self._image_owner or PRIVATE
                owned = Owner(uid=image.uid, gid=image.gid, mode=0o600)
            state_files.write(within, part.path.name, copy, owned)

    def _put_back_folder(self, path: Path, copy: bytes) -> None:
        files = unpacked(copy, path.name)
        _, owned = files.pop("", (b"", PRIVATE))
        if not files:
            raise NotPlain("a copy of another TPM")
        _make_folder(path, owned)
        with folder(path) as within:
            for name, (content, of_file) in files.items():
                now = state_files.owner(within, name, owners=self._owners(within))
                state_files.write(within, name, content, now or of_file)
            for name in {*os.listdir(within)} - _IGNORED - files.keys():
                state_files.remove(within, name)
            os.fsync(within)

    # --- one part: a file, or a folder of files ---

    def _is_present(self, part: StatePart) -> bool:
        if part.folder:
            return self._content(part) is not None
        with folder(part.path.parent) as within:
            return state_files.owner(within, part.path.name, owners=self._owners(within)) is not None

    def _content(self, part: StatePart) -> bytes | None:
        """The content of a copy of the part; None if the part does not exist."""
        if part.folder:
            files = self._files(part.path)
            return packed(part.path.name, Owner.of(safe_files.status(part.path)), files) if files else None
        try:
            with folder(part.path.parent) as within:
                return state_files.read(within, part.path.name, owners=self._owners(within))[0]
        except FileNotFoundError:
            return None

    def _files(self, path: Path) -> dict[str, tuple[bytes, Owner]]:
        """The files of a folder with their owners; empty if it does not exist. Raises NotPlain unless it has only a few
        small files."""
        found = {}
        left = MAX_BYTES
        try:
            with folder(path) as within:
                names = sorted({*os.listdir(within)} - _IGNORED)
                if len(names) > MAX_FILES:
                    raise NotPlain("too many files")
                for name in names:
                    with suppress(FileNotFoundError):  # a running TPM replaces its files
                        found[name] = state_files.read(within, name, owners=self._owners(within), at_most=left)
                        left -= len(found[name][0])
        except FileNotFoundError:
            return {}
        return found

    def _same(self, part: StatePart, copy: bytes) -> bool:
        if not part.folder:
            return self._content(part) == copy
        then = {name: content for name, (content, _) in unpacked(copy, part.path.name).items() if name}
        return then == {name: content for name, (content, _) in self._files(part.path).items()}

    def _is_there(self, part: StatePart, copy: bytes) -> bool:
        with suppress(NotPlain):  # such as a link, which will be replaced
            return self._same(part, copy)
        return False


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
    with suppress(FileNotFoundError, NotADirectoryError), folder(variables.parent) as within:
        for name in os.listdir(within):
            tag = name.removeprefix(f"{variables.name}.")
            if tag != name and tag.startswith(OUR_TAGS) and not tag.endswith((".new", *ENDINGS)):
                yield tag


def _refuse_read_only(within: int) -> None:
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=within):
        raise NotPlain(f"the folder {os.readlink(f'/proc/self/fd/{within}')} cannot be written to")


def _fits(part: StatePart, copy: bytes) -> bool:
    return not part.folder or bool(unpacked(copy, part.path.name))


def _make_folder(path: Path, owned: Owner) -> None:
    """Create the folder with the modes of swtpm: everyone may enter the domain's folder; the one in it is private."""
    _ensure_folder(path.parent)
    with folder(path.parent) as above:
        try:
            os.mkdir(path.name, 0o700, dir_fd=above)
        except FileExistsError:
            return
        made = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        if os.fstat(made).st_uid == os.geteuid():  # otherwise it is not the created folder
            os.fchown(made, owned.uid, owned.gid)
            os.fchmod(made, owned.mode & 0o777)
    finally:
        os.close(made)


def _ensure_folder(path: Path) -> None:
    try:
        with folder(path):
            return
    except FileNotFoundError:
        _ensure_folder(path.parent)
    with folder(path.parent) as above, suppress(FileExistsError):
        os.mkdir(path.name, 0o711, dir_fd=above)
