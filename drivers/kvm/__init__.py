"""The driver for libvirt and QEMU; the only place that imports libvirt."""

from drivers.kvm.hypervisor import KvmHypervisor
from drivers.kvm.places import fence_of
from drivers.kvm.survey import survey_libvirt
from drivers.kvm.survey_files import survey_folder

__all__ = ["KvmHypervisor", "fence_of", "survey_folder", "survey_libvirt"]
