"""If a dry run succeeds, the job does too: tried with random states of a server. If either refuses, nothing is lost."""

import copy
import random

import pytest

from drivers.base import Power
from drivers.fake import FakeHypervisor
from drivers.fake_state import FakeDisk, FakeServer
from tests.walking import BEFORE_THE_FIRST_CHANGE, NEW_TAG, SERVER, SPEC, walk
from worker.store.model import Consistency, JobKind, Note, NoteCode, Step

STATES, BATCH = 10_000, 500
THEN, NOW = "then", "now"
GIB = 1 << 30


def a_server(chance: random.Random) -> FakeServer:
    """A server in a state that other tools, owners and time may leave."""
    targets = ("vda", "vdb", "vdc", "vdd")[: chance.randint(1, 4)]
    server = FakeServer(
        name="server-1",
        server_id=SERVER,
        account_id=77,
        power=chance.choice([Power.ON, Power.ON, Power.OFF, Power.PAUSED]),
        presses_needed=chance.choice([1, 1, 2]),
        deaf=chance.random() < 0.1,
        disks={target: FakeDisk(content=THEN, virtual_bytes=20 * GIB) for target in targets},
        nvram=chance.choice([None, THEN]),
        generation=chance.choice([None, 1]),
        agent=chance.random() < 0.5,
        needs_stop="has a filter" if chance.random() < 0.03 else "",
    )
    if chance.random() < 0.1:
        server.skipped["sda"] = "it is a cdrom"
    if chance.random() < 0.2:
        server.checkpoints = ["c0"]
    if chance.random() < 0.05:
        server.in_use = "is being migrated"
    return server


async def with_a_past(chance: random.Random, hypervisor: FakeHypervisor) -> None:
    """Create a snapshot, and apply what may happen to the server afterward."""
    server = hypervisor.server(SERVER)
    power, server.power, in_use, server.in_use = server.power, Power.OFF, server.in_use, ""
    await hypervisor.take_snapshot(SERVER, SPEC)
    server.power, server.in_use = power, in_use
    hypervisor.write(SERVER, NOW)
    for target, disk in list(server.disks.items()):
        happened = chance.choice(
            ["nothing"] * 8 + ["grown", "shrunk", "detached", "replaced", "untagged", "fixed size"]
        )
        if happened in {"grown", "fixed size"}:
            disk.virtual_bytes, disk.can_grow = 40 * GIB, happened == "grown"
        elif happened == "shrunk":
            disk.virtual_bytes = 10 * GIB
        elif happened == "untagged":
            del disk.tags[SPEC.tag]
        elif happened in {"detached", "replaced"} and len(server.disks) > 1:
            server.detached[target] = server.disks.pop(target)
            if happened == "replaced":
                server.disks[target] = FakeDisk(content=NOW)
        disk.bitmaps = ["b0"] if chance.random() < 0.2 else []
        disk.damaged = chance.random() < 0.05
        disk.rotten = chance.random() < 0.02
        disk.ruined = chance.random() < 0.02
        disk.unsupported = chance.choice([""] * 40 + ["is raw"])
    if chance.random() < 0.1:
        server.disks["vdz"] = FakeDisk(content=NOW)
    if server.nvram is not None:
        server.nvram = NOW


@pytest.mark.parametrize("first", range(0, STATES, BATCH))
async def test_if_a_dry_run_succeeds_so_does_the_job(first: int) -> None:
    for number in range(first, first + BATCH):
        chance = random.Random(number)  # noqa: S311 - a state that can be had again, not a secret
        hypervisor = FakeHypervisor([a_server(chance)])
        await with_a_past(chance, hypervisor)
        kind = chance.choice([JobKind.CREATE, JobKind.RESTORE, JobKind.RESTORE])
        present_only = kind is JobKind.RESTORE and chance.random() < 0.3
        live = kind is JobKind.CREATE and chance.random() < 0.5
        await check(kind, hypervisor, present_only=present_only, live=live)


async def check(kind: JobKind, hypervisor: FakeHypervisor, *, present_only: bool, live: bool) -> None:
    server = hypervisor.server(SERVER)
    found = copy.deepcopy(server)
    dry = await walk(JobKind(f"check_{kind}"), hypervisor, present_only=present_only, live=live)
    assert server == found, "a dry run changes nothing"

    end = await walk(kind, hypervisor, present_only=present_only, live=live)

    assert hypervisor.misuse == []
    assert server.power is found.power
    if dry.code is not None:
        assert (end.code, end.failed_in) == (dry.code, Step.PREFLIGHT)
        assert server == found
        return
    assert end.failed_in in {None, *BEFORE_THE_FIRST_CHANGE}, end
    if end.failed_in is not None:
        assert end.code == "disk_corrupt"
        assert any(disk.rotten for disk in found.disks.values()), "all else is known before the stop"
        assert {target: disk.content for target, disk in server.disks.items()} == {
            target: disk.content for target, disk in found.disks.items()
        }
        return
    for target, disk in server.disks.items():
        before = found.disks[target]
        assert disk.virtual_bytes == before.virtual_bytes, "as large as it was"
        goes_back = kind is JobKind.RESTORE and SPEC.tag in before.tags
        assert disk.content == (before.tags[SPEC.tag] if goes_back else before.content)
    if kind is JobKind.RESTORE:
        assert server.generation == (None if found.generation is None else found.generation + 1)
    else:
        assert server.generation == found.generation
        assert all(NEW_TAG in disk.tags for disk in server.disks.values())
        assert {disk.target for disk in server.contents[NEW_TAG].disks} == set(server.disks)
        assert server.checkpoints == found.checkpoints
        label = server.contents[NEW_TAG].consistency
        assert dry.facts.contents is not None
        told = dry.facts.contents.consistency
        # on a busy machine, a guest that needs a second shutdown request is not off in time
        assert label == told or (told, label) == (Consistency.CLEAN_SHUTDOWN, Consistency.FORCED_OFF)
        assert (Step.STOPPING in end.steps) is not (live and found.power is Power.ON)
        assert [disk.bitmaps for disk in server.disks.values()] == [disk.bitmaps for disk in found.disks.values()]
    assert dry.told <= end.told


@pytest.mark.parametrize("kind", [JobKind.CREATE, JobKind.RESTORE])
async def test_what_a_stop_takes_away_is_predicted_and_reported(kind: JobKind) -> None:
    server = FakeServer(name="server-1", server_id=SERVER, account_id=77, reduced=["2 vCPUs instead of 4"])
    hypervisor = FakeHypervisor([server])
    await hypervisor.take_snapshot(SERVER, SPEC)
    await hypervisor.start(SERVER)
    foretold = await walk(JobKind(f"check_{kind}"), hypervisor)
    done = await walk(kind, hypervisor)
    detail = "The server starts again from its saved definition, which has 2 vCPUs instead of 4."
    assert done.failed_in is None
    for told in (foretold.facts.notes, done.facts.notes):
        assert Note(code=NoteCode.RESOURCES_REDUCED, detail=detail) in told
