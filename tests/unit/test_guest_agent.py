"""The guest's owner controls the agent's answers: none of them breaks the worker or is mistaken for a freeze."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from drivers.base import AgentFailed, ServerInUse
from drivers.kvm import guest_agent

DEEP = "[" * 100_000
SILENT, REFUSED, LOCKED, NOT_RUNNING = "silent", "refused", "locked", "not running"  # libvirt's errors
_ERRORS = {
    SILENT: (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: Guest agent not available for now"),
    REFUSED: (
        libvirt.VIR_ERR_INTERNAL_ERROR,
        "internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': Command guest-fsfreeze-freeze"
        " has been disabled: the agent is in frozen state",
    ),
    LOCKED: (
        libvirt.VIR_ERR_OPERATION_TIMEOUT,
        "Timed out during operation: cannot acquire state change lock (held by agent=remoteDispatchDomainFSFreeze)",
    ),
    NOT_RUNNING: (libvirt.VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: domain is not running"),
}
# The same error where libvirtd's locale is not English, with the agent's own text.
_IN_OTHER_LANGUAGES = {
    "de": "Interner Fehler: Agent QEMU-befehl 'guest-fsfreeze-freeze' kann nicht ausgeführt werden: has been disabled",
    "ru": "внутренняя ошибка: не удалось выполнить команду агента QEMU «guest-fsfreeze-freeze»: has been disabled",
    "ko": "내부 오류: QEMU 에이전트 명령 'guest-fsfreeze-freeze'을 실행할 수 없음",
}
_ERRORS |= {language: (libvirt.VIR_ERR_INTERNAL_ERROR, text) for language, text in _IN_OTHER_LANGUAGES.items()}
# Since libvirt 11.2, the code tells that the agent returned an error.
FAILED = "Der Gast-Agent hat den Befehl abgelehnt"
_ERRORS[FAILED] = (guest_agent.COMMAND_FAILED, FAILED)
TIMED_OUT = "QEMU guest agent did not answer guest-fsfreeze-freeze in time"
_ERRORS[TIMED_OUT] = (guest_agent.COMMAND_TIMEOUT, TIMED_OUT)
# The agent's channel was closed: nobody knows what became of the command.
CUT_OFF = ("Interner Fehler: End of file from agent socket", "내부 오류: 에이전트 소켓의 파일 끝")
_ERRORS |= {text: (libvirt.VIR_ERR_INTERNAL_ERROR, text) for text in CUT_OFF}
_CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


class Domain:
    """A running domain."""

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return True

    def state(self) -> tuple[int, int]:
        return libvirt.VIR_DOMAIN_RUNNING, 0

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return f"<domain><devices>{_CHANNEL}</devices></domain>"


Says = Callable[..., list[str]]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Sets the agent's answers or libvirt's errors, one per command, and returns the received commands."""

    def use(*answers: str) -> list[str]:
        left, asked = list(answers), list[str]()

        def command(_domain: Any, text: str, _timeout: int, _flags: int) -> str:
            asked.append(json.loads(text)["execute"].removeprefix("guest-fsfreeze-"))
            if (answer := left.pop(0)) in _ERRORS:
                code, message = _ERRORS[answer]
                error = libvirt.libvirtError(message)
                error.err = (code, 0, message, 2, "", "", "", 0, 0)
                raise error
            return answer

        monkeypatch.setattr(libvirt_qemu, "qemuAgentCommand", command)
        return asked

    return use


def said(value: object) -> str:
    return json.dumps({"return": value})


@pytest.mark.parametrize("answer", [said("molten"), said({}), said(None), "{}", "[]", "not JSON", DEEP, SILENT])
def test_an_agent_with_invalid_answers_counts_as_none(says: Says, answer: str) -> None:
    says(answer)
    assert not guest_agent.refuse_frozen(Domain())


def test_a_frozen_guest_is_refused(says: Says) -> None:
    says(said("frozen"))
    with pytest.raises(ServerInUse):
        guest_agent.refuse_frozen(Domain())


