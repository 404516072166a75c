"""Volumes of storage pools that a test's libvirt cannot have: LVM, iSCSI and Ceph."""

from typing import Any

import libvirt
import pytest

from drivers.kvm.disks_xml import NoVolumeFile, VolumeAway
from drivers.kvm.volumes import paths_by


class Pools:
    """The part of a libvirt connection that is used: one active pool with one volume of this kind."""

    def __init__(self, kind: int) -> None:
        self._kind = kind

    def storagePoolLookupByName(self, _name: str) -> Any:  # noqa: N802 - libvirt's name
        return self

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return 1

    def storageVolLookupByName(self, _name: str) -> Any:  # noqa: N802 - libvirt's name
        return self

    def info(self) -> list[int]:
        return [self._kind, 0, 0]

    def path(self) -> str:
        return "/dev/vg/lv"


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (libvirt.VIR_STORAGE_VOL_BLOCK, "block"),  # pools of type logical, disk, iscsi, mpath
        (libvirt.VIR_STORAGE_VOL_NETWORK, "network"),  # rbd, gluster
        (libvirt.VIR_STORAGE_VOL_DIR, "dir"),
        (99, "99"),
    ],
)
def test_a_volume_that_is_not_a_file_is_named_by_its_kind(kind: int, word: str) -> None:
    with pytest.raises(NoVolumeFile, match=f"is not a file but of type {word}, which cannot be snapshotted"):
        paths_by(Pools(kind))("vg", "lv")


def test_a_file_is_where_libvirt_says() -> None:
    assert paths_by(Pools(libvirt.VIR_STORAGE_VOL_FILE))("images", "v1") == "/dev/vg/lv"


class Silent:
    """A libvirt whose storage daemon does not answer; `alive`: whether libvirt itself does."""

    def __init__(self, *, alive: bool) -> None:
        self._alive = alive

    def isAlive(self) -> int:  # noqa: N802 - libvirt's name
        return int(self._alive)

    def storagePoolLookupByName(self, _name: str) -> Any:  # noqa: N802 - libvirt's name
        raise libvirt.libvirtError("Failed to connect socket to virtstoraged-sock")


def test_a_storage_daemon_that_does_not_answer_hides_a_file_and_ends_nothing_else() -> None:
    with pytest.raises(VolumeAway, match="is not responding"):
        paths_by(Silent(alive=True))("images", "v1")
    with pytest.raises(libvirt.libvirtError):
        paths_by(Silent(alive=False))("images", "v1")
