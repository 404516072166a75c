"""The driver for libvirt and QEMU; the only place that imports libvirt."""

from drivers.kvm.hypervisor import KvmHypervisor

__all__ = ["KvmHypervisor"]