@pytest.mark.parametrize("held", [said(0), DEEP])
def test_a_freeze_that_holds_nothing_is_to_be_ended(says: Says, held: str) -> None:
    says(said("thawed"), held)
    with pytest.raises(AgentFailed):
        guest_agent.freeze(Domain(), timeout_seconds=1)


@pytest.mark.parametrize("held", [said(2), said("none")])
def test_any_other_answer_to_a_freeze_is_one(says: Says, held: str) -> None:
    asked = says(said("thawed"), held)
    assert guest_agent.freeze(Domain(), timeout_seconds=1)
    assert asked == ["status", "freeze"]


@pytest.mark.parametrize("name", ["COMMAND_TIMEOUT", "COMMAND_FAILED"])
def test_the_numbers_of_newer_errors_are_libvirts(name: str) -> None:
    number = getattr(guest_agent, name)
    assert getattr(libvirt, f"VIR_ERR_AGENT_{name}", number) == number


@pytest.mark.parametrize("text", [*CUT_OFF, TIMED_OUT])
def test_a_freeze_whose_answer_is_lost_may_have_frozen(says: Says, text: str) -> None:
    says(said("thawed"), text, said("frozen"))
    with pytest.raises(AgentFailed):
        guest_agent.freeze(Domain(), timeout_seconds=1)


@pytest.mark.parametrize("after", [SILENT, said("frozen"), DEEP, LOCKED, NOT_RUNNING])
def test_a_freeze_that_is_not_answered_may_have_frozen(says: Says, after: str) -> None:
    says(said("thawed"), SILENT, after)
    with pytest.raises(AgentFailed):
        guest_agent.freeze(Domain(), timeout_seconds=1)


def test_a_freeze_that_fails_unexpectedly_may_have_frozen(says: Says) -> None:
    says(said("thawed"), NOT_RUNNING, said("frozen"))
    with pytest.raises(AgentFailed):
        guest_agent.freeze(Domain(), timeout_seconds=1)


@pytest.mark.parametrize("answer", [SILENT, REFUSED])
def test_a_freeze_after_which_the_agent_reports_thawed_has_frozen_nothing(says: Says, answer: str) -> None:
    says(said("thawed"), answer, said("thawed"))
    assert not guest_agent.freeze(Domain(), timeout_seconds=1)


@pytest.mark.parametrize("refused", [REFUSED, FAILED, *_IN_OTHER_LANGUAGES])
def test_a_freeze_that_is_refused_because_another_tool_was_faster_leaves_that_freeze(says: Says, refused: str) -> None:
    asked = says(said("thawed"), refused, said("frozen"))
    with pytest.raises(ServerInUse):
        guest_agent.freeze(Domain(), timeout_seconds=1)
    assert "thaw" not in asked


@pytest.mark.parametrize("before", [(), (said("thawed"),)])
def test_a_freeze_that_libvirt_did_not_send_is_no_failure_of_the_agent(says: Says, before: Sequence[str]) -> None:
    asked = says(*before, LOCKED)
    with pytest.raises(libvirt.libvirtError, match="state change lock"):
        guest_agent.freeze(Domain(), timeout_seconds=1)
    assert "thaw" not in asked


@pytest.mark.parametrize(
    ("answers", "were_frozen"),
    [
        ((said("frozen"), said(2)), True),
        ((said("thawed"), said(0)), False),
        ((SILENT, said(2)), False),
        ((said("frozen"), SILENT, said("thawed")), False),  # Windows: the freeze had ended by itself
    ],
)
def test_a_thaw_is_asked_for_whatever_the_agent_thinks(says: Says, answers: Sequence[str], were_frozen: bool) -> None:
    asked = says(*answers)
    assert guest_agent.thaw(Domain()) is were_frozen
    assert "thaw" in asked


def test_a_thaw_without_an_answer_is_not_done(says: Says) -> None:
    says(SILENT, SILENT, SILENT)
    with pytest.raises(AgentFailed):
        guest_agent.thaw(Domain())
