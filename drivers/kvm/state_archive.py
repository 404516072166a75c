"""The copy of a TPM's folder: its files with their owners, as one tar file."""

import io
import tarfile
from collections.abc import Mapping

from drivers.kvm.state_files import NotPlain, Owner


def packed(name: str, owned: Owner, files: Mapping[str, tuple[bytes, Owner]]) -> bytes:
    """The archive of the folder of that name and owner."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_entry(name, owned, type=tarfile.DIRTYPE))
        for file, (content, of_file) in files.items():
            entry = _entry(f"{name}/{file}", of_file, type=tarfile.REGTYPE)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _entry(name: str, owned: Owner, *, type: bytes) -> tarfile.TarInfo:  # noqa: A002 - tarfile's name
    entry = tarfile.TarInfo(name)
    entry.type, entry.uid, entry.gid, entry.mode = type, owned.uid, owned.gid, owned.mode
    return entry


def unpacked(copy: bytes, name: str) -> dict[str, tuple[bytes, Owner]]:
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
