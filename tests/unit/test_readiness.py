"""What a running server would lose at its next start."""

import xml.etree.ElementTree as ET

import pytest

from drivers.kvm.libvirt_xml import read
from drivers.kvm.readiness import less_with_the_next_start, lost_with_the_next_start

NAMED = "<source><vendor id='0x1234'/><product id='0xabcd'/>{}</source>"
WHERE = "<address bus='1' device='7'/>"


def of(*devices: str) -> ET.Element:
    return read(f"<domain><devices>{''.join(devices)}</devices></domain>")


def usb(source: str) -> str:
    return f"<hostdev mode='subsystem' type='usb'>{source}</hostdev>"


@pytest.mark.parametrize("source", [NAMED, "<source>{}<vendor id='0x1234'/><product id='0xabcd'/></source>"])
def test_a_usb_device_that_is_named_by_its_kind_is_the_same_wherever_it_is_plugged_in(source: str) -> None:
    assert lost_with_the_next_start(of(usb(source.format(WHERE))), of(usb(NAMED.format("")))) is None


@pytest.mark.parametrize(
    "device",
    [
        usb(NAMED.format(WHERE)),
        usb(f"<source>{WHERE}</source>"),
        "<hostdev type='pci'><source><address bus='0x06' slot='0x12'/></source></hostdev>",
    ],
)
def test_a_device_of_the_host_that_only_runs_would_be_lost(device: str) -> None:
    assert lost_with_the_next_start(of(device), of()) == "a device of the host"
    assert lost_with_the_next_start(of(device), of(device)) is None


def test_a_network_card_is_known_by_its_address() -> None:
    card = "<interface type='network'><mac address='52:54:00:0A:00:01'/><source network='a'/></interface>"
    assert lost_with_the_next_start(of(card), of()) == "a network card"
    assert lost_with_the_next_start(of(card), of(card.lower())) is None


def size(cpus: str, mib: int) -> ET.Element:
    return read(f"<domain><memory unit='KiB'>{mib << 10}</memory>{cpus}</domain>")


@pytest.mark.parametrize(
    ("running", "configured", "less"),
    [
        (size("<vcpu>4</vcpu>", 1024), size("<vcpu current='2'>4</vcpu>", 1024), ["2 vCPUs instead of 4"]),
        (size("<vcpu current='2'>4</vcpu>", 1024), size("<vcpu>4</vcpu>", 2048), []),
        (size("<vcpu>1</vcpu>", 2048), size("<vcpu>1</vcpu>", 1024), ["1024 MiB of memory instead of 2048"]),
        (size("", 1024), size("", 1023), []),
        (size("", 1024), size("<currentMemory unit='KiB'>65536</currentMemory>", 1024), []),
    ],
)
def test_reductions_are_reported_unless_libvirt_rounded(
    running: ET.Element, configured: ET.Element, less: list[str]
) -> None:
    assert [*less_with_the_next_start(running, configured)] == less
