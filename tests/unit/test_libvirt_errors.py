"""What libvirt's errors mean, in whatever language libvirtd writes them."""

import libvirt
import pytest

from drivers.base import DriverError, HypervisorUnavailable, InvalidState, ServerInUse, StartFailed
from drivers.kvm.connection import translate

LOCKS = (
    "Timed out during operation: cannot acquire state change lock (held by agent=remoteDispatchDomainFSFreeze)",
    "Zeitüberschreitung bei der Operation: Kann Status-Änderungs-Lock nicht abrufen",
    "状態変更ロックを獲得できません (monitor=remoteDispatchDomainSuspend が保持)",
)


def meaning(code: int, text: str, otherwise: type[DriverError], *, alive: bool = True) -> type[DriverError]:
    error = libvirt.libvirtError(text)
    error.err = (code, 0, text, 2, "", "", "", 0, 0)
    return type(translate(error, otherwise, "refused", alive=alive))


@pytest.mark.parametrize("otherwise", [InvalidState, HypervisorUnavailable])
@pytest.mark.parametrize("text", LOCKS)
def test_a_lock_that_another_tool_holds_is_told_in_every_language(text: str, otherwise: type[DriverError]) -> None:
    assert meaning(libvirt.VIR_ERR_OPERATION_TIMEOUT, text, otherwise) is ServerInUse


def test_a_start_that_times_out_is_retried() -> None:
    english, *others = LOCKS
    assert meaning(libvirt.VIR_ERR_OPERATION_TIMEOUT, english, StartFailed) is ServerInUse
    for text in (*others, "Timed out during operation: swtpm socket did not show up"):
        assert meaning(libvirt.VIR_ERR_OPERATION_TIMEOUT, text, StartFailed) is HypervisorUnavailable


@pytest.mark.parametrize(
    "text", ["internal error: client socket is closed", "Interner Fehler: Client Socket ist geschlossen"]
)
def test_an_error_on_a_closed_connection_is_a_lost_daemon(text: str) -> None:
    assert meaning(libvirt.VIR_ERR_INTERNAL_ERROR, text, InvalidState, alive=False) is HypervisorUnavailable


def test_an_error_on_a_connection_that_works_is_the_daemons_answer() -> None:
    assert meaning(libvirt.VIR_ERR_INTERNAL_ERROR, "internal error: no PCI buses", InvalidState) is InvalidState
