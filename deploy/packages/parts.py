"""The contents of each Debian package, and the supported Debian releases."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
HOME = "usr/lib/vps-snapshots"  # each package has its own venv in this folder
CHECKOUT_HOME = "/opt/vps-snapshots/bin/"  # install.sh puts the programs here; units and the hook refer to it


@dataclass(frozen=True, kw_only=True)
class Release:
    """A Debian release, with the versions that determine which Python packages fit."""

    number: str
    python: str
    glibc_minor: int  # minor version of glibc 2
    libvirt: str  # version of libvirt-python in Debian's python3-libvirt

    @property
    def python_minor(self) -> str:
        return self.python.rpartition(".")[0]

    @property
    def depends(self) -> str:
        major, _, minor = self.python_minor.partition(".")
        after = f"{major}.{int(minor) + 1}"
        return f"libc6 (>= 2.{self.glibc_minor}), python3 (>= {self.python_minor}~), python3 (<< {after}~)"


@dataclass(frozen=True, kw_only=True)
class Package:
    side: str  # the name of the venv
    locks: tuple[str, ...]
    programs: tuple[str, ...]
    files: Mapping[str, str]  # maps the path in the package to the path in `deploy`
    has_libvirt: bool = False
    has_completion: bool = False

    @property
    def name(self) -> str:
        return f"vps-snapshots-{self.side}"


RELEASES = {
    "12": Release(number="12", python="3.11.2", glibc_minor=36, libvirt="9.0.0"),
    "13": Release(number="13", python="3.13.5", glibc_minor=41, libvirt="11.3.0"),
}
UNITS = "lib/systemd/system"  # debian/rules moves it to /usr/lib
WORKER_UNIT = "vps-snapshots-worker.service"


def _units() -> list[str]:
    return sorted(file.name for file in (PROJECT / "deploy" / "systemd").glob("vps-snapshots-*"))


PACKAGES = (
    Package(
        side="api",
        locks=("front-end", "tracing"),
        programs=("vps-snapshots-api", "vps-snapshots-gateway"),
        files={f"etc/vps-snapshots/{name}.toml": f"examples/{name}.toml" for name in ("api", "audit", "gateway")}
        | {"usr/share/doc/vps-snapshots-api/examples/haproxy.cfg": "examples/haproxy.cfg"}
        | {f"{UNITS}/{name}": f"systemd/{name}" for name in _units() if name != WORKER_UNIT},
    ),
    Package(
        side="worker",
        locks=("node", "tracing"),
        programs=("vps-snapshots-worker",),
        files={
            "etc/vps-snapshots/worker.toml": "examples/worker.toml",
            "etc/libvirt/hooks/qemu.d/vps-snapshots": "libvirt/hook.sh",
            f"{UNITS}/{WORKER_UNIT}": f"systemd/{WORKER_UNIT}",
            f"{UNITS}/libvirtd.service.d/vps-snapshots.conf": "systemd/libvirtd.conf",
        },
        has_libvirt=True,
    ),
    Package(side="cli", locks=("cli",), programs=("vps-snapshots",), files={}, has_completion=True),
)
