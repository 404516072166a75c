"""The guest's owner controls the agent's answers: none of them breaks the worker or is mistaken for a freeze."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from drivers.base import AgentFailed, ServerInUse
from drivers.kvm import guest_agent

SILENT, DEEP = "", "[" * 100_000
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
    """Sets the agent's answers, one per command (SILENT: none), and returns the received commands."""

    def use(*answers: str) -> list[str]:
        left, asked = list(answers), list[str]()

        def command(_domain: Any, text: str, _timeout: int, _flags: int) -> str:
            asked.append(json.loads(text)["execute"].removeprefix("guest-fsfreeze-"))
            if (answer := left.pop(0)) == SILENT:
                error = libvirt.libvirtError("no answer")
                error.err = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, 0, "", 2, "", "", "", 0, 0)
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


@pytest.mark.parametrize("held", [said(0), said("none"), DEEP])
def test_a_freeze_that_holds_nothing_is_ended(says: Says, held: str) -> None:
    asked = says(said("thawed"), held, said("frozen"), said(0))
    assert guest_agent.freeze(Domain(), timeout_seconds=1) is (held == said("none"))
    assert asked[:2] == ["status", "freeze"]
    assert ("thaw" in asked) is (held != said("none"))


@pytest.mark.parametrize("after", [SILENT, said("frozen"), DEEP])
def test_a_freeze_that_is_not_answered_may_have_frozen(says: Says, after: str) -> None:
    says(said("thawed"), SILENT, after)
    with pytest.raises(AgentFailed):
        guest_agent.freeze(Domain(), timeout_seconds=1)


def test_a_freeze_that_is_refused_has_not(says: Says) -> None:
    says(said("thawed"), SILENT, said("thawed"))
    assert not guest_agent.freeze(Domain(), timeout_seconds=1)


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
