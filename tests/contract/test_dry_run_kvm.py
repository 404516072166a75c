"""If a dry run succeeds, so does the job: random states of a server on the real driver. `make dry-runs` tries 300.

`tests/unit/test_dry_run.py` does the same with 10,000 states of the fake driver.
"""

import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

import libvirt
import pytest

from drivers.base import Power
from tests.contract.kvm_bench import KvmBench, qemu_img
from tests.contract.states import MIB, NOW, THEN, Image, State
from tests.walking import BEFORE_THE_FIRST_CHANGE, NEW_TAG, SERVER, SPEC, End, walk
from worker.store.model import JobKind, NoteCode, Step

pytestmark = pytest.mark.asyncio(loop_scope="session")

STATES = int(os.environ.get("STATES") or "12")
BATCH = 6
FIRST = int(os.environ.get("SEED") or "0")
GUEST_EACH = 24  # one in this many boots a real guest
BATCHES = range(FIRST, FIRST + STATES, BATCH)


@dataclass(frozen=True, kw_only=True)
class Before:
    """State that a job must leave unchanged, or change in only one way."""

    power: Power
    virtual_bytes: dict[str, int]
    bitmaps: dict[str, set[str]]
    checkpoints: set[str]
    generation_id: str | None

    @classmethod
    def of(cls, state: State) -> "Before":
        return cls(
            power=state.power,
            virtual_bytes={target: image.virtual_bytes for target, image in state.images.items()},
            bitmaps={target: image.bitmaps for target, image in state.images.items()},
            checkpoints=state.checkpoints,
            generation_id=state.generation_id,
        )


@pytest.mark.parametrize("first", BATCHES)
async def test_if_a_dry_run_succeeds_so_does_the_job(kvm_bench: KvmBench, first: int) -> None:
    for number in range(first, first + BATCH):
        chance = random.Random(number)  # noqa: S311 - a state that can be had again, not a secret
        state = await State.make(kvm_bench, chance, guest=number % GUEST_EACH == 0)
        try:
            kind = chance.choice([JobKind.CREATE, JobKind.RESTORE, JobKind.RESTORE])
            await check(state, kind, present_only=kind is JobKind.RESTORE and chance.random() < 0.3)
        except BaseException as error:
            error.add_note(f"state {number}: {'; '.join(state.words) or 'nothing happened'}")
            raise
        finally:
            await state.end()


async def check(state: State, kind: JobKind, *, present_only: bool) -> None:
    hypervisor, found = state.bench.hypervisor, state.fingerprint()
    power = state.power
    dry = await walk(JobKind(f"check_{kind}"), hypervisor, present_only=present_only)
    assert state.fingerprint() == found, "a dry run changes nothing"

    if dry.code is not None:
        end = await walk(kind, hypervisor, present_only=present_only)
        assert (end.code, end.detail, end.failed_in) == (dry.code, dry.detail, Step.PREFLIGHT)
        assert state.fingerprint() == found, "what is refused changes nothing"
        assert state.power is power
        return
    before = Before.of(state)
    end = await walk(kind, hypervisor, present_only=present_only)
    assert state.power is before.power
    await hypervisor.cut_power(SERVER)
    rotten = any(image.rotten for image in state.images.values())
    assert (end.failed_in, end.code) == ((Step.CHECKING, "disk_corrupt") if rotten else (None, None)), end
    if rotten:
        assert set(state.texts().values()) <= {NOW}
        return
    _is_done(state, kind, before, end)
    assert dry.told <= end.told


def _is_done(state: State, kind: JobKind, before: Before, end: End) -> None:
    restored = kind is JobKind.RESTORE
    wanted = {target: THEN if restored and image.held else NOW for target, image in state.images.items()}
    assert state.texts() == wanted
    assert {target: image.virtual_bytes for target, image in state.images.items()} == before.virtual_bytes
    if state.uefi:
        gone = NoteCode.NOT_RESTORED in end.told and any("variables" in note.detail for note in end.facts.notes)
        assert state.nvram == (THEN if restored and not gone else NOW).encode()
    if restored:
        assert not any(image.bitmaps for image in state.images.values())
        assert not state.checkpoints
        assert (before.generation_id is None) == (state.generation_id is None)
        assert before.generation_id is None or before.generation_id != state.generation_id
        if before.checkpoints or any(before.bitmaps.values()):
            assert NoteCode.BACKUP_CHAIN_ENDED in end.told
    else:
        assert {target: image.bitmaps for target, image in state.images.items()} == before.bitmaps
        assert (state.checkpoints, state.generation_id) == (before.checkpoints, before.generation_id)
        assert all(NEW_TAG in image.tags for image in state.images.values())
    assert all(SPEC.tag in image.tags for image in state.images.values() if image.held)


