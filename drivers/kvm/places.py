"""Where a libvirt keeps what its domains' XML does not name: UEFI variables and the state of emulated TPMs.

From libvirt's `qemu_conf.c` (virQEMUDriverConfigNew), the same in 9.0 and later. No setting of qemu.conf changes it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, kw_only=True)
class Places:
    variables: Path  # NAME_VARS.fd of each domain
    tpms: Path  # UUID/tpm2 or UUID/tpm1.2 of each domain


def _below(folder: Path) -> Places:
    return Places(variables=folder / "qemu" / "nvram", tpms=folder / "swtpm")


SYSTEM = _below(Path("/var/lib/libvirt"))


def places_of(uri: str) -> Places:
    """Of the libvirt at this URI, which runs on this machine."""
    address = urlsplit(uri)
    options = parse_qs(address.query)
    if address.path == "/embed":
        return _below(Path(options["root"][0], "lib"))
    if address.path == "/session" and os.geteuid():
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "libvirt", "qemu")
        return Places(variables=folder / "nvram", tpms=folder / "swtpm")
    return _of_socket(Path(options.get("socket", ["/run/libvirt/libvirt-sock"])[0]))


def fence_of(uri: str) -> Path | None:
    """A folder that is the same for all who use the libvirt at this URI, however they spell it.

    None: it runs on another machine.
    """
    address = urlsplit(uri)
    options = parse_qs(address.query)
    if address.hostname or address.scheme.partition("+")[2] not in {"", "unix"}:
        return None
    if address.path == "/embed":
        return Path(options["root"][0]).resolve()
    if "socket" in options:
        return Path(options["socket"][0]).resolve().parent
    if address.path == "/session" and os.geteuid():
        return Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache", "libvirt").resolve()
    return Path("/run/libvirt").resolve()


def _of_socket(socket: Path) -> Places:
    """PREFIX/var/run/libvirt/libvirt-sock: a libvirt that was built with another prefix keeps its state below it.
    FOLDER/run/libvirt-sock: one whose folders all lie below one."""
    folder = socket.parent
    if folder.name == "run":
        return _below(folder.parent / "lib")
    state = folder.parent.parent if folder.name == "libvirt" and folder.parent.name == "run" else Path("/")
    return SYSTEM if state in {Path("/"), Path("/var")} else _below(state / "lib" / "libvirt")
