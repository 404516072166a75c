"""Calls on domains over the caller's connection. All calls block."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt

from drivers.kvm import domain as driver
from drivers.kvm.opening import opened

_PRESS_AGAIN_SECONDS = 3.0  # a booting guest ignores the power button, so press it again
_POLL_SECONDS = 0.05
_GOING_OFF_SECONDS = 5.0  # limit for a guest that is shutting down; observed: 1.6 s until init reaps QEMU


@contextmanager
def connection(uri: str) -> Iterator[Any]:
    """A connection with an event loop in a thread, which an embedded libvirt needs.

    A process holds an embedded root until it exits, even after the connection is closed. It can open the same root
    again, but no other root, and no root that it failed to open. Raises libvirt.libvirtError.
    """
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised, so do not print them
    libvirt.virEventRegisterDefaultImpl()
    ended = threading.Event()

    def run_events() -> None:
        while not ended.is_set():
            libvirt.virEventRunDefaultImpl()

    timer = libvirt.virEventAddTimeout(100, lambda _timer, _opaque: None, None)  # wakes the loop to check `ended`
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
    """Start the domain; no effect if it runs."""
    driver.start(connection.lookupByName(name))


def power(connection: Any, name: str) -> str:
    """Returns on, off or paused. Waits for a domain that is shutting down."""
    domain = connection.lookupByName(name)
    deadline = time.monotonic() + _GOING_OFF_SECONDS
    while domain.isActive():
        state, _reason = domain.state()
        if state == libvirt.VIR_DOMAIN_RUNNING:
            return "on"
        if state != libvirt.VIR_DOMAIN_SHUTDOWN or time.monotonic() > deadline:
            return "paused"
        time.sleep(_POLL_SECONDS)
    return "off"


def shut_down(
    connection: Any,
    name: str,
    *,
    timeout_seconds: float,
    press_again_seconds: float = _PRESS_AGAIN_SECONDS,
    poll_seconds: float = _POLL_SECONDS,
) -> bool:
    """Press the power button repeatedly until the domain is off; False if that takes longer than the timeout."""
    domain = connection.lookupByName(name)
    deadline = time.monotonic() + timeout_seconds
    pressed = 0.0
    while domain.isActive():
        now = time.monotonic()
        if now > deadline:
            return False
        if now - pressed > press_again_seconds:
            try:
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
            except libvirt.libvirtError:
                if domain.isActive():  # otherwise it was shut off meanwhile
                    raise
            pressed = now
        time.sleep(poll_seconds)
    return True


def cut_power(connection: Any, name: str) -> None:
    """Power the domain off; no effect if it is off."""
    driver.cut_power(connection.lookupByName(name))


def remove(connection: Any, name: str) -> None:
    """Power off and undefine the domain, with its snapshot and checkpoint lists and its UEFI variables. Its disks are
    kept."""
    cut_power(connection, name)
    flags = libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    flags |= libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    connection.lookupByName(name).undefineFlags(flags)


def remove_all(connection: Any) -> None:
    for domain in connection.listAllDomains():
        remove(connection, domain.name())
