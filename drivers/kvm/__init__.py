"""The driver for libvirt and QEMU; the only place that imports libvirt."""

from drivers.kvm.hypervisor import KvmHypervisor
from drivers.kvm.places import fence_of

__all__ = ["KvmHypervisor", "fence_of"]
