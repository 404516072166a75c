"""Runs a command with what the worker's unit allows: its capabilities, and its view of devices and of the kernel's
files. Needs root. The unit's limits of system calls are not applied, nor are its hidden folders: the tests themselves
may be in one of them."""

import configparser
from pathlib import Path

UNIT = Path(__file__).parents[1] / "deploy" / "systemd" / "vps-snapshots-worker.service"
_READ_ONLY = {
    "ProtectSystem=full": ("/usr", "/etc"),
    "ProtectKernelTunables=yes": ("/proc/sys", "/sys"),
    "ProtectControlGroups=yes": ("/sys/fs/cgroup",),
}
# Debian's kernels have all of these devices.
_DEVICES = """
devices=$(mktemp -d -p /run)
mount -t tmpfs -o mode=755 none "$devices"
mkdir "$devices/shm"
mount --bind /dev/shm "$devices/shm"
for name in null zero full random urandom tty; do
    touch "$devices/$name"
    mount --bind "/dev/$name" "$devices/$name"
done
mount --rbind "$devices" /dev
umount --lazy "$devices"
rmdir "$devices"
"""


def options() -> dict[str, str]:
    # a key may occur several times in a unit, and `%` is systemd's own
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    return dict(unit["Service"])


def with_its_capabilities() -> list[str]:
    allowed = options()["CapabilityBoundingSet"].lower().replace("cap_", "").split()
    bounding_set = ",".join(["-all", *(f"+{name}" for name in allowed)])
    return ["setpriv", f"--bounding-set={bounding_set}", "--inh-caps=-all", "--no-new-privs", "--"]


def confined() -> list[str]:
    """Also with its mounts."""
    found = options()
    lines = ["set -e"]
    if found["ProtectProc"] == "invisible":
        lines.append("mount -t proc -o hidepid=invisible proc /proc")
    if found["PrivateDevices"] == "yes":
        lines.append(_DEVICES)
    for option, folders in _READ_ONLY.items():
        key, _, value = option.partition("=")
        if found[key] == value:
            for folder in folders:
                lines.append(f"mount --rbind {folder} {folder}")
                lines.append(f"mount -o remount,bind,ro {folder}")
    return [
        *("unshare", "--mount", "--propagation", "slave", "--"),
        *("sh", "-c", "\n".join([*lines, 'exec "$@"']), "sh", *with_its_capabilities()),
    ]
