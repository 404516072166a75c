"""Freezes and thaws the file systems of a running guest by its QEMU agent. All calls block, and raise libvirt's own
errors where the daemon, not the agent, is the cause.

libvirt's `fsFreeze` waits for the agent without a limit, so the commands are sent separately with limits. An agent
executes its commands in order: an answer means that all earlier commands have ended, including those whose answers
arrived too late for libvirt.
"""

import json
import math
import time
from contextlib import suppress
from typing import Any

import libvirt
import libvirt_qemu

from drivers.base import AgentFailed, InvalidState, Power, ServerInUse
from drivers.kvm import readiness
from drivers.kvm.libvirt_errors import UNKNOWN_OUTCOME
from drivers.kvm.libvirt_xml import read

CHANNEL = "./devices/channel/target[@name='org.qemu.guest_agent.0']"
ANSWER_SECONDS = 5  # limit for a status and for a thaw; libvirt adds up to 5 s of its own for a silent agent
# Limit for libvirt to connect to an agent that runs: 0.1 were observed. Less than ANSWER_SECONDS, so that a silent
# agent is asked once.
CONNECT_SECONDS = 2.0
CONNECTED_POLL_SECONDS = 0.02
FROZEN, THAWED = "frozen", "thawed"
FREEZE = "guest-fsfreeze-freeze"
# VIR_ERR_AGENT_COMMAND_TIMEOUT and VIR_ERR_AGENT_COMMAND_FAILED, since libvirt 11.2. As numbers, because the Python
# binding may be older than the daemon.
COMMAND_TIMEOUT, COMMAND_FAILED = 112, 113
# Errors if the agent is not configured, not connected, silent, or refuses.
_AGENTS = frozenset(
    {
        *(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED),
        *(COMMAND_TIMEOUT, COMMAND_FAILED),
    }
)


def status(domain: Any) -> str | None:
    """FROZEN or THAWED; None if no agent answers."""
    try:
        answer = _ask(domain, "guest-fsfreeze-status", ANSWER_SECONDS)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _AGENTS:
            raise
        return None
    return next((word for word in (FROZEN, THAWED) if word == answer), None)


def refuse_frozen(domain: Any) -> bool:
    """Raises ServerInUse if the file systems are frozen. Returns whether the agent answers."""
    found = status(domain)
    if found == FROZEN:
        raise _frozen_by_another_tool()
    return found is not None


def freeze(domain: Any, *, timeout_seconds: float) -> bool:
    """See `Hypervisor.freeze`."""
    if readiness.power(domain) is not Power.ON:
        raise InvalidState("the server is not running")
    if not refuse_frozen(domain):
        return False
    try:
        held = _ask(domain, FREEZE, timeout_seconds)
    except libvirt.libvirtError as error:
        if error.get_error_code() in UNKNOWN_OUTCOME:
            raise  # the daemon is lost, or did not send the freeze because another tool was asking the agent
        now = None
        with suppress(libvirt.libvirtError):  # for example, another tool is asking the agent
            now = status(domain)
        if now == FROZEN and is_refused(error):
            raise _frozen_by_another_tool() from error
        if now != THAWED:
            raise AgentFailed("the guest's agent did not freeze the file systems in time") from error
        return False
    if not held:
        raise AgentFailed("the guest's agent did not freeze any file system")
    return True


def is_refused(error: libvirt.libvirtError) -> bool:
    """Whether the agent itself returned an error to the freeze: then the freeze has ended and changed nothing. The
    agent refuses every freeze while the file systems are frozen.

    libvirtd translates its texts to the language of its locale, but every translation contains the command's name. Of
    the texts with VIR_ERR_INTERNAL_ERROR, only that of a returned error does. What is not recognized counts as sent and
    not answered.
    """
    code = error.get_error_code()
    return code == COMMAND_FAILED or (code == libvirt.VIR_ERR_INTERNAL_ERROR and FREEZE in str(error))


def _frozen_by_another_tool() -> ServerInUse:
    return ServerInUse("the server's file systems are frozen by another tool")


def thaw(domain: Any) -> bool:
    """See `Hypervisor.thaw`."""
    if not domain.isActive() or read(domain.XMLDesc(0)).find(CHANNEL) is None:
        return False
    before = _status_when_connected(domain)
    try:
        # Also if it reports that they are not frozen, because a restarted agent may not know.
        _ask(domain, "guest-fsfreeze-thaw", ANSWER_SECONDS)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _AGENTS:
            raise
        if status(domain) != THAWED:
            raise AgentFailed("the guest's agent does not answer: its file systems may be frozen") from error
        return False  # Windows ends a freeze after some seconds, and then refuses the thaw
    return before == FROZEN


def _status_when_connected(domain: Any) -> str | None:
    """Like `status`, but waits a moment for a libvirt that was just opened, which connects to the agent later than it
    answers."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while (found := status(domain)) is None and time.monotonic() < deadline:
        channel = read(domain.XMLDesc(0)).find(CHANNEL)
        if channel is None or channel.get("state") != "connected":  # in the guest: no agent runs
            break
        time.sleep(CONNECTED_POLL_SECONDS)
    return found


def _ask(domain: Any, command: str, timeout_seconds: float) -> Any:
    """The agent's answer; None if it is invalid, because the guest's owner controls the agent."""
    answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": command}), math.ceil(timeout_seconds), 0)
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        return json.loads(answer)["return"]
    return None
