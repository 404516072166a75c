"""A server's state files other than disks: UEFI variables, a writable firmware, an emulated TPM."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from drivers.base import Firmware
from drivers.kvm.disks_xml import LOST_IN_XML
from drivers.kvm.places import Places

TPM_FOLDERS = {"1.2": "tpm1.2", "2.0": "tpm2"}


class Kind(StrEnum):
    """The kind of a state file; its value is the suffix of the copies."""

    NVRAM = "nvram"
    PFLASH = "pflash"
    TPM = "tpm"


WORDS = {Kind.NVRAM: "the UEFI variables", Kind.PFLASH: "the writable firmware", Kind.TPM: "the state of the TPM"}


@dataclass(frozen=True, kw_only=True)
class StatePart:
    """A state file that is saved and restored with the disks. A TPM's state is usually a folder of files."""

    kind: Kind
    path: Path
    folder: bool = False
    # libvirt chooses the firmware: only the XML of the running domain shows whether this file exists at all.
    assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class State:
    firmware: Firmware
    parts: tuple[StatePart, ...]
    unsupported: tuple[str, ...]


def state(domain: ET.Element, places: Places) -> State:
    """The state files in the XML; does not check whether they exist."""
    unsupported: list[str] = []
    firmware, parts = _firmware(domain, places, unsupported)
    parts += _tpms(domain, places, unsupported)
    for part in list(parts):
        if not part.path.is_absolute():
            unsupported.append(f"the path of {WORDS[part.kind]} is not absolute")
            parts.remove(part)
        elif LOST_IN_XML & {*str(part.path)}:
            unsupported.append(f"the path of {WORDS[part.kind]} contains a line break or a tab")
            parts.remove(part)
    return State(firmware=firmware, parts=tuple(parts), unsupported=tuple(unsupported))


def _firmware(domain: ET.Element, places: Places, unsupported: list[str]) -> tuple[Firmware, list[StatePart]]:
    os = domain.find("./os")
    if os is None:
        return Firmware.BIOS, []
    loader, nvram, store = os.find("loader"), os.find("nvram"), os.find("varstore")
    chosen = os.get("firmware") == "efi"
    flash = loader is not None and loader.get("type") == "pflash"
    if not chosen and not flash and nvram is None and store is None:
        return Firmware.BIOS, []
    parts = []
    writable = flash and loader is not None and loader.get("readonly") != "yes"
    if writable and loader is not None and loader.text:
        parts.append(StatePart(kind=Kind.PFLASH, path=Path(loader.text)))
    kind = "file" if nvram is None else nvram.get("type", "file")
    path = _variables(nvram) or (store.get("path") if store is not None else None)
    if kind != "file":
        unsupported.append(
            f"the server's UEFI variables are not a file but of type {kind}, which cannot be snapshotted"
        )
    elif path:
        parts.append(StatePart(kind=Kind.NVRAM, path=Path(path)))
    elif not writable and (loader is None or loader.get("stateless") != "yes"):
        file = places.variables / f"{domain.findtext('name') or ''}_VARS.fd"
        parts.append(StatePart(kind=Kind.NVRAM, path=file, assumed=chosen))
    return Firmware.UEFI, parts


def _variables(nvram: ET.Element | None) -> str | None:
    if nvram is None:
        return None
    if nvram.get("type") is None:
        return nvram.text  # not stripped, because libvirt keeps leading and trailing spaces
    source = nvram.find("source")
    return None if source is None else source.get("file")


def _tpms(domain: ET.Element, places: Places, unsupported: list[str]) -> list[StatePart]:
    parts: list[StatePart] = []
    for backend in domain.iterfind("./devices/tpm/backend"):
        kind, source = backend.get("type", ""), backend.find("source")
        if kind != "emulator":
            unsupported.append(f"the server has a TPM of type {kind}, whose state cannot be snapshotted")
        elif parts:
            unsupported.append("the server has two emulated TPMs, and only one can be snapshotted")
        elif source is not None and source.get("path"):
            path = Path(source.get("path", ""))
            parts.append(StatePart(kind=Kind.TPM, path=path, folder=source.get("type", "dir") == "dir"))
        elif folder := TPM_FOLDERS.get(backend.get("version", "2.0")):
            path = places.tpms / (domain.findtext("uuid") or "") / folder
            parts.append(StatePart(kind=Kind.TPM, path=path, folder=True))
        else:
            unsupported.append("the server has a TPM of an unknown version, whose state cannot be snapshotted")
    return parts
