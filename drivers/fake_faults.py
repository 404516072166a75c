"""Fault injection for the fake hypervisor: any effect can fail, hang, be slow, or kill the worker."""

import asyncio
import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter

from drivers.base import AgentFailed, DiskFailed, DriverError, HypervisorUnavailable, StartFailed


class Effect(StrEnum):
    """The driver's single operations: the points where a call can fail, hang or be killed."""

    LOOK = "look"  # any read: domains, power, layout, snapshots
    MEASURE = "measure"
    ADOPT = "adopt"
    PRESS = "press"
    CUT = "cut"
    START = "start"
    FREEZE = "freeze"
    THAW = "thaw"
    TRANSACTION = "transaction"  # a snapshot of all disks under a running guest: all or none
    SNAPSHOT_DISK = "snapshot_disk"
    REVERT_DISK = "revert_disk"
    DELETE_TAG = "delete_tag"
    REPAIR_DISK = "repair_disk"
    SAVE_NVRAM = "save_nvram"
    RESTORE_NVRAM = "restore_nvram"
    DELETE_NVRAM = "delete_nvram"
    CLEAR_BITMAPS = "clear_bitmaps"  # on one disk
    CLEAR_CHECKPOINTS = "clear_checkpoints"
    RESIZE_DISK = "resize_disk"
    RENEW_GENERATION = "renew_generation"
    HOLD = "hold"
    LET_GO = "let_go"
    LIST = "list"  # record a snapshot in the domain's metadata
    UNLIST = "unlist"


class Moment(StrEnum):
    BEFORE = "before"  # nothing was changed
    DURING = "during"  # half done: the disk is dirty. Only for changes of the disks of a guest that is off
    AFTER = "after"  # done, but the caller does not get the result


@dataclass(frozen=True, kw_only=True)
class Happening:
    moment: Moment
    effect: Effect
    server_id: int
    target: str  # the disk; "" if the effect is not on a disk


class Killed(BaseException):
    """Raised by a crash test's hook to simulate the death of the worker's process: nothing may handle it."""


_ON_DISKS = {
    *(Effect.SNAPSHOT_DISK, Effect.REVERT_DISK, Effect.DELETE_TAG, Effect.REPAIR_DISK),
    *(Effect.CLEAR_BITMAPS, Effect.RESIZE_DISK),
}
_ON_NVRAM = {Effect.SAVE_NVRAM, Effect.RESTORE_NVRAM, Effect.DELETE_NVRAM}


# libvirt's message for a failed start, with QEMU's text
NO_MEMORY = (
    "internal error: process exited while connecting to monitor: qemu-system-x86_64:"
    " cannot set up guest memory 'pc.ram': Cannot allocate memory"
)


def usual_error(effect: Effect, target: str) -> DriverError:
    """The error that the real driver raises when the effect fails."""
    if effect is Effect.START:
        failed = StartFailed("the domain did not start")
        failed.__cause__ = OSError(NO_MEMORY)
        return failed
    if effect in _ON_DISKS:
        return DiskFailed(f"disk {target} failed: {effect}")
    if effect in {Effect.FREEZE, Effect.THAW}:
        return AgentFailed(f"the guest's agent did not answer: {effect}")
    if effect is Effect.TRANSACTION:
        return DiskFailed("QEMU could not take the snapshot of the running server")
    if effect in _ON_NVRAM:
        return DiskFailed(f"the UEFI variables failed: {effect}")
    return HypervisorUnavailable(f"the hypervisor did not answer: {effect}")


