"""What is done to domains over an open connection, which is the caller's; all calls block."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt

from drivers.kvm import domain as driver
from drivers.kvm.opening import opened

_PRESS_AGAIN_SECONDS = 3.0  # a press that comes before the guest listens is lost
_GOING_OFF_SECONDS = 5.0  # seen: 1.6, until the machine's init reaps the QEMU that libvirt waits for


@contextmanager
def connection(uri: str) -> Iterator[Any]:
    """An own connection with an event loop in a thread, without which an embedded libvirt does nothing.

    A process holds the embedded root that it opened until it ends, also when the connection is closed; it can open that
    one again, but no other, nor one that was refused to it. Raises libvirt.libvirtError.
    """
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else each goes to stderr, beside being raised
    libvirt.virEventRegisterDefaultImpl()
    ended = threading.Event()

    def run_events() -> None:
        while not ended.is_set():
            libvirt.virEventRunDefaultImpl()

    timer = libvirt.virEventAddTimeout(100, lambda _timer, _opaque: None, None)  # so that the loop sees its end
    thread = threading.Thread(target=run_events, name="libvirt events")
    thread.start()
    try:
        connection = opened(uri)
        try:
            yield connection
        finally:
            connection.close()
    finally:
        ended.set()
        thread.join()
        libvirt.virEventRemoveTimeout(timer)


def define(connection: Any, xml: str) -> None:
    connection.defineXML(xml)


def start(connection: Any, name: str) -> None:
    """On already is fine."""
    driver.start(connection.lookupByName(name))


def power(connection: Any, name: str) -> str:
    """on, off or paused. One that is on its way down, up to 2 s, is waited for."""
    domain = connection.lookupByName(name)
    deadline = time.monotonic() + _GOING_OFF_SECONDS
    while domain.isActive():
        state, _reason = domain.state()
        if state == libvirt.VIR_DOMAIN_RUNNING:
            return "on"
        if state != libvirt.VIR_DOMAIN_SHUTDOWN or time.monotonic() > deadline:
            return "paused"
        time.sleep(0.05)
    return "off"


def shut_down(connection: Any, name: str, *, timeout_seconds: float) -> bool:
    """Press the power button, every few seconds again, until it is off; whether it was before the time was over."""
    domain = connection.lookupByName(name)
    deadline = time.monotonic() + timeout_seconds
    pressed = 0.0
    while domain.isActive():
        now = time.monotonic()
        if now > deadline:
            return False
        if now - pressed > _PRESS_AGAIN_SECONDS:
            try:
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
            except libvirt.libvirtError:
                if domain.isActive():  # it went off by itself meanwhile: fine
                    raise
            pressed = now
        time.sleep(0.05)
    return True


def cut_power(connection: Any, name: str) -> None:
    """Off already is fine."""
    driver.cut_power(connection.lookupByName(name))


def remove(connection: Any, name: str) -> None:
    """Off and forgotten, with libvirt's lists of its snapshots and checkpoints and its UEFI variables; its disks
    stay."""
    cut_power(connection, name)
    flags = libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    flags |= libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    connection.lookupByName(name).undefineFlags(flags)


def remove_all(connection: Any) -> None:
    for domain in connection.listAllDomains():
        remove(connection, domain.name())
