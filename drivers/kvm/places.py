"""libvirt's default folders for files that domain XML does not name: UEFI variables and emulated TPMs' state.

From libvirt's `qemu_conf.c` (virQEMUDriverConfigNew), the same in 9.0 and later. qemu.conf cannot change them.
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
    """The folders of the libvirt at this URI, which must run on this machine."""
    address = urlsplit(uri)
    options = parse_qs(address.query)
    if address.path == "/embed":
        return _below(Path(options["root"][0], "lib"))
    if address.path == "/session" and os.geteuid():
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "libvirt", "qemu")
        return Places(variables=folder / "nvram", tpms=folder / "swtpm")
    return _of_socket(Path(options.get("socket", ["/run/libvirt/libvirt-sock"])[0]))


def fence_of(uri: str) -> Path | None:
    """A folder that identifies the libvirt at this URI, whatever the spelling; None if it is on another machine."""
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


def pid_files_of(uri: str) -> Path | None:
    """The folder in which the libvirt at this URI keeps NAME.pid of each running domain; None if it is on another
    machine, or a user's own."""
    run, is_session = fence_of(uri), urlsplit(uri).path == "/session" and os.geteuid()
    if run is None or is_session:
        return None
    return run / "run" / "qemu" if urlsplit(uri).path == "/embed" else run / "qemu"


def _of_socket(socket: Path) -> Places:
    """The folders for a socket: PREFIX/var/run/libvirt/libvirt-sock of a libvirt built with another prefix, or
    FOLDER/run/libvirt-sock of one with all its folders in FOLDER."""
    folder = socket.parent
    if folder.name == "run":
        return _below(folder.parent / "lib")
    state = folder.parent.parent if folder.name == "libvirt" and folder.parent.name == "run" else Path("/")
    return SYSTEM if state in {Path("/"), Path("/var")} else _below(state / "lib" / "libvirt")