# --- with other tools running ---


@pytest.mark.parametrize("first", BATCHES)
async def test_other_tools_between_the_dry_run_and_the_end_strand_nothing(kvm_bench: KvmBench, first: int) -> None:
    for number in range(first, first + BATCH):
        chance = random.Random(f"others {number}")  # noqa: S311 - a state that can be had again, not a secret
        state = await State.make(kvm_bench, chance)
        try:
            kind = chance.choice([JobKind.CREATE, JobKind.RESTORE, JobKind.RESTORE])
            await _beside_others(state, kind, present_only=kind is JobKind.RESTORE and chance.random() < 0.3)
        except BaseException as error:
            error.add_note(f"state {number}: {'; '.join(state.words) or 'nothing happened'}")
            raise
        finally:
            await state.end()


async def _beside_others(state: State, kind: JobKind, *, present_only: bool) -> None:
    hypervisor, others = state.bench.hypervisor, Others(state=state)
    dry = await walk(JobKind(f"check_{kind}"), hypervisor, present_only=present_only)
    began_as, sizes = state.power, {target: image.virtual_bytes for target, image in state.readable().items()}

    end = await walk(kind, hypervisor, present_only=present_only, tries=4, before_each=others.act)

    assert not end.stranded, end
    assert state.power in {began_as, *others.switched_to}, end
    if not others.acted:
        assert (end.failed_in, end.code) == (dry.failed_in, dry.code) or end.code == "disk_corrupt", end
    await hypervisor.cut_power(SERVER)
    await state.holders.aclose()
    if state.spoiled:
        return
    goes_back = (end.facts.targets or frozenset()) if kind is JobKind.RESTORE and end.code is None else frozenset()
    assert present_only or not goes_back or goes_back >= set(state.images), "a part was restored, and called all"
    wanted = {target: THEN if target in goes_back else NOW for target in state.images}
    assert state.texts() == {target: text for target, text in wanted.items() if not state.images[target].rotten}, end
    for target, image in state.images.items():
        assert image.virtual_bytes >= sizes.get(target, 0), f"{target} has become smaller: {end}"
        assert image.is_sound or image.rotten or end.failed_in in BEFORE_THE_FIRST_CHANGE, target


@dataclass(kw_only=True)
class Others:
    """Other tools, at most one between two steps of a job. Their errors are ignored."""

    state: State
    acted: list[str] = field(default_factory=list)
    switched_to: set[Power] = field(default_factory=set)  # the power states that they left

    async def act(self, step: Step) -> None:
        chance, state = self.state.chance, self.state
        if chance.random() < 0.6 or not state.readable():
            return
        tool = chance.choice([*TOOLS])
        try:
            TOOLS[tool](state)
        except (libvirt.libvirtError, subprocess.CalledProcessError):
            return
        self.acted.append(tool)
        state.words.append(f"{tool} before {step}")
        if tool in {"start", "stop"}:
            self.switched_to.add(state.power)


def _some_image(state: State) -> Image:
    return state.readable()[state.chance.choice([*state.readable()])]


def _enlarge(state: State) -> None:
    target, image = state.chance.choice([*state.readable().items()])
    size = image.virtual_bytes + MIB
    if state.power is Power.OFF:
        qemu_img("resize", "-q", "-f", "qcow2", str(image.path), f"{size}")
    else:
        state.domain.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def _detach(state: State) -> None:
    if len(state.images) > 1:
        state.detach(state.chance.choice([*state.images]))


def _drop_tag(state: State) -> None:
    image = _some_image(state)
    qemu_img("snapshot", "-d", SPEC.tag, str(image.path))
    image.held = False


TOOLS: dict[str, Callable[[State], object]] = {
    "list": lambda state: [found.getXMLDesc() for found in state.domain.listAllSnapshots()],
    "look": lambda state: qemu_img("snapshot", "-U", "-l", str(_some_image(state).path)),
    "add a bitmap": lambda state: state.add_bitmap(_some_image(state), "enabled"),
    "add a checkpoint": lambda state: state.add_checkpoint(),
    "enlarge": _enlarge,
    "detach": _detach,
    "start": lambda state: state.domain.create(),
    "stop": lambda state: state.domain.destroy(),
    "delete the tag": _drop_tag,
}
