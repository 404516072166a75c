"""The domain XML of a guest, with the devices that matter to snapshots."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from deploy.lab.guest import GuestImage

# from Debian's `ovmf`: the firmware, and the empty variables of a new server (540 kB)
UEFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
UEFI_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

# With an emulated CPU, tests of ciphers and random addresses take a fifth of the boot.
# no_timer_check: on a busy machine, the kernel may miss the timer interrupts of an emulated CPU, and panic
_KERNEL_OPTIONS = "console=ttyS0 quiet cryptomgr.notests nokaslr no_timer_check"
# type='qemu': the CPU is emulated (TCG), so that the guest boots even if KVM is missing or broken. It takes 3 s to 5 s.
_DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <metadata>{metadata}</metadata>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>{firmware}{boot}
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    {devices}
    <controller type='usb' model='none'/>
    <serial type='unix'>
      <source mode='bind' path={socket}/>
      <log file={log} append='on'/>
      <target port='0'/>
    </serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A disk or CD-ROM in the domain; its file need not exist."""

    path: Path | None  # None: an empty CD-ROM drive
    format: str = "qcow2"
    cdrom: bool = False
    readonly: bool = False
    shareable: bool = False
    left_out: bool = False  # snapshot='no'
    block: bool = False  # the path is a block device of the host
    sata: bool = False  # on a bus for which the test guest has no driver, so that it does not format the disk
    cache: str | None = None  # libvirt's cache mode: none, writeback, directsync, ...; None: the hypervisor's default


def disk(path: Path, *, cache: str | None = None) -> Device:
    """A plain qcow2 disk."""
    return Device(path=path, cache=cache)


def domain_xml(  # noqa: PLR0913 - keyword arguments for the parts of a server
    name: str,
    devices: Sequence[Device],
    *,
    image: GuestImage | None,
    socket: Path,
    log: Path,
    memory_mib: int | None = None,
    metadata: str = "",
    deaf: bool = False,
    nvram: Path | None = None,
    tpm: bool = False,
    agent: bool = False,
) -> str:
    """The XML to define. Disks become vda, vdb, ... in their order; CD-ROMs, and disks with `sata`, sda, sdb, ...

    `image`: None boots nothing; QEMU starts in 0.2 s, idles, and ignores the power button. `metadata`: elements for
    `<metadata>`. `deaf`: the guest ignores the power button. `nvram`: boot with UEFI and these variables, which libvirt
    creates at the first start. `tpm`: add an emulated TPM; needs swtpm. `agent`: add the channel of a guest agent.
    `memory_mib`: None for enough to boot.
    """
    on_sata = [device for device in devices if device.cdrom or device.sata]
    disks = [device for device in devices if device not in on_sata]
    lines = [_disk_xml(device, f"vd{_letter(index)}", "virtio") for index, device in enumerate(disks)]
    lines += [_disk_xml(device, f"sd{_letter(index)}", "sata") for index, device in enumerate(on_sata)]
    if tpm:
        lines.append("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>")
    if agent:
        target = "<target type='virtio' name='org.qemu.guest_agent.0'/>"
        lines.append(f"<channel type='unix'><source mode='bind'/>{target}</channel>")
    firmware = ""
    if nvram:
        firmware = f"<loader readonly='yes' type='pflash'>{UEFI_CODE}</loader>"
        firmware += f"<nvram template='{UEFI_VARIABLES}'>{escape(str(nvram))}</nvram>"
    return _DOMAIN.format(
        name=escape(name),
        # constant, because libvirt refuses to define an existing name with another UUID
        uuid=uuid.uuid5(uuid.NAMESPACE_URL, f"{socket.parent}/{name}"),
        metadata=metadata,
        memory_mib=memory_mib or (256 if nvram else 128),  # the UEFI firmware does not start with 128 MiB
        machine="q35" if nvram else "pc",
        firmware=firmware,
        boot=_boot_xml(image, deaf=deaf) if image else "",
        devices="\n    ".join(lines),
        socket=quoteattr(str(socket)),
        log=quoteattr(str(log)),
    )


def _boot_xml(image: GuestImage, *, deaf: bool) -> str:
    files = f"<kernel>{escape(str(image.kernel))}</kernel><initrd>{escape(str(image.initrd))}</initrd>"
    return f"{files}<cmdline>{_KERNEL_OPTIONS}{' deaf' if deaf else ''}</cmdline>"


def _disk_xml(device: Device, target: str, bus: str) -> str:
    driver = f"<driver name='qemu' type='{device.format}'"
    if device.cache:
        driver += f" cache='{device.cache}'"
    driver += "/>" if device.cdrom else " discard='unmap'/>"
    kind = "block" if device.block else "file"
    source = f"<source {'dev' if device.block else 'file'}={quoteattr(str(device.path))}/>" if device.path else ""
    flags = ("<readonly/>" if device.readonly else "") + ("<shareable/>" if device.shareable else "")
    what = "cdrom" if device.cdrom else "disk"
    flag = " snapshot='no'" if device.left_out else ""
    return (
        f"<disk type='{kind}' device='{what}'{flag}>{driver}{source}<target dev='{target}' bus='{bus}'/>{flags}</disk>"
    )


def _letter(index: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[index]