@dataclass(kw_only=True)
class _Fault:
    effect: Effect
    target: str | None
    server_id: int | None
    at: Moment
    times: int
    error: BaseException | None

    def fits(self, happening: Happening) -> bool:
        return (
            (self.effect, self.at) == (happening.effect, happening.moment)
            and self.target in (None, happening.target)
            and self.server_id in (None, happening.server_id)
            and self.times > 0
        )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A fault of an effect, on every disk, while the rule is in the file. `server_id` None: on every server."""

    effect: Effect
    server_id: int | None = None
    fails: bool = False
    seconds: float = 0.0  # added to its duration
    waits: bool = False  # the effect does not end before the rule is removed


_RULES = TypeAdapter(tuple[Rule, ...])
_LOOK_SECONDS = 0.01  # between two checks whether a rule was removed


def write_rules(rules_file: Path, rules: Iterable[Rule]) -> None:
    """Replace the rules in the file."""
    fresh = rules_file.with_name(f"{rules_file.name}.new")
    fresh.write_bytes(_RULES.dump_json(tuple(rules)))
    os.replace(fresh, rules_file)


class Faults:
    """The faults of one fake hypervisor.

    `hook` is called at each moment of each effect and may raise. `delay_seconds`: the duration of an effect.
    `rules_file`: rules that apply while the file exists; with it, other processes control the faults of a worker.
    """

    def __init__(self, rules_file: Path | None = None) -> None:
        self._rules_file = rules_file
        self.hook: Callable[[Happening], None] | None = None
        self.delay_seconds: dict[Effect, float] = {}
        self._faults: list[_Fault] = []
        self._hung: dict[Effect, asyncio.Event] = {}

    def fail(
        self,
        effect: Effect,
        target: str | None = None,
        *,
        server_id: int | None = None,
        at: Moment = Moment.BEFORE,
        times: int = 1,
        error: BaseException | None = None,
    ) -> None:
        """Make the effect fail `times` times, by default with its usual error. `target`, `server_id`: None for any."""
        self._faults.append(_Fault(effect=effect, target=target, server_id=server_id, at=at, times=times, error=error))

    def hang(self, effect: Effect) -> asyncio.Event:
        """Make the effect hang, half done, until the returned event is set."""
        return self._hung.setdefault(effect, asyncio.Event())

    def heal(self) -> None:
        """Remove every fault and release what hangs."""
        self._faults.clear()
        for hung in self._hung.values():
            hung.set()
        self._hung.clear()

    async def effect(
        self,
        effect: Effect,
        *,
        server_id: int,
        target: str = "",
        half: Callable[[], object] | None = None,
        change: Callable[[], object] | None = None,
    ) -> None:
        """Perform the effect, or fail as the faults demand.

        An effect with a `half` simulates a child process: it is half done while it runs, and stays half done if the
        call is cancelled, which kills the child. Any other effect simulates a libvirt call, which always finishes.
        """
        reach = functools.partial(self._reach, effect, server_id, target)
        reach(Moment.BEFORE)
        rules = self._rules(effect, server_id)
        if any(rule.fails for rule in rules):
            raise usual_error(effect, target)
        if half is not None:
            half()
        try:
            await asyncio.sleep(self.delay_seconds.get(effect, 0) + sum(rule.seconds for rule in rules))
            while any(rule.waits for rule in self._rules(effect, server_id)):  # noqa: ASYNC110 - another process deletes it
                await asyncio.sleep(_LOOK_SECONDS)
            if effect in self._hung:
                await self._hung[effect].wait()
        except asyncio.CancelledError:
            if half is None and change is not None:
                change()
            raise
        if half is not None:
            reach(Moment.DURING)
        if change is not None:
            change()
        reach(Moment.AFTER)

    def _rules(self, effect: Effect, server_id: int) -> list[Rule]:
        if self._rules_file is None:
            return []
        try:
            rules = _RULES.validate_json(self._rules_file.read_bytes())
        except FileNotFoundError:
            return []
        return [rule for rule in rules if rule.effect is effect and rule.server_id in (None, server_id)]

    def _reach(self, effect: Effect, server_id: int, target: str, moment: Moment) -> None:
        happening = Happening(moment=moment, effect=effect, server_id=server_id, target=target)
        if self.hook is not None:
            self.hook(happening)
        for fault in self._faults:
            if fault.fits(happening):
                fault.times -= 1
                raise fault.error or usual_error(effect, target)
