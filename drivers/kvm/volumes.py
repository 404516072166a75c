"""Volumes of libvirt's storage pools, to which `<disk type='volume'>` refers (as terraform-provider-libvirt does)."""

from collections.abc import Callable
from typing import Any

import libvirt

from drivers.kvm.disks_xml import NoVolumeFile, VolumeAway

_KINDS = {
    libvirt.VIR_STORAGE_VOL_BLOCK: "block",
    libvirt.VIR_STORAGE_VOL_DIR: "dir",
    libvirt.VIR_STORAGE_VOL_NETWORK: "network",
    libvirt.VIR_STORAGE_VOL_NETDIR: "netdir",
    libvirt.VIR_STORAGE_VOL_PLOOP: "ploop",
}
_ANSWERS = {
    libvirt.VIR_ERR_NO_STORAGE_POOL: "is in a storage pool that the hypervisor does not know",
    libvirt.VIR_ERR_NO_STORAGE_VOL: "names a volume that its storage pool does not have",
    libvirt.VIR_ERR_OPERATION_INVALID: "is in a storage pool that is not active",
    libvirt.VIR_ERR_NO_SUPPORT: "is in a storage pool, which this hypervisor does not support",
}


def paths_by(connection: Any) -> Callable[[str, str], str]:
    """A function that asks this libvirt for a volume's path, by the names of pool and volume."""

    def path(pool: str, volume: str) -> str:
        try:
            found = connection.storagePoolLookupByName(pool)
            if not found.isActive():
                raise VolumeAway(_ANSWERS[libvirt.VIR_ERR_OPERATION_INVALID])
            file = found.storageVolLookupByName(volume)
            kind, at = file.info()[0], str(file.path())
        except libvirt.libvirtError as error:
            answer = _ANSWERS.get(error.get_error_code())
            if answer is None and not connection.isAlive():
                raise
            raise VolumeAway(answer or "is in a storage pool that is not responding") from error
        if kind != libvirt.VIR_STORAGE_VOL_FILE:
            raise NoVolumeFile(f"is not a file but of type {_KINDS.get(kind, kind)}, which cannot be snapshotted")
        return at

    return path
